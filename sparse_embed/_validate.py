"""The checks of arguments: every public call passes through here once, and kernels trust.

What comes out is native, aligned and C-contiguous, ready for the kernels.  An array that is so
already is not copied.  Errors name the argument, what was found and what was wanted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparse_embed._typing import METRICS, MODES, NO_PADDING, AnyArray, FloatArray, IndexArray
from sparse_embed.errors import ArgumentError, IndexRangeError
from sparse_embed.kernels._jit import guard_fork, new_counter
from sparse_embed.kernels.bounds import count_outside_cpu
from sparse_embed.kernels.plan import cut_bags_if_sorted

_INT64 = np.dtype(np.int64)
_SMALL = 1 << 15  # below: NumPy is faster than a parallel kernel


class _Alias:
    """A read-only array under a writable flag, so that kernels are not compiled a second time.

    No kernel writes to an input.  Keeps the array alive: NumPy makes this object the base.
    """

    def __init__(self, array: AnyArray) -> None:
        self._array = array
        self.__array_interface__ = dict(array.__array_interface__)
        self.__array_interface__["data"] = (array.__array_interface__["data"][0], False)


def _plain(array: AnyArray, dtype: type[np.generic]) -> AnyArray:
    """Native byte order, aligned, C-contiguous, not read-only, of ndarray's own class."""
    result = np.require(np.asarray(array).astype(dtype, copy=False), None, ["C", "A"])
    if not result.flags.writeable:
        if result.size == 0:
            return np.empty(result.shape, dtype)
        result = np.asarray(_Alias(result))
    return result


def is_plain_int64(array: object) -> bool:
    """Ready for kernels as it is: the common case, told by three looks at the array."""
    return type(array) is np.ndarray and array.dtype is _INT64 and array.flags.carray


def as_padding_idx(padding_idx: object) -> int:
    """`padding_idx` as int64: any integer, or NO_PADDING for None.

    Integers from 2^63 to 2^64 - 1 wrap, as uint64 indices do; beyond 64 bits no index can match.

    Raises:
        ArgumentError: not an integer.
    """
    if padding_idx is None:
        return NO_PADDING
    number = as_integer("padding_idx", padding_idx)
    if not -(2**63) <= number < 2**64:
        return NO_PADDING
    return number if number < 2**63 else number - 2**64


def as_integer(name: str, value: object) -> int:
    """A Python int from anything integral but a bool.

    Raises:
        ArgumentError: anything else.
    """
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise ArgumentError(f"{name}: expected an integer, got {value!r}")
    return int(value.__index__())


def _as_integers(name: str, values: object) -> AnyArray:
    """An array of an integer dtype, or an error; an empty list counts as integers."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:  # ragged lists
        raise ArgumentError(f"{name}: expected an array of integers ({error})") from None
    if array.size == 0 and not isinstance(values, np.ndarray) and not hasattr(values, "dtype"):
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        hint = "; wider integers are keys: hash them first" if array.dtype == object else ""
        raise ArgumentError(f"{name}: expected an integer dtype, got {array.dtype}{hint}")
    return array


def as_indices(
    indices: object,
    num_embeddings: int,
    padding_idx: object = None,
    *,
    name: str = "indices",
    check: bool = True,
) -> IndexArray:
    """Row numbers as int64, checked against the table.

    Args:
        indices: any integer dtype and shape.
        num_embeddings: rows of the table, E.
        padding_idx: the one value that may lie outside, or None.
        check: False leaves it to the caller to call `check_range` before a row is read.

    Returns:
        The same shape, int64.  With a `padding_idx` of 2^63 or more, its positions hold
        `as_padding_idx(padding_idx)`.

    Raises:
        ArgumentError: not an integer dtype.
        IndexRangeError: an index that is neither 0 <= index < E nor `padding_idx`.
    """
    if padding_idx is None and is_plain_int64(indices):
        plain: IndexArray = indices  # type: ignore[assignment]
        if check:
            check_range(plain, num_embeddings, name=name)
        return plain
    array = _as_integers(name, indices)
    is_uint64 = array.dtype == np.uint64
    matched = None if padding_idx is None else as_integer("padding_idx", padding_idx)
    lowest, beyond = (0, 2**64) if is_uint64 else (-(2**63), 2**63)
    if matched is not None and not lowest <= matched < beyond:
        matched = None  # no index of this dtype can be equal to it
    if matched is not None:
        matched = as_padding_idx(matched)
    result = _plain(array, np.uint64).view(np.int64) if is_uint64 else _plain(array, np.int64)
    flat = result.reshape(-1)
    if check and _count_outside(flat, num_embeddings, matched):
        _raise_range(array.reshape(-1), num_embeddings, matched, flat, name)
    return result


def check_range(indices: IndexArray, num_embeddings: int, *, name: str = "indices") -> None:
    """Raises IndexRangeError when an index is not 0 <= index < num_embeddings."""
    flat = indices.reshape(-1)
    if _count_outside(flat, num_embeddings, None):
        _raise_range(flat, num_embeddings, None, flat, name)


def _outside(flat: IndexArray, num_embeddings: int, matched: int | None) -> AnyArray:
    """Where the indices are out of range: as unsigned numbers, negative ones are the largest."""
    outside: AnyArray = flat.view(np.uint64) >= np.uint64(num_embeddings)
    if matched is not None:
        outside &= flat != matched
    return outside


def _count_outside(flat: IndexArray, num_embeddings: int, matched: int | None) -> int:
    if len(flat) <= _SMALL:
        return int(np.count_nonzero(_outside(flat, num_embeddings, matched)))
    guard_fork()
    counts = np.empty(64, np.int64)
    # 0 is never out of range, so matching it is matching nothing.
    padding = 0 if matched is None else matched
    count_outside_cpu()(flat, np.uint64(num_embeddings), padding, new_counter(), counts)
    return int(counts.sum())


def _raise_range(
    array: AnyArray, num_embeddings: int, matched: int | None, flat: IndexArray, name: str
) -> None:
    found = array[_outside(flat, num_embeddings, matched)]
    smallest, largest = int(found.min()), int(found.max())
    span = f"{smallest}" if smallest == largest else f"from {smallest} to {largest}"
    noun = "index is" if found.size == 1 else "indices are"
    raise IndexRangeError(
        f"{name}: {found.size} of {flat.size} {noun} out of range ({span}); expected"
        f" 0 <= index < num_embeddings = {num_embeddings}; nothing was changed"
    )


def as_bags(
    offsets: object, num_positions: int, size: int, *, include_last_offset: bool = True
) -> tuple[IndexArray, IndexArray | None]:
    """As `as_offsets`, and bags cut into chunks of that size in passing (`kernels/plan`), or None
    where the offsets had to be converted first."""
    if include_last_offset and is_plain_int64(offsets):
        plain: IndexArray = offsets  # type: ignore[assignment]
        if plain.ndim == 1 and len(plain) and plain[0] == 0 and plain[-1] == num_positions:
            guard_fork()
            bounds = cut_bags_if_sorted(plain, size)
            if bounds is not None:
                return plain, bounds
    return as_offsets(offsets, num_positions, include_last_offset=include_last_offset), None


def as_offsets(
    offsets: object, num_positions: int, *, include_last_offset: bool = True
) -> IndexArray:
    """Bag starts as (B+1,) int64.

    Args:
        offsets: (B+1,) integers from 0 to L, non-decreasing; with `include_last_offset=False`
            torch's (B,), to which L is added.
        num_positions: L, the number of indices.

    Raises:
        ArgumentError: wrong dtype, shape, first or last entry, or decreasing.
    """
    array = _as_integers("offsets", offsets)
    if array.ndim != 1:
        raise ArgumentError(f"offsets: expected shape (B+1,), got {array.shape}")
    if array.dtype == np.uint64 and array.size and int(array.max()) > num_positions:
        raise ArgumentError(
            f"offsets: expected entries up to len(indices) = {num_positions}, got {array.max()}"
        )
    result = _plain(array, np.int64)
    if not include_last_offset:
        result = np.append(result, np.int64(num_positions))
    if len(result) == 0:
        raise ArgumentError("offsets: expected (B+1,) entries, at least one, got none")
    if result[0] != 0:
        raise ArgumentError(f"offsets: expected offsets[0] = 0, got {result[0]}")
    if result[-1] != num_positions:
        raise ArgumentError(
            "offsets: expected (B+1,) int64 non-decreasing with offsets[-1] == len(indices) ="
            f" {num_positions}, got offsets[-1] = {result[-1]}"
            + (" (for torch's (B,) offsets say include_last_offset=False)" * include_last_offset)
        )
    falls = result[1:] < result[:-1]
    if falls.any():
        b = int(np.argmax(falls))
        raise ArgumentError(
            f"offsets: expected non-decreasing, got offsets[{b}] = {result[b]} before"
            f" offsets[{b + 1}] = {result[b + 1]}"
        )
    return result


def as_grad(
    grad: object, shape: tuple[int, ...], *, check_finite: bool = False, name: str = "grad"
) -> FloatArray:
    """A float32 array of exactly this shape.

    float64 and other dtypes are refused rather than rounded: a float64 gradient is almost always
    a forgotten `dtype` upstream, and costs a copy of the batch at every step.

    Raises:
        ArgumentError: another dtype or shape; with `check_finite`, NaN or infinity (names the
            first place).
    """
    array = np.asarray(grad)
    if array.dtype.newbyteorder("=") != np.float32:
        raise ArgumentError(f"{name}: expected dtype float32, got {array.dtype}")
    if array.shape != shape:
        raise ArgumentError(f"{name}: expected shape {shape}, got {array.shape}")
    result = _plain(array, np.float32)
    if check_finite and not bool(np.isfinite(result).all()):
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise ArgumentError(f"{name}: expected finite numbers, got {result[place]} at {place}")
    return result


def as_per_sample_weights(
    per_sample_weights: object, shape: tuple[int, ...], mode: str
) -> FloatArray | None:
    """Weights of the positions: float32 of the shape of the indices, flattened; or None.

    Raises:
        ArgumentError: wrong dtype or shape, or mode is "max".
    """
    if per_sample_weights is None:
        return None
    if mode == "max":
        raise ArgumentError('per_sample_weights: not defined for mode="max"')
    return as_grad(per_sample_weights, shape, name="per_sample_weights").reshape(-1)


def as_mode(mode: object) -> str:
    """One of "sum", "mean", "sqrtn", "max".

    Raises:
        ArgumentError: anything else.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise ArgumentError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    return mode


def as_metric(metric: object) -> str:
    """One of "cosine", "dot", "euclidean".

    Raises:
        ArgumentError: anything else.
    """
    if not isinstance(metric, str) or metric not in METRICS:
        raise ArgumentError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    return metric


def as_matrix(values: object, name: str, num_rows: int | None, num_columns: int) -> FloatArray:
    """A float32 (num_rows, num_columns) matrix; None: any number of rows.

    Raises:
        ArgumentError: wrong dtype or shape.
    """
    array = np.asarray(values)
    if array.ndim != 2:
        wanted = "N" if num_rows is None else str(num_rows)
        raise ArgumentError(f"{name}: expected shape ({wanted}, {num_columns}), got {array.shape}")
    rows = int(array.shape[0]) if num_rows is None else num_rows
    return as_grad(array, (rows, num_columns), name=name)


def as_seed(seed: object) -> int:
    """An integer from 0 to 2^64 - 1.

    Raises:
        ArgumentError: anything else.
    """
    number = as_integer("seed", seed)
    if not 0 <= number < 2**64:
        raise ArgumentError(f"seed: expected 0 <= seed < 2^64, got {number}")
    return number


def as_probability(name: str, p: object) -> float:
    """A number 0 <= p < 1.

    Raises:
        ArgumentError: anything else.
    """
    if isinstance(p, bool) or not isinstance(p, int | float | np.integer | np.floating):
        raise ArgumentError(f"{name}: expected a number, got {p!r}")
    number: Any = float(p)
    if math.isnan(number) or not 0 <= number < 1:
        raise ArgumentError(f"{name}: expected 0 <= {name} < 1, got {number!r}")
    return float(number)
