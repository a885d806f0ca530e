"""Sixteen columns at once: a Numba type that a formula takes in the place of a number.

    blocks(dim)                     how many vectors cover a row
    load_columns(row, block, dim)   columns [16 block, 16 block + 16) of the row, zeros beyond dim
    store_columns(row, block, dim, x)
    spread(number)                  the number in all sixteen lanes
    x + y, x - y, x * y, x / y, math.sqrt(x)        lane by lane

Shapes   row: pointer to `dim` float32, dim a compile-time int
Why      LLVM unrolls a loop over the columns of a short row before it looks for vectors, and what
         it unrolled stays scalar (Numba leaves SLP off): at D = 32 a square root and a division a
         column.  Lanes are independent and each operation is rounded as the scalar one, so the bits
         are the same.  A vector wider than the machine's is cut by LLVM.
"""

from __future__ import annotations

import math
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.lanes import _lanes, _load, _spread, _store, _vectors

_WIDTH = 16
_WIDE = ir.VectorType(ir.FloatType(), _WIDTH)
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class Float32x16(types.Type):
    def __init__(self) -> None:
        super().__init__("float32x16")


float32x16 = Float32x16()


@register_model(Float32x16)
class _Float32x16Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _WIDE)


def _define(operation, arity, build):
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            if args == (float32x16,) * arity:
                return signature(float32x16, *args)
            return None

    infer_global(operation)(Template)
    lower_builtin(operation, *[Float32x16] * arity)(
        lambda context, builder, sig, args: build(builder, *args)
    )


def _sqrt(builder, x):
    kind = ir.FunctionType(_WIDE, [_WIDE])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.sqrt.v16f32")
    return builder.call(function, [x])


_define(operator.add, 2, lambda builder, x, y: builder.fadd(x, y))
_define(operator.sub, 2, lambda builder, x, y: builder.fsub(x, y))
_define(operator.mul, 2, lambda builder, x, y: builder.fmul(x, y))
_define(operator.truediv, 2, lambda builder, x, y: builder.fdiv(x, y))
_define(math.sqrt, 1, _sqrt)


@device_function
def blocks(dim):
    """How many vectors cover a row of `dim` columns."""
    return (dim + 15) // 16


@intrinsic
def spread(typing_context, number):
    """The number in all lanes."""

    def codegen(context, builder, sig, args):
        return _spread(builder, args[0], _WIDTH)

    return float32x16(types.float32), codegen


def _narrow(builder, x, begin: int, width: int):
    """Lanes [begin, begin + width) of x."""
    if width == 1:
        return builder.extract_element(x, _I32(begin))
    places = ir.Constant(ir.VectorType(_I32, width), list(range(begin, begin + width)))
    return builder.shuffle_vector(x, x, places)


def _placed(builder, x, part, begin: int, width: int):
    """x with `part` in lanes [begin, begin + width)."""
    if width == 1:
        return builder.insert_element(x, part, _I32(begin))
    widen = [i if i < width else 0 for i in range(_WIDTH)]
    wide = builder.shuffle_vector(part, part, ir.Constant(ir.VectorType(_I32, _WIDTH), widen))
    places = [_WIDTH + i - begin if begin <= i < begin + width else i for i in range(_WIDTH)]
    return builder.shuffle_vector(x, wide, ir.Constant(ir.VectorType(_I32, _WIDTH), places))


def _is_whole(builder, block, dim: int):
    return builder.icmp_signed("<", block, _I64(dim // _WIDTH))


@intrinsic
def load_columns(typing_context, row, block, dim):
    """Columns [16 block, 16 block + 16) of a row, 0 beyond its end."""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        row, block = args[:2]
        first = builder.mul(block, _I64(_WIDTH))
        if lanes % _WIDTH == 0:
            return _load(builder, row, first, _WIDTH)
        place = cgutils.alloca_once(builder, _WIDE)
        with builder.if_else(_is_whole(builder, block, lanes)) as (whole, rest):
            with whole:
                builder.store(_load(builder, row, first, _WIDTH), place)
            with rest:
                x = ir.Constant(_WIDE, [0.0] * _WIDTH)
                for begin, width in _vectors(0, lanes % _WIDTH):
                    part = _load(builder, row, builder.add(first, _I64(begin)), width)
                    x = _placed(builder, x, part, begin, width)
                builder.store(x, place)
        return builder.load(place)

    return float32x16(row, types.int64, dim), codegen


@intrinsic
def store_columns(typing_context, row, block, dim, x):
    """The same columns of a row = x, as far as there are any."""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        row, block, x = args[0], args[1], args[3]
        first = builder.mul(block, _I64(_WIDTH))
        if lanes % _WIDTH == 0:
            _store(builder, x, row, first, _WIDTH)
            return context.get_dummy_value()
        with builder.if_else(_is_whole(builder, block, lanes)) as (whole, rest):
            with whole:
                _store(builder, x, row, first, _WIDTH)
            with rest:
                for begin, width in _vectors(0, lanes % _WIDTH):
                    place = builder.add(first, _I64(begin))
                    _store(builder, _narrow(builder, x, begin, width), row, place, width)
        return context.get_dummy_value()

    return types.void(row, types.int64, dim, float32x16), codegen
