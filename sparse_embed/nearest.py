"""Exact nearest rows: all candidates, block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparse_embed import ops
from sparse_embed._typing import FloatArray, IndexArray

_SCORES = 1 << 22  # scores in memory at a time
_LARGEST_BLOCK = 1 << 16


def search(
    queries: FloatArray,
    k: int,
    metric: str,
    rows: IndexArray | range,
    weights_of: Callable[[IndexArray], FloatArray],
) -> tuple[IndexArray, FloatArray]:
    """The best min(k, n) of `rows` (ascending) for each query: (Q, k) indices and scores."""
    num_queries = len(queries)
    found = min(k, len(rows))
    best = np.full((num_queries, found), -1, np.int64)
    scores = np.zeros((num_queries, found), np.float32)
    block = min(max(_SCORES // max(1, num_queries), 1024), _LARGEST_BLOCK)
    for begin in range(0, len(rows), block):
        part = np.asarray(rows[begin : begin + block], np.int64)
        ops.merge_top_k(ops.scores(weights_of(part), queries, metric), part, metric, best, scores)
    return best, scores
