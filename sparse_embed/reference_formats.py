"""Records narrower than float32 in slow, plain NumPy: the specification of `kernels/formats.py`.

A record is W words of 32 bits, in an array that says float32; here they are taken apart as bytes.
`rec.precision` is a `dtypes.Precision`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparse_embed._typing import AnyArray, FloatArray

Words: TypeAlias = NDArray[np.uint64]

_MASK64, _MASK32 = 2**64 - 1, 2**32 - 1
_GAMMA, _ROUNDING = 0x9E3779B97F4A7C15, 0xB5297A4D3F84D5A9
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LARGEST = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127")}
_FEWEST = {"float16": -24, "bfloat16": -133}  # the smallest numbers are 2^-24 and 2^-133
_DIGITS = {"float16": 11, "bfloat16": 8}
_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0}


def _mix64(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK64
    return z ^ z >> 31


def noise(seed: int, step: int, row: int, column: int) -> int:
    """32 bits for one number of one row in one step."""
    key = _mix64(((seed ^ _ROUNDING) + _GAMMA) & _MASK64)
    key = _mix64(key + step * _GAMMA & _MASK64)
    key = _mix64(key + row * _GAMMA & _MASK64)
    h = (column + 1) * 0x9E3779B9 + key & _MASK32
    h = (h ^ h >> 16) * 0x85EBCA6B & _MASK32
    h = (h ^ h >> 13) + (key >> 32) & _MASK32
    h = h * 0xC2B2AE35 & _MASK32
    return h ^ h >> 16


def stored_number(x: float, dtype: str, noise_bits: int | None = None) -> int:
    """The 16 bits that float32 x is stored as: rounded to nearest, or by this noise.

    In float64, where a float32 over a power of two, its whole and its fraction are exact.
    """
    if np.isnan(x):
        return _NAN[dtype]
    sign = 0x8000 if np.signbit(x) else 0
    size = abs(float(x))
    if size == 0:
        return sign
    infinite = 0x7C00 if dtype == "float16" else 0x7F80
    if np.isinf(size):
        return sign | infinite
    exponent = int(np.frexp(size)[1])  # size = m 2^exponent, 1/2 <= m < 1
    unit = max(exponent - _DIGITS[dtype], _FEWEST[dtype])
    scaled = float(np.ldexp(size, -unit))
    whole = int(scaled)
    fraction = scaled - whole
    if noise_bits is None:
        up = fraction > 0.5 or (fraction == 0.5 and whole % 2 == 1)
    elif dtype == "bfloat16":
        up = int(fraction * 2**16) + (noise_bits >> 16) >= 2**16
    else:
        up = fraction * 2**24 > noise_bits >> 8
    rounded = float(np.ldexp(whole + up, unit))
    if rounded > _LARGEST[dtype]:
        return sign | infinite
    if dtype == "float16":
        return sign | int(np.float16(rounded).view(np.uint16))
    return sign | int(np.float32(rounded).view(np.uint32)) >> 16


def to_stored(values: FloatArray, dtype: str) -> NDArray[np.uint16]:
    """(...,) the 16 bits of each, rounded to nearest."""
    flat = [stored_number(float(x), dtype) for x in values.reshape(-1)]
    return np.array(flat, np.uint16).reshape(values.shape)


def from_stored(words: AnyArray, dtype: str) -> FloatArray:
    """float32 of 16-bit words."""
    if dtype == "float16":
        return words.view(np.float16).astype(np.float32)
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def settle(weights: FloatArray, dtype: str) -> FloatArray:
    """First weights as a record can hold them; int8 tables do not hold them."""
    if dtype in ("float32", "int8"):
        return weights
    return from_stored(to_stored(weights, dtype), dtype)


def is_virgin(record: FloatArray, dtype: str) -> bool:
    """The first number in the stored dtype, of int8 the scale, has all bits zero."""
    first = record.view(np.uint16)[:2]
    return bool(first[0] == 0 and (dtype in ("float16", "bfloat16") or first[1] == 0))


def fields(dim: int, state: Any, precision: Any) -> list[tuple[int, str, int]]:
    """(first byte, dtype, numbers) of the weight and each state field."""
    found, at = [], 0
    for number, dtype in [(dim, precision.dtype)] + [
        (field.lanes, precision.state_dtype if field.lanes > 1 else "float32") for field in state
    ]:
        found.append((at, dtype, number))
        at += -(-number * _SIZES[dtype] // 4) * 4
    return found


def read_weight(record: FloatArray, dim: int, dtype: str) -> FloatArray:
    """(D,) float32 of a record that is not virgin."""
    if dtype == "int8":
        scale, bias = record[:2]
        return np.asarray(record.view(np.uint8)[8 : 8 + dim].astype(np.float32) * scale + bias)
    return read_field(record, (0, dtype, dim))


def read_field(record: FloatArray, field: tuple[int, str, int]) -> FloatArray:
    at, dtype, number = field
    part = record.view(np.uint8)[at : at + number * _SIZES[dtype]]
    if dtype == "float32":
        return part.view(np.float32).copy()
    return from_stored(part.view(np.uint16), dtype)


def write_row(
    record: FloatArray, row: FloatArray, dim: int, state: Any, rec: Any, step: int, index: int
) -> None:
    """Store a float32 row, weight and state side by side, in a record."""
    column = 0
    for at, dtype, number in fields(dim, state, rec.precision):
        values = row[column : column + number]
        part = record.view(np.uint8)[at : at + number * _SIZES[dtype]]
        if dtype == "float32":
            part.view(np.float32)[:] = values
        elif rec.precision.rounding == "nearest":
            part.view(np.uint16)[:] = to_stored(values, dtype)
        else:
            for i, x in enumerate(values):
                bits = noise(rec.seed, step, index, column + i)
                part.view(np.uint16)[i] = stored_number(float(x), dtype, bits)
        column += number
    if is_virgin(record, rec.precision.dtype):
        if rec.precision.dtype == "float32":
            record[0] = -0.0
        else:
            record.view(np.uint16)[0] = 0x8000
