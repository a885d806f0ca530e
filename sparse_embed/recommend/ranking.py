"""The best rows of a table for many queries, block by block, and what goes in and out of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.errors import ArgumentError, IndexRangeError
from sparse_embed.kernels._jit import guard_fork, new_counter
from sparse_embed.kernels.ranking import rank_block_cpu

_BLOCK = 1 << 16  # candidate rows looked up at a time: 17 MB at D = 64

Ranked = tuple[IndexArray, FloatArray]
"""ids (Q, k), best first, -1 at the end where fewer exist; scores (Q, k), -inf there."""


def rank(
    rows_of: Callable[[IndexArray], FloatArray],
    candidates: IndexArray,
    queries: FloatArray,
    k: int,
    seen: scipy.sparse.csr_array | None = None,
) -> Ranked:
    """The k candidates of largest dot product with each query.

    Args:
        rows_of: candidates' numbers (n,) to their rows (n, D) float32, C-contiguous.
        candidates: (C,) numbers, ascending.
        queries: (Q, D) float32, C-contiguous.
        k: how many.
        seen: (Q, rows) CSR, sorted; a query's candidates in here are left out.
    """
    guard_fork()
    kernel = rank_block_cpu(queries.shape[1])
    best_ids = np.full((len(queries), k), -1, np.int64)
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    indptr = taken = np.empty(0, np.int64)
    if seen is not None:
        indptr, taken = seen.indptr.astype(np.int64), seen.indices.astype(np.int64)
    for start in range(0, len(candidates), _BLOCK):
        ids = candidates[start : start + _BLOCK]
        rows = rows_of(ids)
        kernel(queries, rows, ids, indptr, taken, best_ids, best_scores, new_counter())
    return best_ids, best_scores


def unit(vectors: FloatArray) -> FloatArray:
    """Each row divided by its length; a row of zeros stays."""
    norm = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    norm[norm == 0] = 1
    return np.ascontiguousarray(vectors / norm, dtype=np.float32)


def joined(parts: Sequence[Ranked], k: int, scalar: bool) -> Ranked:
    """The answers to blocks of queries as one; without the first axis if one query was given."""
    if not parts:
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    ids = np.concatenate([part[0] for part in parts])
    scores = np.concatenate([part[1] for part in parts])
    return (ids[0], scores[0]) if scalar else (ids, scores)


def as_ids(name: str, ids: npt.ArrayLike, rows: int) -> tuple[IndexArray, bool]:
    """(Q,) int64 within 0..rows-1, and whether one integer was given.

    Raises:
        ArgumentError: not integers, or more than one dimension.
        IndexRangeError: out of range.
    """
    array = np.asarray(ids)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.int64), False
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.ndim > 1:
        raise ArgumentError(f"{name}: expected shape (Q,) or one integer, got {array.shape}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= rows:
        raise IndexRangeError(f"{name}: expected 0 to {rows - 1}, got {low if low < 0 else high}")
    return np.atleast_1d(array).astype(np.int64), array.ndim == 0


def contains(sorted_rows: IndexArray, rows: IndexArray) -> npt.NDArray[Any]:
    """Which of `rows` are among `sorted_rows`, as a boolean mask."""
    if len(sorted_rows) == 0:
        return np.zeros(len(rows), bool)
    place = np.minimum(np.searchsorted(sorted_rows, rows), len(sorted_rows) - 1)
    return np.asarray(sorted_rows[place] == rows)
