"""How rows lie in records narrower than float32: widening, rounding, and the noise of rounding.

    float16   IEEE binary16, two weights a lane; an odd dim leaves the last half lane zero
    bfloat16  the upper half of a float32, two weights a lane
    int8      scale f4 | bias f4 | one byte a weight:  weight = q scale + bias      (read only)

    nearest      to nearest, ties to even; beyond the largest number: infinity
    stochastic   up in magnitude with the probability of what is cut off, so that the mean is x:
                 bfloat16   (bits + noise >> 16) >> 16             noise: 32 bits
                 float16    t + (frac 2^24 > noise >> 8) units     t, frac: x in units of the last
                            place that float16 has there (2^-24 at least), whole and fraction
    NaN          0x7FC0, 0x7E00

    noise(key, column)    murmur3's finaliser of column G32 + low, high added in the middle
    key                   mix64(rounding key of seed and step + row G)       (low and high halves)

Arithmetic is float32 throughout; only what lies in a record is narrow.

Shapes   record: pointer to the first lane of a record (float32 lanes, whatever is in them)
         row: pointer to float32 on the stack or in an output, weight first, then state
State    float32, or bfloat16 field by field, each from a fresh lane; what a row has one of (the sum
         of row-wise optimizers) stays float32.  Its columns count on from those of the weight.
Virgin   the first 16 bits are zero (int8: the scale is); its weights are the first ones, rounded to
         nearest (int8: not rounded).  A first weight that rounds to +0.0 is stored as -0.0.
Noise    32-bit arithmetic, for GPUs and AVX2 have no 64-bit multiplication of vectors.
Source   Gupta et al.: Deep Learning with Limited Numerical Precision, ICML 2015 (stochastic
         rounding); FBGEMM fused 8-bit row-wise (scale and bias a row); Appleby: murmur3's fmix32
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_embed.kernels._intrinsics import at, bits, from_bits, row_pointer
from sparse_embed.kernels._jit import cold_function, device_function
from sparse_embed.kernels.initialize import GAMMA, init_row, mix64

_ZERO16, _SIGN16 = np.uint16(0), np.uint16(0x8000)
_NAN_BF16, _NAN_F16 = np.uint16(0x7FC0), np.uint16(0x7E00)
_ZERO, _ONE32, _ROUND = np.uint32(0), np.uint32(1), np.uint32(0x7FFF)
_S8, _S13, _S16 = np.uint32(8), np.uint32(13), np.uint32(16)
_MAGNITUDE, _EXPONENT, _INFINITE = (
    np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7F800000),
)  # fmt: skip
_SMALLEST = np.uint32(0x38800000)  # 2^-14, the smallest normal float16
_TEN, _RECIPROCAL = np.uint32(10 << 23), np.uint32(254 << 23)
_TWO24 = np.float32(2.0**24)
_UP, _STAY = np.float32(1), np.float32(0)
_G32, _M1, _M2 = np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_S32 = np.uint64(32)

_HALVES = types.CPointer(types.uint16)
_BYTES = types.CPointer(types.uint8)


@intrinsic
def as_halves(typing_context, pointer):
    """The same address, as 16-bit words."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.IntType(16).as_pointer())

    return _HALVES(pointer), codegen


@intrinsic
def as_bytes(typing_context, pointer):
    """The same address, as bytes."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.IntType(8).as_pointer())

    return _BYTES(pointer), codegen


@intrinsic
def widen_float16(typing_context, half):
    """The float32 of these 16 bits: exact."""

    def codegen(context, builder, sig, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def _truncate_float16(typing_context, value):
    """float32 to the nearest float16, ties to even; NaN keeps some of its bits."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


# ---- one number ----------------------------------------------------------------------------------


@device_function
def widen_bfloat16(half):
    """The float32 of these 16 bits: exact."""
    return from_bits(np.uint32(np.uint32(half) << _S16))


@device_function
def nearest_bfloat16(x):
    """16 bits."""
    u = bits(x)
    rounded = np.uint16(np.uint32(u + _ROUND + ((u >> _S16) & _ONE32)) >> _S16)
    return _NAN_BF16 if np.uint32(u & _MAGNITUDE) > _INFINITE else rounded


@device_function
def stochastic_bfloat16(x, noise):
    """16 bits; noise: 32 random ones."""
    u = bits(x)
    rounded = np.uint16(np.uint32(u + (noise >> _S16)) >> _S16)
    return _NAN_BF16 if np.uint32(u & _MAGNITUDE) > _INFINITE else rounded


@device_function
def nearest_float16(x):
    """16 bits."""
    rounded = _truncate_float16(x)
    return _NAN_F16 if np.uint32(bits(x) & _MAGNITUDE) > _INFINITE else rounded


@device_function
def stochastic_float16(x, noise):
    """16 bits; noise: 32 random ones."""
    u = bits(x)
    magnitude = np.uint32(u & _MAGNITUDE)
    exponent = max(np.uint32(magnitude & _EXPONENT), _SMALLEST)
    unit = np.uint32(exponent - _TEN)
    units = from_bits(magnitude) * from_bits(np.uint32(_RECIPROCAL - unit))
    finite = magnitude < _INFINITE
    whole = np.float32(np.int32(units if finite else _STAY))  # below 2048
    up = (units - whole) * _TWO24 > np.float32(np.int32(np.uint32(noise >> _S8)))
    rounded = _truncate_float16((whole + (_UP if up else _STAY)) * from_bits(unit))
    if not finite:
        rounded = _truncate_float16(from_bits(magnitude))
    rounded = np.uint16(rounded | np.uint16(np.uint32(u >> _S16) & np.uint32(_SIGN16)))
    return _NAN_F16 if magnitude > _INFINITE else rounded


@device_function
def row_noise_key(rounding_key, row):
    """uint64, from the uint64 of seed and step and an int64 row number."""
    return mix64(rounding_key + np.uint64(row) * GAMMA)


@device_function
def noise(key, column):
    """32 bits for one number of a row."""
    low, high = np.uint32(key), np.uint32(key >> _S32)
    h = np.uint32(np.uint32(np.uint32(column) + _ONE32) * _G32 + low)
    h = np.uint32(np.uint32(h ^ np.uint32(h >> _S16)) * _M1)
    h = np.uint32(np.uint32(h ^ np.uint32(h >> _S13)) + high)
    h = np.uint32(h * _M2)
    return np.uint32(h ^ np.uint32(h >> _S16))


# ---- n numbers: `lanes` is where they lie in a record ---


@device_function
def read_float32(row, lanes, n):
    for d in range(n):
        row[d] = lanes[d]


@device_function
def read_float16(row, lanes, n):
    halves = as_halves(lanes)
    for d in range(n):
        row[d] = widen_float16(halves[d])


@device_function
def read_bfloat16(row, lanes, n):
    halves = as_halves(lanes)
    for d in range(n):
        row[d] = widen_bfloat16(halves[d])


@device_function
def write_float32(row, lanes, n, key, column):
    for d in range(n):
        lanes[d] = row[d]


@device_function
def write_float16_nearest(row, lanes, n, key, column):
    halves = as_halves(lanes)
    for d in range(n):
        halves[d] = nearest_float16(row[d])


@device_function
def write_float16_stochastic(row, lanes, n, key, column):
    halves = as_halves(lanes)
    for d in range(n):
        halves[d] = stochastic_float16(row[d], noise(key, column + d))


@device_function
def write_bfloat16_nearest(row, lanes, n, key, column):
    halves = as_halves(lanes)
    for d in range(n):
        halves[d] = nearest_bfloat16(row[d])


@device_function
def write_bfloat16_stochastic(row, lanes, n, key, column):
    halves = as_halves(lanes)
    for d in range(n):
        halves[d] = stochastic_bfloat16(row[d], noise(key, column + d))


# ---- first weights ---------------------------------------------------------------------------


@device_function
def settle_float32(row, dim):
    """Nothing to round."""


@cold_function
def settle_float16(row, dim):
    """Round first weights to what the record can hold."""
    for d in range(dim):
        row[d] = widen_float16(nearest_float16(row[d]))


@cold_function
def settle_bfloat16(row, dim):
    """Round first weights to what the record can hold."""
    for d in range(dim):
        row[d] = widen_bfloat16(nearest_bfloat16(row[d]))


@device_function
def is_virgin_float32(record):
    return bits(record[0]) == _ZERO


@device_function
def is_virgin_half(record):
    return as_halves(record)[0] == _ZERO16


@device_function
def keep_written_half(record):
    """+0.0 in front would mean virgin: it becomes -0.0."""
    halves = as_halves(record)
    if halves[0] == _ZERO16:
        halves[0] = _SIGN16


# ---- the weights of a row: pointer to dim float32, here always `scratch` ---


@device_function
def weight_row_float16(records, slot, row, scratch, dim, seed, init_kind, init_param):
    record = row_pointer(records, slot)
    if is_virgin_half(record):
        init_row(scratch, dim, seed, row, init_kind, init_param)
        settle_float16(scratch, dim)
    else:
        read_float16(scratch, record, dim)
    return scratch


@device_function
def weight_row_bfloat16(records, slot, row, scratch, dim, seed, init_kind, init_param):
    record = row_pointer(records, slot)
    if is_virgin_half(record):
        init_row(scratch, dim, seed, row, init_kind, init_param)
        settle_bfloat16(scratch, dim)
    else:
        read_bfloat16(scratch, record, dim)
    return scratch


@device_function
def weight_row_int8(records, slot, row, scratch, dim, seed, init_kind, init_param):
    record = row_pointer(records, slot)
    if is_virgin_float32(record):
        init_row(scratch, dim, seed, row, init_kind, init_param)
    else:
        scale, bias = record[0], record[1]
        quantised = as_bytes(at(record, 2))
        for d in range(dim):
            scratch[d] = np.float32(np.int32(quantised[d])) * scale + bias
    return scratch


PACKED_ROWS = {
    "float16": weight_row_float16,
    "bfloat16": weight_row_bfloat16,
    "int8": weight_row_int8,
}
READERS = {"float32": read_float32, "float16": read_float16, "bfloat16": read_bfloat16}
SETTLERS = {"float32": settle_float32, "float16": settle_float16, "bfloat16": settle_bfloat16}
WRITERS = {
    ("float32", "nearest"): write_float32,
    ("float32", "stochastic"): write_float32,
    ("float16", "nearest"): write_float16_nearest,
    ("float16", "stochastic"): write_float16_stochastic,
    ("bfloat16", "nearest"): write_bfloat16_nearest,
    ("bfloat16", "stochastic"): write_bfloat16_stochastic,
}


def lanes_of(n: int, dtype: str) -> int:
    """Float32 lanes that n numbers of a field take in a record; the weight of int8 with its scale
    and bias."""
    if dtype == "float32":
        return n
    return 2 + -(-n // 4) if dtype == "int8" else -(-n // 2)
