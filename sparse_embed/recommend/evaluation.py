"""How good are the recommendations: held-out splits, ranking metrics, the popularity baseline.

Every metric ranks the full catalogue (no sampled negatives) and leaves out what the user took in
training.  With R = a user's held-out items and hit_r = 1 where place r (from 1) holds one of them:

    hr@k      1 if any of the first k places hits, else 0
    recall@k  hits among the first k places / |R|
    ndcg@k    sum_r<=k hit_r / log2(r + 1), divided by its largest possible value
    map@k     sum_r<=k hit_r * precision@r, divided by min(k, |R|)
    mrr@k     1 / place of the first hit within k, or 0

averaged over the users with held-out items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed.errors import ArgumentError
from sparse_embed.recommend.sampling import as_interactions

__all__ = ["Popularity", "Recommender", "evaluate", "leave_one_out", "split"]

_USERS = 1024  # users ranked at a time


class Recommender(Protocol):
    """What `evaluate` needs: a model with implicit's `recommend`."""

    def recommend(
        self, user_ids: Any, user_items: Any, k: int = 10, *, filter_already_liked: bool = True
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The best k items of each user: ids (Q, k) int64 padded with -1, scores (Q, k)."""
        ...


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


class Popularity:
    """The baseline: everyone is recommended what most others took (ties: smaller item id)."""

    def __init__(self, user_items: Any) -> None:
        matrix = as_interactions(user_items)
        items, counts = np.unique(matrix.indices, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        self._items = items[order].astype(np.int64)
        self._counts = counts[order].astype(np.float32)

    def recommend(
        self, user_ids: Any, user_items: Any, k: int = 10, *, filter_already_liked: bool = True
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """As `BPR.recommend`; a score is the number of users who took the item."""
        number = len(np.atleast_1d(np.asarray(user_ids)))
        ids = np.full((number, k), -1, np.int64)
        scores = np.full((number, k), -np.inf, np.float32)
        matrix = as_interactions(user_items) if filter_already_liked else None
        for q in range(number):
            seen = 0 if matrix is None else int(matrix.indptr[q + 1] - matrix.indptr[q])
            best = slice(0, k + seen)  # at most `seen` of these fall away
            items, counts = self._items[best], self._counts[best]
            if matrix is not None:
                taken = matrix.indices[matrix.indptr[q] : matrix.indptr[q + 1]]
                keep = ~np.isin(items, taken)
                items, counts = items[keep], counts[keep]
            found = min(k, len(items))
            ids[q, :found] = items[:found]
            scores[q, :found] = counts[:found]
        return ids, scores


def evaluate(
    model: Recommender,
    train: Any,
    test: Any,
    k: int | Sequence[int] = (10, 20),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Rank the full catalogue for every user with held-out items, and average the metrics.

    Args:
        model: anything with `recommend`, such as `BPR` or `Popularity`.
        train: (users, items) SciPy sparse; what a user took here is not recommended again.
        test: the same shape; what counts as a hit.
        k: lengths of the list.
        progress: called with (users done, users to do).

    Returns:
        {"hr@10": ..., "recall@10": ..., "ndcg@10": ..., "map@10": ..., "mrr@10": ...} for each k,
        and "users": how many were averaged.

    Raises:
        ArgumentError: matrices of different shapes, a k below 1, or nothing held out.

    Notes:
        Users are ranked in blocks of 1024; no users x items matrix is built.
    """
    lengths = [k] if hasattr(k, "__index__") else list(k)
    if not all(hasattr(length, "__index__") for length in lengths):
        raise ArgumentError(f"k: expected integers, got {k!r}")
    ks = sorted({int(length) for length in lengths})
    if not ks or ks[0] < 1:
        raise ArgumentError(f"k: expected lengths of at least 1, got {k!r}")
    train_matrix = as_interactions(train, "train")
    test_matrix = as_interactions(test, "test")
    if train_matrix.shape != test_matrix.shape:
        raise ArgumentError(
            f"test: expected the shape of train, {train_matrix.shape}, got {test_matrix.shape}"
        )
    users = np.flatnonzero(np.diff(test_matrix.indptr))
    if len(users) == 0:
        raise ArgumentError("test: expected held-out interactions, got none")
    totals: dict[str, float] = {}
    for start in range(0, len(users), _USERS):
        block = users[start : start + _USERS]
        ids, _ = model.recommend(block, train_matrix[block], k=min(ks[-1], train_matrix.shape[1]))
        held_out = test_matrix[block]
        hits = _hits(ids, held_out)
        relevant = np.diff(held_out.indptr)
        for name, values in _metrics(hits, relevant, ks).items():
            totals[name] = totals.get(name, 0.0) + float(values.sum())
        if progress is not None:
            progress(min(start + _USERS, len(users)), len(users))
    metrics = {name: total / len(users) for name, total in totals.items()}
    return {**metrics, "users": float(len(users))}


def _hits(ids: npt.NDArray[np.int64], held_out: scipy.sparse.csr_array) -> npt.NDArray[np.bool_]:
    """(Q, k): is this place one of the user's held-out items?"""
    width = held_out.shape[1]
    rows = np.repeat(np.arange(held_out.shape[0], dtype=np.int64), np.diff(held_out.indptr))
    wanted = rows * width + held_out.indices  # sorted: rows ascend, columns within a row too
    given = np.arange(len(ids), dtype=np.int64)[:, None] * width + ids
    place = np.minimum(np.searchsorted(wanted, given), len(wanted) - 1)
    return np.asarray((wanted[place] == given) & (ids >= 0))


def _metrics(
    hits: npt.NDArray[np.bool_], relevant: npt.NDArray[Any], ks: Sequence[int]
) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric of each user."""
    places = np.arange(1, hits.shape[1] + 1)
    discounts = 1.0 / np.log2(places + 1)
    ideal = np.cumsum(discounts)
    precision = np.cumsum(hits, axis=1) / places
    metrics: dict[str, npt.NDArray[np.float64]] = {}
    for k in ks:
        h = hits[:, :k]
        best = np.minimum(relevant, k)
        first = np.where(h.any(axis=1), h.argmax(axis=1) + 1.0, np.inf)
        metrics[f"hr@{k}"] = np.asarray(h.any(axis=1), np.float64)
        metrics[f"recall@{k}"] = h.sum(axis=1) / relevant
        metrics[f"ndcg@{k}"] = (h * discounts[:k]).sum(axis=1) / ideal[best - 1]
        metrics[f"map@{k}"] = (h * precision[:, :k]).sum(axis=1) / best
        metrics[f"mrr@{k}"] = np.asarray(1.0 / first)
    return metrics


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
