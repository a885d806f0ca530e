"""Gradient of the rows of a batch: for each unique row, the sum over its positions.

    g[u, d] = sum_i c[k] grad[bag(k), d]       k = positions[i],  i in [starts[u], starts[u+1])
    c[k]    = weights[k] * scale[bag(k)]       (each 1 where absent)
    max     = only the k with argmax[bag(k), d] == k

Shapes   starts (U+1,) i8 · positions (n,) i8 · bag_ids (L,) i8 · weights (L,), scale (B,) f4
         steps: four of 0 or 1; 0 says that the array holds one element in place of all, which is
         0 where k = i (positions) or bag(k) = k (bag_ids), and 1 for weights and scale
         argmax (B, D) or (0, D) i8; with it, positions and bag_ids are whole
         grad (B, D) f4 · out (U, D) f4
         bounds, blocks: see `plan.cut_segments` · block_sums (H, D) f4 scratch
Order    left to right in blocks of 256 positions counted from the segment's start, each block from
         +0.0; then the block sums left to right.  So threads can share a row that is everywhere:
         the block sums of hot segments are computed first, in parallel (phase 0), rows then.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from sparse_embed.kernels._intrinsics import first, next_chunk, prefetch_row, row_pointer, stack_f32
from sparse_embed.kernels._jit import DIGEST, WORKERS, cold_function, cpu_kernel, device_function
from sparse_embed.kernels.plan import BLOCK, HOT

CHUNK = 512  # see `plan`
_AHEAD = 12
_ZERO = np.float32(0)
_ONE = np.float32(1)


@device_function
def sum_block(total, begin, end, last, positions, bag_ids, weights, scale, steps, grad, dim):
    """total = the sum over entries [begin, end) of the batch, left to right from +0.0.

    `last` is the last entry of the batch.  An absent array is one element and a step of 0.
    Branches here would cost seconds: LLVM would make a copy of the loop for each combination.
    """
    for d in range(dim):
        total[d] = _ZERO
    for i in range(begin, end):
        ahead = min(i + _AHEAD, last)
        ahead = first(positions)[ahead * steps[0]] + ahead * (1 - steps[0])
        prefetch_row(grad, first(bag_ids)[ahead * steps[1]] + ahead * (1 - steps[1]), dim)
        k = first(positions)[i * steps[0]] + i * (1 - steps[0])
        bag = first(bag_ids)[k * steps[1]] + k * (1 - steps[1])
        c = first(weights)[k * steps[2]] * first(scale)[bag * steps[3]]
        row = row_pointer(grad, bag)
        for d in range(dim):
            total[d] = total[d] + c * row[d]


@device_function
def sum_winners(total, begin, end, positions, bag_ids, argmax, grad, dim):
    """As `sum_block`, of the entries whose position won the bag and column."""
    for d in range(dim):
        total[d] = _ZERO
    for i in range(begin, end):
        k = positions[i]
        winner, row = row_pointer(argmax, bag_ids[k]), row_pointer(grad, bag_ids[k])
        for d in range(dim):
            total[d] = total[d] + (row[d] if winner[d] == k else _ZERO)


@cold_function
def first_block(blocks, begin):
    """The first hot block that begins at this entry or later."""
    low, high = 0, blocks.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if blocks[middle, 0] < begin:
            low = middle + 1
        else:
            high = middle
    return low


@functools.cache
def backward_cpu(dim: int):
    digest = DIGEST

    @cpu_kernel
    def backward(
        bounds, blocks, block_sums, starts,
        positions, bag_ids, weights, scale, steps, argmax, grad, counter, out,
    ):  # fmt: skip
        _ = digest
        chunks, num_blocks = bounds.shape[0] - 1, blocks.shape[0]
        last = starts[out.shape[0]] - 1
        for phase in range(0 if num_blocks > 0 else 1, 2):  # hot blocks, then rows
            for _worker in prange(WORKERS):
                block = stack_f32(dim)
                while True:
                    chunk = next_chunk(counter, phase)
                    if chunk >= (chunks if phase else num_blocks):
                        break
                    u0, u1 = chunk, chunk + 1
                    if phase == 1:
                        u0, u1 = bounds[chunk], bounds[chunk + 1]
                    for u in range(u0, u1):
                        if phase == 0:
                            begin, end = blocks[u, 0], blocks[u, 1]
                            total = row_pointer(block_sums, u)
                        else:
                            begin, end = starts[u], starts[u + 1]
                            total = row_pointer(out, u)
                        j = first_block(blocks, begin) if end - begin > HOT else -1
                        for d in range(dim):
                            total[d] = _ZERO
                        for start in range(begin, end, BLOCK):
                            source, stop = block, min(start + BLOCK, end)
                            if j >= 0:
                                source = row_pointer(block_sums, j)
                                j += 1
                            elif argmax.shape[0] > 0:
                                sum_winners(
                                    block, start, stop, positions, bag_ids, argmax, grad, dim
                                )
                            else:
                                sum_block(
                                    block, start, stop, last,
                                    positions, bag_ids, weights, scale, steps, grad, dim,
                                )  # fmt: skip
                            for d in range(dim):
                                total[d] = total[d] + source[d]

    return backward
