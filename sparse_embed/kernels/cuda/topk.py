"""Exact search on the device: formulas, shapes, order and ties as in `kernels/topk.py`.

Shapes   block (N, D), queries (Q, D), scores (Q, N) f4 · norms (N,) or (Q,) f4
         best_indices (Q, k) i8 (-1: none yet), best_scores (Q, k) f4 and their next versions
How      scores: a block computes a square of queries and rows from 16 columns of each at a time in
         shared memory; a thread owns one pair and its 16 sums, so that no order depends on it.
         best: a block a query, k rounds; each finds the best candidate behind the last one found.
"""

from __future__ import annotations

import functools
import math

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST
from sparse_embed.kernels.cuda._rows import group_mask, row_shape
from sparse_embed.kernels.cuda._shim import SIMULATED, THREADS, cuda, cuda_kernel
from sparse_embed.kernels.cuda.reduce import group_dot, tree
from sparse_embed.kernels.topk import COSINE, EUCLIDEAN, is_better

SIDE = 2 if SIMULATED else 16
"""Queries and rows of a square; SIDE * SIDE threads."""
SQUARE = SIDE * SIDE
_STAGED = SIDE * 16
_ZERO = np.float32(0)


@functools.cache
def norms_cuda(dim: int):
    """norms[i] = |rows[i]|"""
    shape = row_shape(dim)
    lanes = shape.lanes
    num_parts = shape.groups * 16
    digest = DIGEST

    @cuda_kernel
    def norms(rows, out):
        _ = digest
        parts = cuda.shared.array(num_parts, numba.float32)
        work = cuda.local.array(16, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        at = cuda.threadIdx.x // lanes * 16
        for i in range(cuda.grid(1) // lanes, rows.shape[0], cuda.gridsize(1) // lanes):
            squares = group_dot(rows, i, rows, i, parts, at, work, lane, lanes, mask, dim)
            if lane == 0:
                out[i] = np.float32(math.sqrt(squares))

    return norms


@functools.cache
def scores_cuda(dim: int):
    """scores[q, i]; the grid's blocks walk over the squares."""
    digest = DIGEST

    @cuda_kernel
    def scores(block, queries, metric, row_norms, query_norms, out):
        _ = digest
        rows = cuda.shared.array(_STAGED, numba.float32)
        asked = cuda.shared.array(_STAGED, numba.float32)
        sums = cuda.local.array(16, numba.float32)
        thread = cuda.threadIdx.x
        across = (block.shape[0] + SIDE - 1) // SIDE
        squares = across * ((queries.shape[0] + SIDE - 1) // SIDE)
        for square in range(cuda.blockIdx.x, squares, cuda.gridDim.x):
            first_row, first_query = square % across * SIDE, square // across * SIDE
            i, q = thread % SIDE, thread // SIDE
            for j in range(16):
                sums[j] = _ZERO
            for first in range(0, dim, 16):
                cuda.syncthreads()
                for place in range(thread, _STAGED, SQUARE):
                    column, at = first + place % 16, place // 16
                    rows[place] = _ZERO
                    asked[place] = _ZERO
                    if column < dim and first_row + at < block.shape[0]:
                        rows[place] = block[first_row + at, column]
                    if column < dim and first_query + at < queries.shape[0]:
                        asked[place] = queries[first_query + at, column]
                cuda.syncthreads()
                for j in range(16):
                    if first + j < dim:
                        a, b = asked[q * 16 + j], rows[i * 16 + j]
                        if metric == EUCLIDEAN:
                            a = a - b
                            b = a
                        sums[j] = sums[j] + a * b
            i, q = i + first_row, q + first_query
            if i < block.shape[0] and q < queries.shape[0]:
                score = tree(sums, 0, sums)
                if metric == EUCLIDEAN:
                    score = np.float32(math.sqrt(score))
                elif metric == COSINE:
                    both = row_norms[i] * query_norms[q]
                    score = score / both if both != _ZERO else _ZERO
                out[q, i] = score

    return scores


@functools.cache
def merge_top_k_cuda():
    """The best k of the old list and the candidates, into a new list."""
    digest = DIGEST

    @cuda_kernel
    def merge_top_k(
        scores, candidates, largest, best_indices, best_scores, next_indices, next_scores
    ):
        _ = digest
        found_scores = cuda.shared.array(THREADS, numba.float32)
        found_indices = cuda.shared.array(THREADS, numba.int64)
        thread = cuda.threadIdx.x
        num, k = scores.shape[1], best_indices.shape[1]
        for q in range(cuda.blockIdx.x, scores.shape[0], cuda.gridDim.x):
            last_index, last_score = np.int64(-1), _ZERO
            for place in range(k):
                index, score = np.int64(-1), _ZERO
                for i in range(thread, num + k, THREADS):
                    if i < num:
                        other, value = candidates[i], scores[q, i]
                    else:
                        other, value = best_indices[q, i - num], best_scores[q, i - num]
                    behind = place == 0 or is_better(last_score, last_index, value, other, largest)
                    if other >= 0 and behind and other != last_index:  # noqa: SIM102
                        if is_better(value, other, score, index, largest):
                            index, score = other, value
                found_indices[thread] = index
                found_scores[thread] = score
                cuda.syncthreads()
                step = THREADS // 2
                while step > 0:
                    if thread < step:
                        index, score = found_indices[thread + step], found_scores[thread + step]
                        if index >= 0 and is_better(
                            score, index, found_scores[thread], found_indices[thread], largest
                        ):
                            found_indices[thread] = index
                            found_scores[thread] = score
                    cuda.syncthreads()
                    step //= 2
                last_index, last_score = found_indices[0], found_scores[0]
                cuda.syncthreads()
                if thread == 0:
                    next_indices[q, place] = last_index
                    next_scores[q, place] = last_score if last_index >= 0 else _ZERO

    return merge_top_k
