"""First weights of rows that were never trained: `Uniform`, `Normal`, `Zeros`.

A first weight is a function of (seed, row, column): it is computed when asked for and stored
nowhere, so a table of 10^9 rows is created in milliseconds.  `kernels/initialize.py` is the
formula; every machine gets the same bits.  Golden values for seed 0, columns 0 to 3, as the bits of
float32:

    Uniform(1.0)  row 0         3f2d1536 3f09cb70 3f0b0ac6 3f75d8c8   (0.676105, 0.538260, ...)
                  row 2^63 - 1  3dd78990 bf244d7c 3e4ce178 3f2ce17a
    Normal(1.0)   row 0         bfeb5224 bf065463 bf9260e8 be9141b5   (-1.838444, -0.524725, ...)
                  row 2^63 - 1  bf2c8587 bf6cfe30 3e4d9aa3 3f599080
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from sparse_embed.errors import ArgumentError

_SMALLEST, _LARGEST = 1e-30, 1e30
_LANE_STD = math.sqrt(8 * (65536**2 - 1) / 12)  # of the sum of eight uniform 16-bit numbers


def _positive(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ArgumentError(f"{where}: expected a number, got {value!r}")
    number = float(value)
    if not _SMALLEST <= number <= _LARGEST:  # NaN too
        raise ArgumentError(f"{where}: expected {_SMALLEST:g} to {_LARGEST:g}, got {number!r}")
    return number


@dataclass(frozen=True)
class Uniform:
    """U[-scale, scale), on a grid of 2^24 equidistant values.

    Raises:
        ArgumentError: `scale` is not a number from 1e-30 to 1e30.
    """

    name: ClassVar[str] = "uniform"
    kind: ClassVar[int] = 0
    scale: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _positive("Uniform.scale", self.scale))

    @property
    def param(self) -> float:
        """What the kernel multiplies its integer by."""
        return float(np.float32(self.scale * 2.0**-23))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `initializer_from_dict` reads it back."""
        return {"name": self.name, "scale": self.scale}


@dataclass(frozen=True)
class Normal:
    """Normal with mean 0 and this standard deviation, from integers: the centred sum of eight
    uniform 16-bit numbers.  Its variance is exact; its excess kurtosis is -0.15, and no value lies
    beyond 4.9 std.

    Raises:
        ArgumentError: `std` is not a number from 1e-30 to 1e30.
    """

    name: ClassVar[str] = "normal"
    kind: ClassVar[int] = 1
    std: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", _positive("Normal.std", self.std))

    @property
    def param(self) -> float:
        """What the kernel multiplies its integer by."""
        return float(np.float32(self.std / _LANE_STD))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `initializer_from_dict` reads it back."""
        return {"name": self.name, "std": self.std}


@dataclass(frozen=True)
class Zeros:
    """All zeros."""

    name: ClassVar[str] = "zeros"
    kind: ClassVar[int] = 2

    @property
    def param(self) -> float:
        """Unused."""
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `initializer_from_dict` reads it back."""
        return {"name": self.name}


Initializer: TypeAlias = Uniform | Normal | Zeros

_FIELDS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "uniform": (Uniform, ("scale",)),
    "normal": (Normal, ("std",)),
    "zeros": (Zeros, ()),
}


def initializer_from_dict(data: object) -> Initializer:
    """The initializer that `to_dict` described.

    Raises:
        ArgumentError: not a dict, an unknown name, a missing or unknown field, or a bad value.
    """
    if not isinstance(data, dict):
        raise ArgumentError(f"init: expected a dict, got {type(data).__name__}")
    name = data.get("name")
    if not isinstance(name, str) or name not in _FIELDS:
        raise ArgumentError(f"init: expected a name of {', '.join(_FIELDS)}, got {name!r}")
    kind, fields = _FIELDS[name]
    if set(data) != {"name", *fields}:
        found = sorted(str(key) for key in data)
        raise ArgumentError(f"init {name!r}: expected fields {['name', *fields]}, got {found}")
    initializer: Initializer = kind(**{field: data[field] for field in fields})
    return initializer
