"""How good are the recommendations: ranking metrics over the full catalogue or given negatives.

`evaluate` ranks every item and leaves out what the user took in training.  With R = a user's
held-out items and hit_r = 1 where place r (from 1) holds one of them:

    hr@k      1 if any of the first k places hits, else 0
    recall@k  hits among the first k places / |R|
    ndcg@k    sum_r<=k hit_r / log2(r + 1), divided by its largest possible value
    map@k     sum_r<=k hit_r * precision@r, divided by min(k, |R|)
    mrr@k     1 / place of the first hit within k, or 0

averaged over the users with held-out items.

    coverage@k  how many items stand in somebody's first k places, as a share of those in training
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed.errors import ArgumentError
from sparse_embed.recommend.sampling import as_interactions

__all__ = ["Recommender", "evaluate", "evaluate_sampled"]

_USERS = 1024  # users ranked at a time


class Recommender(Protocol):
    """What `evaluate` needs: a model with implicit's `recommend`."""

    def recommend(
        self, user_ids: Any, user_items: Any, k: int = 10, *, filter_already_liked: bool = True
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The best k items of each user: ids (Q, k) int64 padded with -1, scores (Q, k)."""
        ...


class Scorer(Protocol):
    """What `evaluate_sampled` needs: the scores of pairs."""

    def score(self, user_ids: Any, item_ids: Any) -> npt.NDArray[np.float32]:
        """(n,) float32; NaN for an item without a vector."""
        ...


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
        {"hr@10": ..., "recall@10": ..., "ndcg@10": ..., "map@10": ..., "mrr@10": ...,
        "coverage@10": ...} for each k, and "users": how many were averaged.

    Raises:
        ArgumentError: matrices of different shapes, a k below 1, or nothing held out.

    Notes:
        Users are ranked in blocks of 1024; no users x items matrix is built.
    """
    ks = as_lengths(k)
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
    shown = np.zeros((len(ks), train_matrix.shape[1]), bool)
    for start in range(0, len(users), _USERS):
        block = users[start : start + _USERS]
        ids, _ = model.recommend(block, train_matrix[block], k=min(ks[-1], train_matrix.shape[1]))
        held_out = test_matrix[block]
        hits = _hits(ids, held_out)
        relevant = np.diff(held_out.indptr)
        for name, values in _metrics(hits, relevant, ks).items():
            totals[name] = totals.get(name, 0.0) + float(values.sum())
        for place, length in enumerate(ks):
            first = ids[:, :length]
            shown[place, first[first >= 0]] = True
        if progress is not None:
            progress(min(start + _USERS, len(users)), len(users))
    metrics = {name: total / len(users) for name, total in totals.items()}
    catalogue = max(1, len(np.unique(train_matrix.indices)))
    for place, length in enumerate(ks):
        metrics[f"coverage@{length}"] = int(shown[place].sum()) / catalogue
    return {**metrics, "users": float(len(users))}


def evaluate_sampled(
    model: Scorer,
    positives: npt.ArrayLike,
    negatives: npt.ArrayLike,
    k: int | Sequence[int] = (10, 20),
    *,
    user_ids: npt.ArrayLike | None = None,
) -> dict[str, float]:
    """Rank one held-out item of each user among negatives that are given (He et al., NCF).

    Args:
        model: anything with `score`.
        positives: (Q,) item ids.
        negatives: (Q, N) item ids.
        k: lengths of the list.
        user_ids: (Q,); None: 0..Q-1.

    Returns:
        {"hr@10": ..., "ndcg@10": ..., "mrr@10": ...} for each k, and "users".  Equal scores count
        against the held-out item, and so does an item without a vector.

    Raises:
        ArgumentError: shapes that do not fit; a k below 1 or above N + 1.
    """
    ks = as_lengths(k)
    right, wrong = np.asarray(positives), np.asarray(negatives)
    if right.ndim != 1 or wrong.ndim != 2 or len(wrong) != len(right) or len(right) == 0:
        raise ArgumentError(
            f"negatives: expected (Q, N) beside positives (Q,), got {wrong.shape} and {right.shape}"
        )
    users = np.arange(len(right)) if user_ids is None else np.asarray(user_ids)
    if users.shape != right.shape:
        raise ArgumentError(f"user_ids: expected shape {right.shape}, got {users.shape}")
    if ks[-1] > wrong.shape[1] + 1:
        raise ArgumentError(f"k: expected at most {wrong.shape[1] + 1} (all given), got {ks[-1]}")
    places = np.empty(len(right), np.int64)
    for start in range(0, len(right), _USERS):
        block = slice(start, start + _USERS)
        items = np.concatenate([right[block, None], wrong[block]], axis=1)
        repeated = np.repeat(users[block], items.shape[1])
        scores = model.score(repeated, items.reshape(-1)).reshape(items.shape)
        scores = np.where(np.isnan(scores), -np.inf, scores)
        places[block] = 1 + (scores[:, 1:] >= scores[:, :1]).sum(axis=1)
    metrics: dict[str, float] = {}
    for length in ks:
        hit = places <= length
        metrics[f"hr@{length}"] = float(hit.mean())
        metrics[f"ndcg@{length}"] = float((hit / np.log2(places + 1)).mean())
        metrics[f"mrr@{length}"] = float((hit / places).mean())
    return {**metrics, "users": float(len(right))}


def as_lengths(k: int | Sequence[int]) -> list[int]:
    """Lengths of a list, ascending.

    Raises:
        ArgumentError: not integers, none, or one below 1.
    """
    lengths = [k] if hasattr(k, "__index__") else list(k)
    if not all(hasattr(length, "__index__") for length in lengths):
        raise ArgumentError(f"k: expected integers, got {k!r}")
    ks = sorted({int(length) for length in lengths})
    if not ks or ks[0] < 1:
        raise ArgumentError(f"k: expected lengths of at least 1, got {k!r}")
    return ks


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
