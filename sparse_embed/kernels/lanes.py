"""Loops over the columns of a row, written as vectors.

    zero_row(total, dim)                    total[d] = 0
    add_row(total, row, dim)                total[d] += row[d]
    add_scaled_row(total, row, w, dim)      total[d] += w * row[d]
    store_scaled_row(out, total, w, dim)    out[d] = w * total[d]
    copy_row(out, row, dim)                 out[d] = row[d]

Shapes   total, row, out: pointers to `dim` float32, dim a compile-time int; they do not overlap
Why      a `for d in range(dim)` leaves it to LLVM whether the sums of a short row stay in registers
         (at D = 16 they did not: 2.5 times slower) and costs it a loop pass each.  Straight-line
         vectors up to 128 columns, a loop of 64 columns beyond.  Lanes are independent, so the
         bits are those of the plain loop; a vector wider than the machine's is cut by LLVM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_STRAIGHT = 128
_BLOCK = 64
_WIDTHS = (16, 8, 4, 2, 1)
_I64 = ir.IntType(64)


def _lanes(dim: Any) -> int:
    if not isinstance(dim, types.IntegerLiteral):
        raise numba.errors.RequireLiteralValue("rows: `dim` must be a compile-time int")
    return int(dim.literal_value)


def _vectors(begin: int, end: int) -> list[tuple[int, int]]:
    """(first lane, width) of the vectors that cover [begin, end)."""
    found = []
    for width in _WIDTHS:
        while end - begin >= width:
            found.append((begin, width))
            begin += width
    return found


def _each(builder, dim: int, work: Callable[[Any, int], None]) -> None:
    """work(first lane, width) for vectors that cover the row."""
    done = 0
    if dim > _STRAIGHT:
        done = dim // _BLOCK * _BLOCK
        with cgutils.for_range(builder, _I64(dim // _BLOCK)) as loop:
            base = builder.mul(loop.index, _I64(_BLOCK))
            for lane, width in _vectors(0, _BLOCK):
                work(builder.add(base, _I64(lane)), width)
    for lane, width in _vectors(done, dim):
        work(_I64(lane), width)


def _address(builder, pointer, lane, width: int):
    address = builder.gep(pointer, [lane])
    kind = ir.FloatType() if width == 1 else ir.VectorType(ir.FloatType(), width)
    return builder.bitcast(address, kind.as_pointer())


def _load(builder, pointer, lane, width: int):
    return builder.load(_address(builder, pointer, lane, width), align=4)


def _store(builder, value, pointer, lane, width: int) -> None:
    builder.store(value, _address(builder, pointer, lane, width), align=4)


def _spread(builder, value, width: int):
    """The value in every lane."""
    if width == 1:
        return value
    none = ir.Constant(ir.VectorType(ir.FloatType(), width), ir.Undefined)
    one = builder.insert_element(none, value, ir.IntType(32)(0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    return builder.shuffle_vector(one, none, places)


@intrinsic
def zero_row(typing_context, total, dim):
    """total[d] = +0.0"""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        def work(lane, width):
            zero = _spread(builder, ir.FloatType()(0.0), width)
            _store(builder, zero, args[0], lane, width)

        _each(builder, lanes, work)
        return context.get_dummy_value()

    return types.void(total, dim), codegen


@intrinsic
def add_row(typing_context, total, row, dim):
    """total[d] = total[d] + row[d]"""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        def work(lane, width):
            old = _load(builder, args[0], lane, width)
            new = builder.fadd(old, _load(builder, args[1], lane, width))
            _store(builder, new, args[0], lane, width)

        _each(builder, lanes, work)
        return context.get_dummy_value()

    return types.void(total, row, dim), codegen


@intrinsic
def add_scaled_row(typing_context, total, row, w, dim):
    """total[d] = total[d] + w * row[d]"""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        def work(lane, width):
            product = builder.fmul(
                _spread(builder, args[2], width), _load(builder, args[1], lane, width)
            )
            new = builder.fadd(_load(builder, args[0], lane, width), product)
            _store(builder, new, args[0], lane, width)

        _each(builder, lanes, work)
        return context.get_dummy_value()

    return types.void(total, row, types.float32, dim), codegen


@intrinsic
def store_scaled_row(typing_context, out, total, w, dim):
    """out[d] = w * total[d]"""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        def work(lane, width):
            product = builder.fmul(
                _spread(builder, args[2], width), _load(builder, args[1], lane, width)
            )
            _store(builder, product, args[0], lane, width)

        _each(builder, lanes, work)
        return context.get_dummy_value()

    return types.void(out, total, types.float32, dim), codegen


@intrinsic
def copy_row(typing_context, out, row, dim):
    """out[d] = row[d]"""
    lanes = _lanes(dim)

    def codegen(context, builder, sig, args):
        def work(lane, width):
            _store(builder, _load(builder, args[1], lane, width), args[0], lane, width)

        _each(builder, lanes, work)
        return context.get_dummy_value()

    return types.void(out, row, dim), codegen
