"""The best candidates of many queries, over one block of candidates at a time.

Scores are dot products in the order of the contract (`reduce`): the same bits as
`table.nearest(..., metric="dot")` gives.  Lists stay sorted by score, then by candidate number, and
grow over blocks, so a queries x candidates matrix never exists.
"""

from __future__ import annotations

import functools

from sparse_embed.kernels._intrinsics import next_chunk, row_pointer
from sparse_embed.kernels._jit import DIGEST, device_function, team_kernel
from sparse_embed.kernels.reduce import dot

QUERIES = 16  # a chunk of queries shares each tile
TILE = 256  # candidates: 64 KiB at D = 64, inside a core's own cache


@device_function
def contains(sorted_ids, low, high, wanted):
    """Is `wanted` among the sorted sorted_ids[low:high]?"""
    end = high
    while low < high:
        middle = (low + high) >> 1
        if sorted_ids[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low < end and sorted_ids[low] == wanted


@functools.cache
def rank_block_cpu(dim: int):
    """kernel(queries, candidates, ids, seen_indptr, seen, best_ids, best_scores, counter)

    queries      (Q, D) f4
    candidates   (N, D) f4
    ids          (N,) i8     their numbers, ascending, above those of earlier blocks
    seen_indptr  (Q+1,) i8   ranges in `seen`; length 0: nothing is left out
    seen         (S,) i8     numbers each query must not get; sorted within a query
    best_ids     (Q, k) i8   in and out: best first; -1 where the list is not full
    best_scores  (Q, k) f4   in and out: best first; -inf where the list is not full
    """
    digest = DIGEST

    @team_kernel
    def kernel(queries, candidates, ids, seen_indptr, seen, best_ids, best_scores, counter):
        _ = digest
        number = queries.shape[0]
        k = best_ids.shape[1]
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= (number + QUERIES - 1) // QUERIES:
                break
            for tile in range(0, candidates.shape[0], TILE):
                for q in range(chunk * QUERIES, min(number, (chunk + 1) * QUERIES)):
                    a = row_pointer(queries, q)
                    worst = best_scores[q, k - 1]
                    for n in range(tile, min(candidates.shape[0], tile + TILE)):
                        score = dot(a, row_pointer(candidates, n), dim)
                        # NaN fails this comparison and is never ranked
                        if not score > worst:
                            continue
                        if seen_indptr.shape[0] > 0 and contains(
                            seen, seen_indptr[q], seen_indptr[q + 1], ids[n]
                        ):
                            continue
                        place = k - 1
                        while place > 0 and score > best_scores[q, place - 1]:
                            best_scores[q, place] = best_scores[q, place - 1]
                            best_ids[q, place] = best_ids[q, place - 1]
                            place -= 1
                        best_scores[q, place] = score
                        best_ids[q, place] = ids[n]
                        worst = best_scores[q, k - 1]

    return kernel
