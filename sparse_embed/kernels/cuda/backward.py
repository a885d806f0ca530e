"""Gradient of the rows of a batch on the device: formulas and order of `kernels/backward.py`.

Shapes   hot_starts (U,) i8: prefix sums of the blocks of hot segments, those longer than HOT
         num_blocks (1,) i8: H, all of them
         block_sums (H, D) f4 · u0: the first unique row of the call
How      a group of lanes owns a unique row and adds its entries in blocks of 256; those of hot rows
         are added first, a group a block, so that a row that is everywhere does not wait for one.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._rows import load_tile, row_shape, store_tile
from sparse_embed.kernels.cuda._shim import IN_FLIGHT, cuda, cuda_kernel
from sparse_embed.kernels.plan import BLOCK

HOT = 512
"""Segments longer than this are cut into blocks; where the cut lies shows in no bit."""

_ZERO = np.float32(0)


@device_function
def hot_blocks(begin, end):
    """Blocks of a segment that are added ahead; 0 where it is not hot."""
    return (end - begin + BLOCK - 1) // BLOCK if end - begin > HOT else 0


@device_function
def sum_entries(
    block, stage, share, begin, end, positions, bag_ids, weights, scale, steps, grad,
    first, lane, lanes, vec, chunks, dim,
):  # fmt: skip
    """block = this lane's sums over entries [begin, end), left to right from +0.0."""
    width = vec * chunks
    for x in range(width):
        block[x] = _ZERO
    for i in range(begin, end, IN_FLIGHT):
        for j in range(IN_FLIGHT):
            if i + j < end:
                k = positions[(i + j) * steps[0]] + (i + j) * (1 - steps[0])
                bag = bag_ids[k * steps[1]] + k * (1 - steps[1])
                load_tile(stage, j * width, grad, bag, 0, first, lane, lanes, vec, chunks, dim)
                share[j] = weights[k * steps[2]] * scale[bag * steps[3]]
        for j in range(IN_FLIGHT):
            if i + j < end:
                for x in range(width):
                    block[x] = block[x] + share[j] * stage[j * width + x]


@device_function
def sum_winners(
    block, begin, end, positions, bag_ids, argmax, grad, first, lane, lanes, vec, chunks, dim
):
    """As `sum_entries`, of the entries whose position won the bag and column."""
    for x in range(vec * chunks):
        block[x] = _ZERO
    for i in range(begin, end):
        k = positions[i]
        bag = bag_ids[k]
        for c in range(chunks):
            column = first + (c * lanes + lane) * vec
            if column < dim:
                for v in range(vec):
                    won = grad[bag, column + v] if argmax[bag, column + v] == k else _ZERO
                    block[c * vec + v] = block[c * vec + v] + won


@functools.cache
def count_hot_cuda():
    """counts[u] = blocks of segment u0 + u that are added ahead."""
    digest = DIGEST

    @cuda_kernel
    def count_hot(starts, u0, counts):
        _ = digest
        for u in range(cuda.grid(1), counts.shape[0], cuda.gridsize(1)):
            counts[u] = hot_blocks(starts[u0 + u], starts[u0 + u + 1])

    return count_hot


@functools.cache
def hot_sums_cuda(dim: int, winners: bool):
    """block_sums[h]: the sums of the blocks of hot segments."""
    _, vec, lanes, chunks = row_shape(dim)
    width, tile = vec * chunks, vec * chunks * lanes
    staged = IN_FLIGHT * width
    digest = DIGEST

    @cuda_kernel
    def hot_sums(
        hot_starts, num_blocks, u0, starts, positions, bag_ids, weights, scale, steps, argmax, grad,
        block_sums,
    ):  # fmt: skip
        _ = digest
        block = cuda.local.array(width, numba.float32)
        stage = cuda.local.array(staged, numba.float32)
        share = cuda.local.array(IN_FLIGHT, numba.float32)
        lane = cuda.grid(1) % lanes
        for h in range(cuda.grid(1) // lanes, num_blocks[0], cuda.gridsize(1) // lanes):
            low, high = np.int64(0), np.int64(hot_starts.shape[0] - 1)
            while low < high:  # the last u with hot_starts[u] <= h has block h
                middle = (low + high + 1) >> 1
                if hot_starts[middle] <= h:
                    low = middle
                else:
                    high = middle - 1
            begin = starts[u0 + low] + (h - hot_starts[low]) * BLOCK
            end = starts[u0 + low + 1]
            end = begin + BLOCK if begin + BLOCK < end else end
            for first in range(0, dim, tile):
                if winners:
                    sum_winners(
                        block, begin, end, positions, bag_ids, argmax, grad,
                        first, lane, lanes, vec, chunks, dim,
                    )  # fmt: skip
                else:
                    sum_entries(
                        block, stage, share, begin, end, positions, bag_ids, weights, scale, steps,
                        grad, first, lane, lanes, vec, chunks, dim,
                    )  # fmt: skip
                store_tile(block, block_sums, h, 0, first, lane, lanes, vec, chunks, dim)

    return hot_sums


@functools.cache
def backward_cuda(dim: int, winners: bool):
    """out[u] = the gradient of unique row u."""
    _, vec, lanes, chunks = row_shape(dim)
    width, tile = vec * chunks, vec * chunks * lanes
    staged = IN_FLIGHT * width
    digest = DIGEST

    @cuda_kernel
    def backward(
        hot_starts, block_sums, starts, positions, bag_ids, weights, scale, steps, argmax, grad, out
    ):
        _ = digest
        total = cuda.local.array(width, numba.float32)
        block = cuda.local.array(width, numba.float32)
        stage = cuda.local.array(staged, numba.float32)
        share = cuda.local.array(IN_FLIGHT, numba.float32)
        lane = cuda.grid(1) % lanes
        for u in range(cuda.grid(1) // lanes, out.shape[0], cuda.gridsize(1) // lanes):
            begin, end = starts[u], starts[u + 1]
            hot = end - begin > HOT
            for first in range(0, dim, tile):
                for x in range(width):
                    total[x] = _ZERO
                h = hot_starts[u]
                for start in range(begin, end, BLOCK):
                    stop = start + BLOCK if start + BLOCK < end else end
                    if hot:
                        load_tile(block, 0, block_sums, h, 0, first, lane, lanes, vec, chunks, dim)
                        h += 1
                    elif winners:
                        sum_winners(
                            block, start, stop, positions, bag_ids, argmax, grad,
                            first, lane, lanes, vec, chunks, dim,
                        )  # fmt: skip
                    else:
                        sum_entries(
                            block, stage, share, start, stop, positions, bag_ids, weights, scale,
                            steps, grad, first, lane, lanes, vec, chunks, dim,
                        )  # fmt: skip
                    for x in range(width):
                        total[x] = total[x] + block[x]
                store_tile(total, out, u, 0, first, lane, lanes, vec, chunks, dim)

    return backward
