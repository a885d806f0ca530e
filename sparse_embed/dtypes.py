"""How the numbers of a record are stored: dtypes, what is rounded and how, and their NumPy forms.

Arithmetic is float32 everywhere; a narrower dtype is what lies in memory and on disk.  NumPy has no
bfloat16, so its 16 bits stand as uint16: they are the upper half of a float32's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_embed._typing import AnyArray, FloatArray
from sparse_embed.errors import ArgumentError

TRAINED = ("float32", "float16", "bfloat16")
"""Dtypes of weights that can be changed."""
STORED = (*TRAINED, "int8")
"""int8: quantised copies, for reading."""
STATES = ("float32", "bfloat16")
ROUNDINGS = ("stochastic", "nearest")

_FORMATS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "|u1"}


@dataclass(frozen=True)
class Precision:
    """dtype: of the weights.  state_dtype: of optimizer state.  rounding: how an update rounds to
    them; "" where nothing is rounded."""

    dtype: str = "float32"
    state_dtype: str = "float32"
    rounding: str = ""

    def of_field(self, numbers: int) -> str:
        """The dtype of a state field: one number a row stays float32."""
        return self.state_dtype if numbers > 1 else "float32"


FLOAT32 = Precision()


def as_precision(dtype: object, state_dtype: object, rounding: object) -> Precision:
    """Check what a table is asked to be stored as.

    Raises:
        ArgumentError: an unknown name, int8 (made by `quantize` only), or a rounding where nothing
            is rounded.
    """
    weights, state = _name("dtype", dtype), _name("state_dtype", state_dtype)
    if weights == "int8":
        raise ArgumentError(
            'dtype: an "int8" table is a copy for lookups: train in another dtype, then '
            'table.quantize("int8")'
        )
    if weights not in TRAINED:
        raise ArgumentError(f"dtype: expected one of {', '.join(TRAINED)}, got {dtype!r}")
    if state not in STATES:
        raise ArgumentError(
            f"state_dtype: expected one of {', '.join(STATES)}, got {state_dtype!r}"
        )
    if weights == state == "float32":
        if rounding is not None:
            raise ArgumentError(f"rounding: nothing is rounded in float32, got {rounding!r}")
        return FLOAT32
    chosen = "stochastic" if rounding is None else rounding
    if not isinstance(chosen, str) or chosen not in ROUNDINGS:
        raise ArgumentError(f"rounding: expected one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    return Precision(weights, state, chosen)


def _name(where: str, dtype: object) -> str:
    """A dtype's name, from the name itself or NumPy's idea of it."""
    if isinstance(dtype, str) and dtype in STORED:
        return dtype
    if not isinstance(dtype, str | type | np.dtype):
        raise ArgumentError(f"{where}: expected the name of a dtype, got {dtype!r}")
    try:
        return str(np.dtype(dtype).newbyteorder("=").name)
    except TypeError:
        return repr(dtype)


def numpy_format(dtype: str) -> str:
    """What an array of such numbers is to NumPy."""
    return _FORMATS[dtype]


def narrow(values: FloatArray, dtype: str) -> AnyArray:
    """float32 to what is stored: to nearest, ties to even; out of range: infinity.  Not int8."""
    if dtype == "float32":
        return values
    nan = np.isnan(values)
    if dtype == "float16":
        with np.errstate(over="ignore", under="ignore"):
            halves = values.astype("<f2")
        halves.view("<u2")[nan] = 0x7E00
        return halves
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    lowest = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):
        words = ((bits + np.uint32(0x7FFF) + lowest) >> np.uint32(16)).astype("<u2")
    words[nan] = 0x7FC0
    return words


def widen(stored: AnyArray, dtype: str) -> FloatArray:
    """What is stored as float32: exact.  Not int8."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(stored, np.float32)
