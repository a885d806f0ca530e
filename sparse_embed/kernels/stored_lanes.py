"""Sums of rows as they lie in records, written as vectors: `lanes`, widening as it loads.

    add_stored(sums, record, column, columns, kind)            sums[d] += weight[column + d]
    add_scaled_stored(sums, record, column, w, columns, kind)  sums[d] += w * weight[column + d]
    prefetch_stored(record, column, columns, kind)             asks for the cache lines of these
    is_virgin(record, kind)                                    whether nothing was written there

Shapes   record: pointer to the first lane of a record · columns, kind: compile-time ints
         sums: `columns` float32
Why      widened first to the stack and added from there, a row that is in the cache costs as much
         in stores as it saves in loads (measured: slower than float32; so 1.3 to 1.6 times faster)
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_embed.kernels._intrinsics import _prefetch
from sparse_embed.kernels.lanes import _each, _lanes, _load, _spread, _store

FLOAT32, FLOAT16, BFLOAT16, INT8 = 0, 1, 2, 3  # `kind`
KINDS = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16, "int8": INT8}

_BYTES = {FLOAT32: 4, FLOAT16: 2, BFLOAT16: 2, INT8: 1}
_SCALES = 8  # bytes of an int8 row's scale and bias
_LINE, _MOST_LINES = 64, 16
_FLOAT, _I8, _I16, _I32, _I64 = ir.FloatType(), *(ir.IntType(n) for n in (8, 16, 32, 64))


def _wide(kind, width: int):
    return kind if width == 1 else ir.VectorType(kind, width)


class _Weights:
    """Loads of a record's weights as float32, from one column on."""

    def __init__(self, builder, record, column, kind: int) -> None:
        self.builder, self.kind = builder, kind
        stored = {FLOAT32: _FLOAT, INT8: _I8}.get(kind, _I16)
        if kind == INT8:
            self.scale, self.bias = (
                builder.load(record),
                builder.load(builder.gep(record, [_I32(1)])),
            )
            record = builder.gep(record, [_I32(_SCALES // 4)])
        self.at = builder.gep(builder.bitcast(record, stored.as_pointer()), [column])

    def _words(self, kind, lane, width: int):
        """`width` numbers from the one numbered `lane` on."""
        address = self.builder.gep(self.at, [lane])
        place = self.builder.bitcast(address, _wide(kind, width).as_pointer())
        return self.builder.load(place, align=_BYTES[self.kind])

    def load(self, lane, width: int):
        builder, wide = self.builder, _wide(_I32, width)
        if self.kind == FLOAT32:
            return self._words(_FLOAT, lane, width)
        if self.kind == INT8:
            words = builder.zext(self._words(_I8, lane, width), wide)
            levels = builder.sitofp(words, _wide(_FLOAT, width))
            scaled = builder.fmul(levels, _spread(builder, self.scale, width))
            return builder.fadd(scaled, _spread(builder, self.bias, width))
        words = self._words(_I16, lane, width)
        if self.kind == FLOAT16:
            halves = builder.bitcast(words, _wide(ir.HalfType(), width))
            return builder.fpext(halves, _wide(_FLOAT, width))
        sixteen = ir.Constant(wide, 16 if width == 1 else [16] * width)
        return builder.bitcast(
            builder.shl(builder.zext(words, wide), sixteen), _wide(_FLOAT, width)
        )


def _accumulate(builder, sums, weights: _Weights, columns: int, change) -> None:
    def work(lane, width):
        old = _load(builder, sums, lane, width)
        new = builder.fadd(old, change(weights.load(lane, width), width))
        _store(builder, new, sums, lane, width)

    _each(builder, columns, work)


@intrinsic
def add_stored(typing_context, sums, record, column, columns, kind):
    """sums[d] = sums[d] + weight[column + d]"""
    count, which = _lanes(columns), _lanes(kind)

    def codegen(context, builder, sig, args):
        weights = _Weights(builder, args[1], args[2], which)
        _accumulate(builder, args[0], weights, count, lambda weight, width: weight)
        return context.get_dummy_value()

    return types.void(sums, record, types.int64, columns, kind), codegen


@intrinsic
def add_scaled_stored(typing_context, sums, record, column, w, columns, kind):
    """sums[d] = sums[d] + w * weight[column + d]"""
    count, which = _lanes(columns), _lanes(kind)

    def codegen(context, builder, sig, args):
        def scaled(weight, width):
            return builder.fmul(_spread(builder, args[3], width), weight)

        weights = _Weights(builder, args[1], args[2], which)
        _accumulate(builder, args[0], weights, count, scaled)
        return context.get_dummy_value()

    return types.void(sums, record, types.int64, types.float32, columns, kind), codegen


@intrinsic
def prefetch_stored(typing_context, record, column, columns, kind):
    """Ask for the lines of `columns` weights from `column` on, 16 at the most: the hardware has
    seen the stream by then."""
    size = _BYTES[_lanes(kind)]
    length = _lanes(columns) * size + (_SCALES if _lanes(kind) == INT8 else 0)

    def codegen(context, builder, sig, args):
        begin = builder.bitcast(args[0], _I8.as_pointer())
        begin = builder.gep(begin, [builder.mul(args[1], _I64(size))])
        for line in range(min(-(-length // _LINE), _MOST_LINES)):
            _prefetch(builder, builder.gep(begin, [_I64(_LINE * line)]), 0)
        return context.get_dummy_value()

    return types.void(record, types.int64, columns, kind), codegen


@intrinsic
def is_virgin(typing_context, record, kind):
    """1 if nothing was written to this record yet, else 0 (`formats`)."""
    first = _I16 if _lanes(kind) in (FLOAT16, BFLOAT16) else _I32

    def codegen(context, builder, sig, args):
        word = builder.load(builder.bitcast(args[0], first.as_pointer()))
        return builder.zext(builder.icmp_unsigned("==", word, first(0)), _I64)

    return types.int64(record, kind), codegen
