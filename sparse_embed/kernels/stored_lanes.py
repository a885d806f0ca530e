"""Loops over the columns of a narrow row, written as vectors: `lanes`, widening as it loads.

    add_stored(total, record, dim, kind)            total[d] += weight[d]
    add_scaled_stored(total, record, w, dim, kind)  total[d] += w * weight[d]

Shapes   record: pointer to the first lane of a written record · dim, kind: compile-time ints
Why      widened first to the stack and added from there, a row that is in the cache costs as much
         in stores as it saves in loads (measured: slower than float32; so 1.3 to 1.6 times faster)
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_embed.kernels.lanes import _each, _lanes, _load, _spread, _store

FLOAT16, BFLOAT16, INT8 = 0, 1, 2  # `kind`
KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "int8": INT8}

_FLOAT, _I8, _I16, _I32 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32)


def _wide(kind, width: int):
    return kind if width == 1 else ir.VectorType(kind, width)


def _words(builder, pointer, kind, lane, width: int):
    """`width` integers from the one numbered `lane` on; `pointer` is to bytes or halves."""
    address = builder.bitcast(builder.gep(pointer, [lane]), _wide(kind, width).as_pointer())
    return builder.load(address, align=kind.width // 8)


class _Weights:
    """Loads of a record's weights as float32."""

    def __init__(self, builder, record, kind: int) -> None:
        self.builder, self.kind = builder, kind
        if kind == INT8:
            self.scale, self.bias = (
                builder.load(record),
                builder.load(builder.gep(record, [_I32(1)])),
            )
            self.at = builder.bitcast(builder.gep(record, [_I32(2)]), _I8.as_pointer())
        else:
            self.at = builder.bitcast(record, _I16.as_pointer())

    def load(self, lane, width: int):
        builder = self.builder
        if self.kind == INT8:
            words = builder.zext(_words(builder, self.at, _I8, lane, width), _wide(_I32, width))
            levels = builder.sitofp(words, _wide(_FLOAT, width))
            scaled = builder.fmul(levels, _spread(builder, self.scale, width))
            return builder.fadd(scaled, _spread(builder, self.bias, width))
        words = _words(builder, self.at, _I16, lane, width)
        if self.kind == FLOAT16:
            halves = builder.bitcast(words, _wide(ir.HalfType(), width))
            return builder.fpext(halves, _wide(_FLOAT, width))
        wide = _wide(_I32, width)
        sixteen = ir.Constant(wide, 16 if width == 1 else [16] * width)
        return builder.bitcast(
            builder.shl(builder.zext(words, wide), sixteen), _wide(_FLOAT, width)
        )


@intrinsic
def add_stored(typing_context, total, record, dim, kind):
    """total[d] = total[d] + weight[d]"""
    lanes, which = _lanes(dim), _lanes(kind)

    def codegen(context, builder, sig, args):
        weights = _Weights(builder, args[1], which)

        def work(lane, width):
            old = _load(builder, args[0], lane, width)
            _store(builder, builder.fadd(old, weights.load(lane, width)), args[0], lane, width)

        _each(builder, lanes, work)
        return context.get_dummy_value()

    return types.void(total, record, dim, kind), codegen


@intrinsic
def add_scaled_stored(typing_context, total, record, w, dim, kind):
    """total[d] = total[d] + w * weight[d]"""
    lanes, which = _lanes(dim), _lanes(kind)

    def codegen(context, builder, sig, args):
        weights = _Weights(builder, args[1], which)

        def work(lane, width):
            old = _load(builder, args[0], lane, width)
            product = builder.fmul(_spread(builder, args[2], width), weights.load(lane, width))
            _store(builder, builder.fadd(old, product), args[0], lane, width)

        _each(builder, lanes, work)
        return context.get_dummy_value()

    return types.void(total, record, types.float32, dim, kind), codegen
