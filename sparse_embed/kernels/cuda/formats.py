"""Narrow records on the device: columns of `kernels/formats.py`, shared by lanes as in `_rows`.

    loads       columns of a field into registers, as float32
    stores      the way back, rounded; the key is of the row, `before` the numbers that lie in the
                record before this field: noise counts columns through
    columns     one number of a row's weight
    settled     a first weight as a record can hold it
    first_bits  of a record's first word, those that are zero in a virgin row

A dtype's functions have one signature, so that a kernel takes those of its table as compile-time
constants.  With D a multiple of 4 a lane moves 4 numbers: 16, 8 or 4 bytes (int8).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.cuda._rows import load_tile, store_tile, store_tile_once
from sparse_embed.kernels.cuda._shim import (
    SIMULATED,
    load2,
    store2,
    store_half,
    word_of,
)

if SIMULATED:  # lets plain Python call the formulas; before they are imported
    from sparse_embed.kernels.cuda import _simulated  # noqa: F401

from sparse_embed.kernels.formats import (
    lanes_of,
    nearest_bfloat16,
    nearest_float16,
    noise,
    stochastic_bfloat16,
    stochastic_float16,
    widen_bfloat16,
    widen_float16,
)

_FLOAT16, _BFLOAT16 = 0, 1
_HALF, _BYTE = np.uint32(0xFFFF), np.uint32(0xFF)
_SIXTEEN = np.uint32(16)
_ZERO, _SIGN = np.uint16(0), np.uint16(0x8000)


@device_function
def half_of(word, place):
    """The lower half of a word (place 0), or the upper one."""
    return np.uint16((word >> np.uint32(place * 16)) & _HALF)


@device_function
def pair(low, high):
    """A word of two halves."""
    return np.uint32(np.uint32(low) | np.uint32(np.uint32(high) << _SIXTEEN))


@device_function
def level_of(word, place):
    """A byte of a word, as float32."""
    return np.float32(np.int32((word >> np.uint32(place * 8)) & _BYTE))


@device_function
def widened(half, kind):
    """The float32 of a half."""
    if kind == _BFLOAT16:
        return widen_bfloat16(half)
    return widen_float16(half)


@device_function
def to_half(x, kind, noisy, key, column):
    """A float32 as it is stored."""
    if kind == _BFLOAT16:
        if noisy:
            return stochastic_bfloat16(x, noise(key, column))
        return nearest_bfloat16(x)
    if noisy:
        return stochastic_float16(x, noise(key, column))
    return nearest_float16(x)


# ---- columns of a lane ---------------------------------------------------------------------------


@device_function
def _load_halves(kind, values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim):
    for c in range(chunks):
        column = first + (c * lanes + lane) * vec
        if column < dim:
            if vec == 4:
                p, q = load2(matrix, row, base + (column >> 1))
                values[at + c * 4] = widened(half_of(p, 0), kind)
                values[at + c * 4 + 1] = widened(half_of(p, 1), kind)
                values[at + c * 4 + 2] = widened(half_of(q, 0), kind)
                values[at + c * 4 + 3] = widened(half_of(q, 1), kind)
            else:
                word = word_of(matrix, row, base + (column >> 1))
                values[at + c] = widened(half_of(word, column & 1), kind)


@device_function
def load_float16(values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim):
    _load_halves(
        _FLOAT16, values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim
    )  # fmt: skip


@device_function
def load_bfloat16(values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim):
    _load_halves(
        _BFLOAT16, values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim
    )  # fmt: skip


@device_function
def load_int8(values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim):
    scale, bias = matrix[row, 0], matrix[row, 1]
    for c in range(chunks):
        column = first + (c * lanes + lane) * vec
        if column < dim:
            word = word_of(matrix, row, 2 + (column >> 2))
            for v in range(vec):
                values[at + c * vec + v] = level_of(word, (column + v) & 3) * scale + bias


@device_function
def _store_halves(
    kind, noisy, values, matrix, row, base, first, lane, lanes, vec, chunks, dim, key, before
):
    for c in range(chunks):
        column = first + (c * lanes + lane) * vec
        if column < dim:
            begin = before + column
            a = to_half(values[c * vec], kind, noisy, key, begin)
            if base == 0 and column == 0 and a == _ZERO:  # would mean virgin
                a = _SIGN
            if vec == 4:
                b = to_half(values[c * 4 + 1], kind, noisy, key, begin + 1)
                p = to_half(values[c * 4 + 2], kind, noisy, key, begin + 2)
                q = to_half(values[c * 4 + 3], kind, noisy, key, begin + 3)
                store2(matrix, row, base + (column >> 1), pair(a, b), pair(p, q))
            else:
                store_half(matrix, row, 2 * base + column, a)


@device_function
def store_float32(values, matrix, row, base, first, lane, lanes, vec, chunks, dim, key, before):
    store_tile(values, matrix, row, base, first, lane, lanes, vec, chunks, dim)


@device_function
def store_float32_once(
    values, matrix, row, base, first, lane, lanes, vec, chunks, dim, key, before
):
    store_tile_once(values, matrix, row, base, first, lane, lanes, vec, chunks, dim)


@device_function
def store_float16(values, matrix, row, base, first, lane, lanes, vec, chunks, dim, key, before):
    _store_halves(
        _FLOAT16, False, values, matrix, row, base, first, lane, lanes, vec, chunks, dim,
        key, before,
    )  # fmt: skip


@device_function
def store_bfloat16(values, matrix, row, base, first, lane, lanes, vec, chunks, dim, key, before):
    _store_halves(
        _BFLOAT16, False, values, matrix, row, base, first, lane, lanes, vec, chunks, dim,
        key, before,
    )  # fmt: skip


@device_function
def store_float16_noisy(
    values, matrix, row, base, first, lane, lanes, vec, chunks, dim, key, before
):
    _store_halves(
        _FLOAT16, True, values, matrix, row, base, first, lane, lanes, vec, chunks, dim,
        key, before,
    )  # fmt: skip


@device_function
def store_bfloat16_noisy(
    values, matrix, row, base, first, lane, lanes, vec, chunks, dim, key, before
):
    _store_halves(
        _BFLOAT16, True, values, matrix, row, base, first, lane, lanes, vec, chunks, dim,
        key, before,
    )  # fmt: skip


# ---- one number ----------------------------------------------------------------------------------


@device_function
def column_float32(matrix, row, column):
    return matrix[row, column]


@device_function
def column_float16(matrix, row, column):
    return widen_float16(half_of(word_of(matrix, row, column >> 1), column & 1))


@device_function
def column_bfloat16(matrix, row, column):
    return widen_bfloat16(half_of(word_of(matrix, row, column >> 1), column & 1))


@device_function
def column_int8(matrix, row, column):
    level = level_of(word_of(matrix, row, 2 + (column >> 2)), column & 3)
    return level * matrix[row, 0] + matrix[row, 1]


@device_function
def as_it_is(x):
    return x


@device_function
def settled_float16(x):
    return widen_float16(nearest_float16(x))


@device_function
def settled_bfloat16(x):
    return widen_bfloat16(nearest_bfloat16(x))


class Format(NamedTuple):
    """How a table's weights are read."""

    load: Any
    column: Any
    settled: Any
    first_bits: np.uint32


_ALL, _LOW = np.uint32(0xFFFFFFFF), np.uint32(0xFFFF)
FORMATS = {
    "float32": Format(load_tile, column_float32, as_it_is, _ALL),
    "float16": Format(load_float16, column_float16, settled_float16, _LOW),
    "bfloat16": Format(load_bfloat16, column_bfloat16, settled_bfloat16, _LOW),
    "int8": Format(load_int8, column_int8, as_it_is, _ALL),
}
STORES = {
    ("float32", False): store_float32,
    ("float32", True): store_float32,
    ("float16", False): store_float16,
    ("float16", True): store_float16_noisy,
    ("bfloat16", False): store_bfloat16,
    ("bfloat16", True): store_bfloat16_noisy,
}

__all__ = ["FORMATS", "STORES", "Format", "lanes_of"]
