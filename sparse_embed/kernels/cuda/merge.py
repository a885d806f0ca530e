"""Merge on the device: segments of a sorted batch; prefix sums and selection.

Shapes   words (L,) u8, sorted: key << position_bits | position, see `sort` · flags (S,) u1
         counts, places (tiles,) i8 · values, positions (n,) i8 · unique (U,), starts (U+1,),
         num (1,) i8
How      tiles of THREADS * ITEMS entries by length alone: a pass that counts by tile, prefix sums
         of the counts, a pass that writes
Padding  `padding` is the word of padded positions; they are at the end, and belong to no segment
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._shim import (
    ITEMS,
    LANES,
    SIMULATED,
    THREADS,
    ballot_lanes,
    cuda,
    cuda_kernel,
    sync_block,
)

TILE = THREADS * ITEMS
SCAN_THREADS = 4 if SIMULATED else 1024
_WARPS = THREADS // LANES
_ROWS = ITEMS * _WARPS


def num_tiles(length: int) -> int:
    """Tiles of a batch of this length."""
    return max(1, -(-length // TILE))


@device_function
def scan_block(partial, thread, threads):
    """Inclusive prefix sums of one number a thread, in shared memory; all threads of a block."""
    distance = 1
    while distance < threads:
        left = partial[thread - distance] if thread >= distance else np.int64(0)
        sync_block()
        partial[thread] = partial[thread] + left
        sync_block()
        distance *= 2


@functools.cache
def scan_cuda():
    """values[i] = the sum of the values before i, in place; total[0] = all.  One block."""
    digest = DIGEST

    @cuda_kernel
    def scan(values, total):
        _ = digest
        partial = cuda.shared.array(SCAN_THREADS, numba.int64)
        thread = cuda.threadIdx.x
        length = values.shape[0]
        carry = np.int64(0)
        for begin in range(0, length, SCAN_THREADS):
            i = begin + thread
            own = values[i] if i < length else np.int64(0)
            partial[thread] = own
            cuda.syncthreads()
            scan_block(partial, thread, SCAN_THREADS)
            if i < length:
                values[i] = carry + partial[thread] - own
            carry += partial[SCAN_THREADS - 1]
            cuda.syncthreads()
        if thread == 0:
            total[0] = carry

    return scan


@functools.cache
def sum_tiles_cuda():
    """sums[tile] = the sum of a tile of values."""
    digest = DIGEST

    @cuda_kernel
    def sum_tiles(values, sums):
        _ = digest
        shared = cuda.shared.array(1, numba.int64)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        if thread == 0:
            shared[0] = 0
        cuda.syncthreads()
        own = np.int64(0)
        for i in range(ITEMS):
            k = tile * TILE + i * THREADS + thread
            if k < values.shape[0]:
                own += values[k]
        cuda.atomic.add(shared, 0, own)
        cuda.syncthreads()
        if thread == 0:
            sums[tile] = shared[0]

    return sum_tiles


@functools.cache
def scan_tiles_cuda():
    """As `scan` for many tiles at once; `places` are the prefix sums of their sums."""
    digest = DIGEST

    @cuda_kernel
    def scan_tiles(values, places):
        _ = digest
        partial = cuda.shared.array(THREADS, numba.int64)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        begin = tile * TILE + thread * ITEMS
        own = np.int64(0)
        for i in range(ITEMS):
            if begin + i < values.shape[0]:
                own += values[begin + i]
        partial[thread] = own
        cuda.syncthreads()
        scan_block(partial, thread, THREADS)
        running = places[tile] + partial[thread] - own
        for i in range(ITEMS):
            if begin + i < values.shape[0]:
                value = values[begin + i]
                values[begin + i] = running
                running += value

    return scan_tiles


@device_function
def is_head(words, k, low, padding):
    """Whether a key begins at k of the sorted words."""
    if k >= words.shape[0] or words[k] == padding:
        return False
    return k == 0 or words[k - 1] >> low != words[k] >> low


@functools.cache
def count_heads_cuda():
    """counts[tile] = unique keys that begin in a tile of sorted words; found[0] = 0."""
    digest = DIGEST

    @cuda_kernel
    def count_heads(words, position_bits, padding, counts, found):
        _ = digest
        if cuda.grid(1) == 0:
            found[0] = 0
        shared = cuda.shared.array(1, numba.int32)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        low = np.uint64(position_bits)
        if thread == 0:
            shared[0] = 0
        cuda.syncthreads()
        own = 0
        for i in range(ITEMS):
            k = tile * TILE + i * THREADS + thread
            if is_head(words, k, low, padding):
                own += 1
        if own > 0:
            cuda.atomic.add(shared, 0, own)
        cuda.syncthreads()
        if thread == 0:
            counts[tile] = shared[0]

    return count_heads


@device_function
def segment_end(words, k, low):
    """Where the key that begins at k ends."""
    low_end, high_end = np.int64(k), np.int64(words.shape[0])
    while high_end - low_end > 1:
        middle = (low_end + high_end) >> 1
        if words[middle] >> low == words[k] >> low:
            low_end = middle
        else:
            high_end = middle
    return high_end


@functools.cache
def write_segments_cuda(hot: int, block: int):
    """positions, unique and starts of sorted words; `places` are the prefix sums of the heads.

    Segments of more than `hot` entries are listed: hot_rows (which u), hot_bases (their blocks
    before them in the list), hot_starts[u] (the same, by u), found[0] = how many << 40 | blocks of
    all.  The order of the list is of no account.  with_bags: bags[k] = bag_ids of the position.
    """
    digest = DIGEST

    @cuda_kernel
    def write_segments(
        words, position_bits, padding, places, num, positions, unique, starts,
        hot_rows, hot_bases, hot_starts, found, with_bags, bag_ids, bags,
    ):  # fmt: skip
        _ = digest
        before = cuda.shared.array(_ROWS, numba.int64)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        lane, warp = thread % LANES, thread // LANES
        low = np.uint64(position_bits)
        mask = (np.uint64(1) << low) - np.uint64(1)
        length = words.shape[0]
        first = tile * TILE + thread
        for row in range(thread, _ROWS, THREADS):
            before[row] = 0
        cuda.syncthreads()
        # Heads before each row of entries, one to a lane of a warp.  As many rounds for all lanes.
        rounds = min(ITEMS, (length - tile * TILE + THREADS - 1) // THREADS)
        for i in range(rounds):
            vote = ballot_lanes(is_head(words, first + i * THREADS, low, padding))
            if lane == 0:
                before[i * _WARPS + warp] = cuda.popc(vote)
        cuda.syncthreads()
        if thread == 0:
            running = places[tile]
            for row in range(_ROWS):
                count = before[row]
                before[row] = running
                running += count
            if tile == 0 and num[0] == 0:
                starts[0] = 0
        cuda.syncthreads()
        for i in range(rounds):
            k = first + i * THREADS
            head = is_head(words, k, low, padding)
            vote = ballot_lanes(head)
            if k < length:
                word = words[k]
                position = np.int64(word & mask) if word != padding else np.int64(0)
                positions[k] = position
                if with_bags:
                    bags[k] = bag_ids[np.uint64(position)]
                if word != padding and (k + 1 == length or words[k + 1] == padding):
                    starts[num[0]] = k + 1
            if head:
                u = before[i * _WARPS + warp]
                u += cuda.popc(np.uint32(vote & np.uint32((1 << lane) - 1)))
                unique[u] = np.int64(words[k] >> low)
                starts[u] = k
                if k + hot < length and words[k + hot] >> low == words[k] >> low:
                    blocks = (segment_end(words, k, low) - k + block - 1) // block
                    place = cuda.atomic.add(found, 0, (np.int64(1) << 40) + blocks)
                    base = place & ((np.int64(1) << 40) - 1)
                    hot_rows[place >> 40] = u
                    hot_bases[place >> 40] = base
                    hot_starts[u] = base

    return write_segments


@functools.cache
def count_flagged_cuda():
    """counts[tile] = entries of a tile with flags[i] & want == like, below `limit`."""
    digest = DIGEST

    @cuda_kernel
    def count_flagged(flags, limit, want, like, counts):
        _ = digest
        shared = cuda.shared.array(1, numba.int32)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        if thread == 0:
            shared[0] = 0
        cuda.syncthreads()
        for i in range(ITEMS):
            k = tile * TILE + i * THREADS + thread
            if k < limit and (flags[k] & want != 0) == like:
                cuda.atomic.add(shared, 0, 1)
        cuda.syncthreads()
        if thread == 0:
            counts[tile] = shared[0]

    return count_flagged


@functools.cache
def write_flagged_cuda():
    """slots = those entries, ascending; `places` are the prefix sums of the counts."""
    digest = DIGEST

    @cuda_kernel
    def write_flagged(flags, limit, want, like, places, slots):
        _ = digest
        partial = cuda.shared.array(THREADS, numba.int64)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        begin = tile * TILE + thread * ITEMS
        own = np.int64(0)
        for i in range(ITEMS):
            if begin + i < limit and (flags[begin + i] & want != 0) == like:
                own += 1
        partial[thread] = own
        cuda.syncthreads()
        scan_block(partial, thread, THREADS)
        place = places[tile] + partial[thread] - own
        for i in range(ITEMS):
            if begin + i < limit and (flags[begin + i] & want != 0) == like:
                slots[place] = begin + i
                place += 1

    return write_flagged
