"""e^x and ln(1 + y) in float32 by additions, products and one division: the same bits everywhere.

A C library's functions differ between machines, and a GPU's from all of them; a model whose
gradients pass through these is the same, bit for bit, on every CPU and every GPU.

    exp_of(x)   x <= 0.  x = k ln 2 + r with |r| <= ln(2) / 2, e^r by a polynomial of degree 7 (the
                coefficients of Cephes' expf), times 2^k.  Off by 1 ulp at the most; below e^-87,
                the last normal number, e^-87.
    log_of(y)   ln(1 + y) for 0 <= y <= 1: 2 artanh(y / (2 + y)), its series.  2 ulp.
    log_above(x)  ln(x) for 1 <= x < 2^32: k ln 2 + log_of(x / 2^k - 1).  2 ulp.
Source   Moshier, Cephes Mathematical Library (expf); Abramowitz & Stegun 4.1.27
"""

from __future__ import annotations

import numpy as np

from sparse_embed.kernels._intrinsics import bits, from_bits
from sparse_embed.kernels._jit import compiled_as, device_function

_LEAST = np.float32(-87)
_LOG2_E = np.float32(1.44269504088896341)
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding and taking it away rounds to an integer
_BIAS, _MANTISSA = np.uint32(127), np.uint32(23)  # of a float32's exponent, and below it
_LN2_HIGH = np.float32(0.693359375)  # 10 bits: times k it is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_P5 = np.float32(1.9875691500e-4)
_P4 = np.float32(1.3981999507e-3)
_P3 = np.float32(8.3334519073e-3)
_P2 = np.float32(4.1665795894e-2)
_P1 = np.float32(1.6666665459e-1)
_P0 = np.float32(5.0000001201e-1)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_H16, _H8, _H4, _H2, _H1 = (np.float32(2.0**-n) for n in (16, 8, 4, 2, 1))
_N16, _N8, _N4, _N2, _N1 = (np.float32(n) for n in (16, 8, 4, 2, 1))
_Q16, _Q8, _Q4, _Q2, _Q1 = (np.float32(2.0**n) for n in (16, 8, 4, 2, 1))
_A3, _A5, _A7, _A9, _A11, _A13, _A15 = (np.float32(1 / n) for n in (3, 5, 7, 9, 11, 13, 15))


def _two_to_compiled(rounded):
    return from_bits(np.uint32(np.uint32(bits(rounded) + _BIAS) << _MANTISSA))


@compiled_as(_two_to_compiled)
def two_to(rounded):
    """2^k for -126 <= k <= 0, from k + _ROUND, whose last bits are k's.

    Without a conversion to integers, so that it takes a NaN: some number comes out.
    """
    return np.uint32((np.float32(rounded).view(np.uint32) + _BIAS) << _MANTISSA).view(np.float32)


@device_function
def exp_of(x):
    """e^x for x <= 0, float32; see the top of the file."""
    x = _LEAST if x < _LEAST else x
    rounded = x * _LOG2_E + _ROUND
    k = rounded - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = ((((_P5 * r + _P4) * r + _P3) * r + _P2) * r + _P1) * r + _P0
    return ((p * (r * r) + r) + _ONE) * two_to(rounded)


@device_function
def log_of(y):
    """ln(1 + y) for 0 <= y <= 1, float32; see the top of the file."""
    s = y / (_TWO + y)
    t = s * s
    p = ((((((_A15 * t + _A13) * t + _A11) * t + _A9) * t + _A7) * t + _A5) * t + _A3) * t
    return _TWO * (s * p + s)


@device_function
def _halve(x, k, bit, power, half):
    """One binary digit of k, while x falls below 2."""
    has = x >= power
    return (x * half if has else x), (k + bit if has else k)


@device_function
def log_above(x):
    """ln(x) for 1 <= x < 2^32, float32; see the top of the file."""
    x, k = _halve(x, _ZERO, _N16, _Q16, _H16)
    x, k = _halve(x, k, _N8, _Q8, _H8)
    x, k = _halve(x, k, _N4, _Q4, _H4)
    x, k = _halve(x, k, _N2, _Q2, _H2)
    x, k = _halve(x, k, _N1, _Q1, _H1)
    return k * _LN2_HIGH + (k * _LN2_LOW + log_of(x - _ONE))
