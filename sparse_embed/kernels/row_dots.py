"""One row against others that lie behind each other in memory: their dot products, four at a time.

    four_dots(out, p, rows, stride, dim)    out[i] = sum_d p[d] rows[i stride + d], i < 4
    row_dots(out, p, rows, stride, number, dim)                                     i < number

Shapes   p, rows, out: pointers to float32; dim a compile-time int, stride and number int64
Order    each sum as `reduce.dot`: 16 lanes and a fixed tree
Why      the tree of one sum is half of its work; four share theirs, and the loads of p
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_embed.kernels._intrinsics import at
from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.lanes import _lanes, _load
from sparse_embed.kernels.reduce import dot

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _lane_sums(builder, a, b, dim: int):
    """<16 x float>: lane j sums columns j, j + 16, ..."""
    total = ir.Constant(ir.VectorType(ir.FloatType(), 16), [0.0] * 16)
    for start in range(0, dim - dim % 16, 16):
        left, right = (_load(builder, row, _I64(start), 16) for row in (a, b))
        total = builder.fadd(total, builder.fmul(left, right))
    for j in range(dim % 16):
        left, right = (_load(builder, row, _I64(dim - dim % 16 + j), 1) for row in (a, b))
        more = builder.fadd(builder.extract_element(total, _I32(j)), builder.fmul(left, right))
        total = builder.insert_element(total, more, _I32(j))
    return total


def _half(builder, a, b, width: int):
    """Both of `width`-lane groups: lane j takes in lane j + width / 2; those of a, then those of b.

    Vectors may hold several groups, one behind the other.
    """
    lanes = a.type.count
    kept = [j for j in range(2 * lanes) if j % width < width // 2]
    kind = ir.VectorType(_I32, lanes)
    low = builder.shuffle_vector(a, b, ir.Constant(kind, kept))
    high = builder.shuffle_vector(a, b, ir.Constant(kind, [j + width // 2 for j in kept]))
    return builder.fadd(low, high)


def _fold(builder, total):
    """Lane j takes in lane j + 8."""
    kind = ir.VectorType(_I32, 8)
    low, high = (
        builder.shuffle_vector(total, total, ir.Constant(kind, list(range(begin, begin + 8))))
        for begin in (0, 8)
    )
    return builder.fadd(low, high)


@intrinsic
def four_dots(typing_context, out, p, rows, stride, dim):
    """out[i] = sum_d p[d] rows[i stride + d] for i < 4"""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        out, p, rows, stride, _ = args
        sums = [
            _fold(
                builder,
                _lane_sums(builder, p, builder.gep(rows, [builder.mul(stride, _I64(i))]), lanes),
            )
            for i in range(4)
        ]
        pairs = [_half(builder, sums[i], sums[i + 1], 8) for i in (0, 2)]  # 4 lanes of each
        found = _half(builder, *pairs, 4)  # 2 lanes of each
        even, odd = (
            builder.shuffle_vector(
                found, found, ir.Constant(ir.VectorType(_I32, 4), list(range(begin, 8, 2)))
            )
            for begin in (0, 1)
        )
        place = builder.bitcast(out, ir.VectorType(ir.FloatType(), 4).as_pointer())
        builder.store(builder.fadd(even, odd), place, align=4)
        return context.get_dummy_value()

    return types.void(out, p, rows, types.int64, dim), codegen


@device_function
def row_dots(out, p, rows, stride, number, dim):
    """See the top of the file."""
    whole = number - number % 4
    for i in range(0, whole, 4):
        four_dots(at(out, i), p, at(rows, i * stride), stride, dim)
    for i in range(whole, number):
        out[i] = dot(p, at(rows, i * stride), dim)
