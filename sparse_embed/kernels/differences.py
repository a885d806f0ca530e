"""Two rows against each other, in one pass over them.

    dot_difference(p, a, b, dim)                  sum_d p[d] (a[d] - b[d])
    add_scaled_difference(total, a, b, w, dim)    total[d] += w (a[d] - b[d])

Shapes   pointers to `dim` float32, dim a compile-time int; total does not overlap the others
Order    the sum as `reduce.dot`: 16 lanes and a fixed tree
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_embed.kernels.lanes import _each, _lanes, _load, _spread, _store

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def dot_difference(typing_context, p, a, b, dim):
    """sum_d p[d] (a[d] - b[d])"""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        def product(lane, width):
            left, right = (_load(builder, row, lane, width) for row in args[1:3])
            return builder.fmul(_load(builder, args[0], lane, width), builder.fsub(left, right))

        total = ir.Constant(ir.VectorType(ir.FloatType(), 16), [0.0] * 16)
        for block in range(lanes // 16):
            total = builder.fadd(total, product(_I64(16 * block), 16))
        for j in range(lanes % 16):
            more = product(_I64(lanes // 16 * 16 + j), 1)
            more = builder.fadd(builder.extract_element(total, _I32(j)), more)
            total = builder.insert_element(total, more, _I32(j))
        for width in (8, 4, 2, 1):
            low, high = (
                builder.shuffle_vector(total, total, ir.Constant(kind, list(lanes)))
                for kind in [ir.VectorType(_I32, width)]
                for lanes in (range(width), range(width, 2 * width))
            )
            total = builder.fadd(low, high)
        return builder.extract_element(total, _I32(0))

    return types.float32(p, a, b, dim), codegen


@intrinsic
def add_scaled_difference(typing_context, total, a, b, w, dim):
    """total[d] = total[d] + w * (a[d] - b[d])"""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        def work(lane, width):
            left, right = (_load(builder, row, lane, width) for row in args[1:3])
            weight = _spread(builder, args[3], width)
            product = builder.fmul(weight, builder.fsub(left, right))
            new = builder.fadd(_load(builder, args[0], lane, width), product)
            _store(builder, new, args[0], lane, width)

        _each(builder, lanes, work)
        return context.get_dummy_value()

    return types.void(total, a, b, types.float32, dim), codegen
