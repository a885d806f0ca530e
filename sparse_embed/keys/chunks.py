"""What the hash kernels eat: chunks of strings as bytes at an address, or of ids as uint64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError

Bools = npt.NDArray[np.bool_]
EMPTY_LENGTHS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Strings:
    """Keys as bytes.  Key i is `lengths[i]` bytes at `base + starts[i]`; when `lengths` is empty it
    runs from `base + starts[i]` to `base + starts[i + 1]` (Arrow's layout).

    Attributes:
        base: an address, 0 when `starts` are addresses themselves.
        starts: (n,) int64, or (n + 1,) int32 or int64.
        lengths: (n,) int64 or (0,).
        keep: whatever owns the memory; alive as long as this chunk is.
        missing: (n,) bool where the key is missing (its bytes are not read), or None.
    """

    base: int
    starts: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    keep: object
    missing: Bools | None = None

    @property
    def spans(self) -> bool:
        return len(self.starts) == len(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths) if self.spans else len(self.starts) - 1


@dataclass(frozen=True, slots=True)
class Ids:
    """Integer keys as 64-bit patterns: values (n,) uint64, two's complement where `signed`."""

    values: npt.NDArray[np.uint64]
    signed: bool
    missing: Bools | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Coded:
    """Dictionary-encoded keys: key i is key `codes[i]` of `distinct`."""

    distinct: Strings | Ids
    codes: npt.NDArray[np.int64]
    missing: Bools | None = None

    def __len__(self) -> int:
        return len(self.codes)


Chunk = Strings | Ids | Coded


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """Keys of one kind: how many, in what shape, and the chunks that make them up in order.

    A chunk may live in memory that the next one reuses: finish with it before asking for more.
    """

    shape: tuple[int, ...]
    chunks: Iterator[Chunk]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def is_missing(value: object) -> bool:
    """None, NaN, NaT and pandas' NA, without importing pandas."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    return type(value).__name__ in ("NAType", "NaTType")


def first_true(mask: Bools) -> int:
    return int(np.argmax(mask))


def no_key(name: str, position: int, value: object, wanted: str) -> ArgumentError:
    """The error for one element that is no key of the wanted kind."""
    if is_missing(value):
        return ArgumentError(
            f"{name}[{position}] is missing ({value!r}); this call takes no missing keys"
        )
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return ArgumentError(
        f"{name}[{position}]: expected {wanted}, got {type(value).__name__} {text}"
    )
