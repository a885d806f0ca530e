"""The baseline that a recommender has to beat."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_embed.recommend.ranking import as_ids
from sparse_embed.recommend.sampling import as_interactions

__all__ = ["Popularity"]


class Popularity:
    """The baseline: everyone is recommended what most others took (ties: smaller item id)."""

    def __init__(self, user_items: Any) -> None:
        matrix = as_interactions(user_items)
        items, counts = np.unique(matrix.indices, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        self._items = items[order].astype(np.int64)
        self._counts = counts[order].astype(np.float32)
        self._shape = matrix.shape
        self._count_of = np.zeros(matrix.shape[1], np.float32)
        self._count_of[items] = counts

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

    def score(self, user_ids: npt.ArrayLike, item_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """How many took each item: (n,) float32, the same for every user."""
        items, _ = as_ids("item_ids", item_ids, self._shape[1])
        return self._count_of[items]
