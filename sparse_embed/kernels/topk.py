"""Exact search: the score of every row against every query, and the best k of them.

    dot         s = <q, w>
    cosine      s = <q, w> / (|q| |w|), and 0 if either is a zero vector
    euclidean   s = |q - w|, the true distance: smaller is better

Shapes   block (N, D), queries (Q, D), scores (Q, N) f4 · candidates (N,) i8: whose rows they are
         best_indices (Q, k) i8 (-1: none yet), best_scores (Q, k) f4, best first
Order    over columns: 16 lanes and a tree (`reduce`)
Ties     the smaller index; NaN is worse than any number
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk, row_pointer
from sparse_embed.kernels._jit import DIGEST, device_function, team_kernel
from sparse_embed.kernels.reduce import dot, squared_distance

COSINE, DOT, EUCLIDEAN = 0, 1, 2  # `metric`

_CHUNK = 64
_ZERO = np.float32(0)


@functools.cache
def scores_cpu(dim: int):
    digest = DIGEST

    @team_kernel
    def scores(block, queries, metric, counter, query_norms, out):
        _ = digest
        num_rows, num_queries = block.shape[0], queries.shape[0]
        for q in range(num_queries):  # by each thread: the same numbers
            query = row_pointer(queries, q)
            query_norms[q] = np.float32(math.sqrt(dot(query, query, dim)))
        while True:
            begin = next_chunk(counter, 0) * _CHUNK
            if begin >= num_rows:
                break
            end = min(num_rows, begin + _CHUNK)
            for q in range(num_queries):
                query = row_pointer(queries, q)
                for i in range(begin, end):
                    row = row_pointer(block, i)
                    if metric == EUCLIDEAN:
                        distance = squared_distance(query, row, dim)
                        out[q, i] = np.float32(math.sqrt(distance))
                    else:
                        out[q, i] = dot(query, row, dim)
            if metric == COSINE:
                for i in range(begin, end):
                    row = row_pointer(block, i)
                    norm = np.float32(math.sqrt(dot(row, row, dim)))
                    for q in range(num_queries):
                        both = norm * query_norms[q]
                        out[q, i] = out[q, i] / both if both != _ZERO else _ZERO

    return scores


@device_function
def is_better(score, index, other_score, other_index, largest):
    """Whether a candidate stands before another; an absent one (-1) stands behind all."""
    if other_index < 0:
        return True
    if score == other_score or (math.isnan(score) and math.isnan(other_score)):
        return index < other_index
    if math.isnan(score) or math.isnan(other_score):
        return math.isnan(other_score)
    return score > other_score if largest else score < other_score


@functools.cache
def merge_top_k_cpu():
    digest = DIGEST

    @team_kernel
    def merge_top_k(scores, candidates, largest, counter, best_indices, best_scores):
        """Take the candidates into the best lists, in place."""
        _ = digest
        k = best_indices.shape[1]
        while True:
            q = next_chunk(counter, 0)
            if q >= scores.shape[0]:
                break
            for i in range(scores.shape[1]):
                score, index = scores[q, i], candidates[i]
                place = k  # the last k - place entries have moved down, the first of them out
                while place > 0 and is_better(
                    score, index, best_scores[q, place - 1], best_indices[q, place - 1], largest
                ):
                    place -= 1
                    if place + 1 < k:
                        best_scores[q, place + 1] = best_scores[q, place]
                        best_indices[q, place + 1] = best_indices[q, place]
                if place < k:
                    best_scores[q, place] = score
                    best_indices[q, place] = index

    return merge_top_k
