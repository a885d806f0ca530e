"""Held-out splits of interactions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed.errors import ArgumentError
from sparse_embed.recommend.sampling import as_interactions

__all__ = ["leave_one_out", "split"]


def leave_one_out(
    user_items: Any, seed: int = 0, min_interactions: int = 5
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Hold out one random item of each user who took at least `min_interactions`.

    Args:
        user_items: (users, items) SciPy sparse.
        seed: same seed, same split.
        min_interactions: at least 2, so that training keeps something of the user.

    Returns:
        train and test, CSR of the same shape.

    Raises:
        ArgumentError: a bad matrix or seed; `min_interactions` below 2; no user took that many.
    """
    matrix = as_interactions(user_items)
    if min_interactions < 2:
        raise ArgumentError(f"min_interactions: expected at least 2, got {min_interactions}")
    counts = np.diff(matrix.indptr)
    users = np.flatnonzero(counts >= min_interactions)
    if len(users) == 0:
        raise ArgumentError(
            f"user_items: no user took {min_interactions} items or more (the largest number is"
            f" {counts.max(initial=0)}); lower min_interactions"
        )
    draw = _generator(seed).random(len(users))
    chosen = matrix.indptr[users] + (draw * counts[users]).astype(np.int64)
    held_out = np.zeros(matrix.nnz, bool)
    held_out[chosen] = True
    return _partition(matrix, held_out)


def split(
    user_items: Any, test_fraction: float = 0.2, seed: int = 0
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Hold out each interaction with probability `test_fraction`.

    Returns:
        train and test, CSR of the same shape.

    Raises:
        ArgumentError: a bad matrix or seed; `test_fraction` not strictly between 0 and 1.
    """
    matrix = as_interactions(user_items)
    if not 0 < test_fraction < 1:
        raise ArgumentError(f"test_fraction: expected 0 < x < 1, got {test_fraction}")
    return _partition(matrix, _generator(seed).random(matrix.nnz) < test_fraction)


def _partition(
    matrix: scipy.sparse.csr_array, held_out: npt.NDArray[np.bool_]
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """The entries outside and inside the mask, each as a CSR of the same shape."""

    def part(mask: npt.NDArray[np.bool_]) -> scipy.sparse.csr_array:
        kept = np.concatenate([[0], np.cumsum(mask)])
        arrays = (matrix.data[mask], matrix.indices[mask], kept[matrix.indptr])
        return scipy.sparse.csr_array(arrays, shape=matrix.shape)

    return part(~held_out), part(held_out)


def _generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ArgumentError(f"seed: expected an integer >= 0, got {seed!r}")
    return np.random.default_rng(int(seed))
