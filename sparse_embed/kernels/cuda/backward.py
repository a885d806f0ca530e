"""Gradient of the rows of a batch on the device: formulas and order of `kernels/backward.py`.

Shapes   entries are in the order of the sorted batch: positions (n,) i8, bags (n,) i8 (of each
         entry), weights and scale by position and by bag · steps: which of these four there are; an
         entry without a position is its own, one without a bag is its own bag
         hot_rows, hot_bases, hot_starts, found: the list of segments longer than HOT, of
         `merge.write_segments` · block_sums (H, D) f4: the sums of their blocks
         num (1,) i8: U, unique rows of the batch
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
_ONE = np.float32(1)
_BLOCKS = (1 << 40) - 1  # of `found`


@device_function
def bag_at(bags, steps, i):
    """The bag of entry i; without bags the entry itself."""
    if steps[1]:
        return bags[np.uint64(i)]
    return np.int64(i)


@device_function
def share_at(positions, weights, scale, steps, i, bag):
    """What the gradient of the bag of entry i counts."""
    share = _ONE
    if steps[2]:
        share = weights[np.uint64(positions[np.uint64(i)] if steps[0] else i)]
    if steps[3]:
        share = share * scale[np.uint64(bag)]
    return share


@device_function
def sum_entries(
    block, stage, share, ids, begin, end, positions, bags, weights, scale, steps, grad,
    first, lane, lanes, vec, chunks, dim, in_flight,
):  # fmt: skip
    """block = this lane's sums over entries [begin, end), left to right from +0.0.

    in_flight: gradients that are asked for before the first is added."""
    width = vec * chunks
    for x in range(width):
        block[x] = _ZERO
    i = begin
    while i + in_flight <= end:
        # Each bag is asked for before the first has come, and then each gradient.
        for j in range(in_flight):
            ids[j] = bag_at(bags, steps, i + j)
        for j in range(in_flight):
            load_tile(stage, j * width, grad, ids[j], 0, first, lane, lanes, vec, chunks, dim)
        for j in range(in_flight):
            share[j] = share_at(positions, weights, scale, steps, i + j, ids[j])
        for j in range(in_flight):
            for x in range(width):
                block[x] = block[x] + share[j] * stage[j * width + x]
        i += in_flight
    while i < end:  # most rows have one entry or two: little code for them
        bag = bag_at(bags, steps, i)
        load_tile(stage, 0, grad, bag, 0, first, lane, lanes, vec, chunks, dim)
        one = share_at(positions, weights, scale, steps, i, bag)
        for x in range(width):
            block[x] = block[x] + one * stage[x]
        i += 1


@device_function
def sum_winners(
    block, begin, end, positions, bags, argmax, grad, first, lane, lanes, vec, chunks, dim
):
    """As `sum_entries`, of the entries whose position won the bag and column."""
    for x in range(vec * chunks):
        block[x] = _ZERO
    for i in range(begin, end):
        k = positions[i]
        bag = bags[i]
        for c in range(chunks):
            column = first + (c * lanes + lane) * vec
            if column < dim:
                for v in range(vec):
                    won = grad[bag, column + v] if argmax[bag, column + v] == k else _ZERO
                    block[c * vec + v] = block[c * vec + v] + won


@functools.cache
def hot_sums_cuda(dim: int, winners: bool):
    """block_sums[h]: the sums of the blocks of hot segments, those of rows [u0, u1)."""
    _, vec, lanes, chunks = row_shape(dim)
    width, tile = vec * chunks, vec * chunks * lanes
    staged = IN_FLIGHT * width
    digest = DIGEST

    @cuda_kernel
    def hot_sums(
        hot_rows, hot_bases, found, starts, u0, u1, positions, bags, weights, scale, steps, argmax,
        grad, block_sums,
    ):  # fmt: skip
        _ = digest
        block = cuda.local.array(width, numba.float32)
        stage = cuda.local.array(staged, numba.float32)
        share = cuda.local.array(IN_FLIGHT, numba.float32)
        ids = cuda.local.array(IN_FLIGHT, numba.int64)
        lane = cuda.grid(1) % lanes
        listed, blocks = found[0] >> 40, found[0] & _BLOCKS
        for h in range(cuda.grid(1) // lanes, blocks, cuda.gridsize(1) // lanes):
            low, high = np.int64(0), listed - 1
            while low < high:  # the last with hot_bases <= h has block h
                middle = (low + high + 1) >> 1
                if hot_bases[middle] <= h:
                    low = middle
                else:
                    high = middle - 1
            u = hot_rows[low]
            if u < u0 or u >= u1:
                continue
            begin = starts[u] + (h - hot_bases[low]) * BLOCK
            end = starts[u + 1]
            end = begin + BLOCK if begin + BLOCK < end else end
            for first in range(0, dim, tile):
                if winners:
                    sum_winners(
                        block, begin, end, positions, bags, argmax, grad,
                        first, lane, lanes, vec, chunks, dim,
                    )  # fmt: skip
                else:
                    sum_entries(
                        block, stage, share, ids, begin, end, positions, bags, weights, scale,
                        steps, grad, first, lane, lanes, vec, chunks, dim, IN_FLIGHT,
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
        hot_starts, block_sums, num, starts, positions, bags, weights, scale, steps, argmax, grad,
        out,
    ):  # fmt: skip
        _ = digest
        total = cuda.local.array(width, numba.float32)
        block = cuda.local.array(width, numba.float32)
        stage = cuda.local.array(staged, numba.float32)
        share = cuda.local.array(IN_FLIGHT, numba.float32)
        ids = cuda.local.array(IN_FLIGHT, numba.int64)
        lane = cuda.grid(1) % lanes
        for u in range(cuda.grid(1) // lanes, num[0], cuda.gridsize(1) // lanes):
            begin, end = starts[u], starts[u + 1]
            hot = end - begin > HOT
            for first in range(0, dim, tile):
                for x in range(width):
                    total[x] = _ZERO
                h = hot_starts[u] if hot else np.int64(0)
                for start in range(begin, end, BLOCK):
                    stop = start + BLOCK if start + BLOCK < end else end
                    if hot:
                        load_tile(block, 0, block_sums, h, 0, first, lane, lanes, vec, chunks, dim)
                        h += 1
                    elif winners:
                        sum_winners(
                            block, start, stop, positions, bags, argmax, grad,
                            first, lane, lanes, vec, chunks, dim,
                        )  # fmt: skip
                    else:
                        sum_entries(
                            block, stage, share, ids, start, stop, positions, bags, weights, scale,
                            steps, grad, first, lane, lanes, vec, chunks, dim, IN_FLIGHT,
                        )  # fmt: skip
                    for x in range(width):
                        total[x] = total[x] + block[x]
                store_tile(total, out, u, 0, first, lane, lanes, vec, chunks, dim)

    return backward
