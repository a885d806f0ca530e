"""Merge on the device: a stable radix sort of (index, position), segments, prefix sums, selection.

Shapes   indices (L,) i8 · words (L,) u8: key << position_bits | position · flags (S,) u1
         counts (digits * tiles,) i8 · values, positions (n,) i8 · unique (U,), starts (U+1,),
         num (1,) i8
How      tiles by length alone.  A pass of the sort takes 8 bits: counts by digit and tile, prefix
         sums of each digit's, then each word goes to the place of its digit and tile plus its rank
         in the tile, which warps find by asking which lanes have the same digit: stable, and
         without atomics.  The first pass makes the words.
Padding  is the word of all ones, which is sorted to the end; `padding` is that word
Source   Satish, Harris, Garland: Designing efficient sorting algorithms for manycore GPUs, 2009
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
    sync_warp,
)

TILE = THREADS * ITEMS
DIGIT_BITS = 4 if SIMULATED else 8
DIGITS = 1 << DIGIT_BITS
SORT_ITEMS = 16
SORT_TILE = np.uint64(THREADS * SORT_ITEMS)
SCAN_THREADS = 4 if SIMULATED else 1024
PADDING = np.uint64(0xFFFFFFFFFFFFFFFF)
_WARPS = THREADS // LANES
_ROWS = ITEMS * _WARPS
_COUNTERS = _WARPS * DIGITS
_OWN_DIGITS = DIGITS // THREADS
_DIGIT_MASK = np.uint64(DIGITS - 1)
_NONE = PADDING


def num_tiles(length: int) -> int:
    """Tiles of a batch of this length."""
    return max(1, -(-length // TILE))


def sort_tiles(length: int) -> int:
    """Tiles of the sort of a batch of this length."""
    return max(1, -(-length // int(SORT_TILE)))


@device_function
def _scan_block(partial, thread, threads):
    """Inclusive prefix sums of one number a thread, in shared memory; all threads of a block."""
    distance = 1
    while distance < threads:
        left = partial[thread - distance] if thread >= distance else np.int64(0)
        cuda.syncthreads()
        partial[thread] = partial[thread] + left
        cuda.syncthreads()
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
            _scan_block(partial, thread, SCAN_THREADS)
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
        _scan_block(partial, thread, THREADS)
        running = places[tile] + partial[thread] - own
        for i in range(ITEMS):
            if begin + i < values.shape[0]:
                value = values[begin + i]
                values[begin + i] = running
                running += value

    return scan_tiles


@device_function
def word_of(index, k, padding_idx, position_bits):
    """What stands for position k of a batch."""
    if index == padding_idx:
        return _NONE
    return (np.uint64(index) << np.uint64(position_bits)) | np.uint64(k)


@functools.cache
def count_digits_cuda(make: bool):
    """counts[digit * tiles + tile]; a block a tile.  make: of indices, words are made of them."""
    digest = DIGEST

    @cuda_kernel
    def count_digits(source, padding_idx, position_bits, shift, counts):
        _ = digest
        shared = cuda.shared.array(DIGITS, numba.int32)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        tiles = cuda.gridDim.x
        for digit in range(thread, DIGITS, THREADS):
            shared[digit] = 0
        cuda.syncthreads()
        for i in range(SORT_ITEMS):
            k = np.uint64(tile) * SORT_TILE + np.uint64(i * THREADS + thread)
            if k < np.uint64(source.shape[0]):
                word = source[k]
                if make:
                    word = word_of(source[k], k, padding_idx, position_bits)
                digit = np.int64((np.uint64(word) >> np.uint64(shift)) & _DIGIT_MASK)
                cuda.atomic.add(shared, digit, 1)
        cuda.syncthreads()
        for digit in range(thread, DIGITS, THREADS):
            counts[digit * tiles + tile] = shared[digit]

    return count_digits


@functools.cache
def scan_digits_cuda():
    """counts[digit * tiles + tile] = the sum of that digit's before it, in place; totals[digit] =
    all of its.  A block a digit."""
    digest = DIGEST

    @cuda_kernel
    def scan_digits(counts, tiles, totals):
        _ = digest
        partial = cuda.shared.array(THREADS, numba.int64)
        thread, digit = cuda.threadIdx.x, cuda.blockIdx.x
        carry = np.int64(0)
        for begin in range(0, tiles, THREADS):
            tile = begin + thread
            own = counts[digit * tiles + tile] if tile < tiles else np.int64(0)
            partial[thread] = own
            cuda.syncthreads()
            _scan_block(partial, thread, THREADS)
            if tile < tiles:
                counts[digit * tiles + tile] = carry + partial[thread] - own
            carry += partial[THREADS - 1]
            cuda.syncthreads()
        if thread == 0:
            totals[digit] = carry

    return scan_digits


@functools.cache
def scatter_digits_cuda(make: bool):
    """One pass: each word goes to the place of its digit and tile, plus its rank among those of the
    tile; counts and totals are `scan_digits`'.  make: as in `count_digits`."""
    digest = DIGEST

    @cuda_kernel
    def scatter_digits(source, padding_idx, position_bits, shift, counts, totals, out):
        _ = digest
        counters = cuda.shared.array(_COUNTERS, numba.int32)
        partial = cuda.shared.array(THREADS, numba.int64)
        bases = cuda.shared.array(DIGITS, numba.int64)
        words = cuda.local.array(SORT_ITEMS, numba.uint64)
        ranks = cuda.local.array(SORT_ITEMS, numba.int32)
        peers = cuda.local.array(SORT_ITEMS, numba.uint32)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        tiles = cuda.gridDim.x
        lane, warp = thread % LANES, thread // LANES
        length = np.uint64(source.shape[0])
        begin = np.uint64(tile) * SORT_TILE + np.uint64(warp * (SORT_ITEMS * LANES) + lane)
        below = np.uint32((1 << lane) - 1)
        for i in range(SORT_ITEMS):
            k = begin + np.uint64(i * LANES)
            words[i] = _NONE
            if k < length:
                if make:
                    words[i] = word_of(source[k], k, padding_idx, position_bits)
                else:
                    words[i] = source[k]
        for c in range(thread, _COUNTERS, THREADS):
            counters[c] = 0
        # Where each digit begins: prefix sums of the totals, DIGITS / THREADS of them a thread.
        own = np.int64(0)
        for d in range(_OWN_DIGITS):
            own += totals[thread * _OWN_DIGITS + d]
        partial[thread] = own
        cuda.syncthreads()
        _scan_block(partial, thread, THREADS)
        running = partial[thread] - own
        for d in range(_OWN_DIGITS):
            digit = thread * _OWN_DIGITS + d
            bases[digit] = running + counts[digit * tiles + tile]
            running += totals[digit]
        # Ranks by warp: a row of 32 words at a time, those of one digit in order of their lanes.
        for i in range(SORT_ITEMS):
            k = begin + np.uint64(i * LANES)
            digit = np.uint32((words[i] >> np.uint64(shift)) & _DIGIT_MASK)
            same = ballot_lanes(k < length)
            for bit in range(DIGIT_BITS):
                has = (digit >> np.uint32(bit)) & np.uint32(1) != 0
                vote = ballot_lanes(has)
                same = np.uint32(same & vote) if has else np.uint32(same & ~vote)
            peers[i] = same
        for i in range(SORT_ITEMS):
            k = begin + np.uint64(i * LANES)
            place = np.int64(warp * DIGITS) + np.int64((words[i] >> np.uint64(shift)) & _DIGIT_MASK)
            before = counters[place]
            ahead = cuda.popc(np.uint32(peers[i] & below))
            ranks[i] = before + ahead
            sync_warp()
            if ahead == 0 and k < length:
                counters[place] = before + cuda.popc(peers[i])
            sync_warp()
        cuda.syncthreads()
        for digit in range(thread, DIGITS, THREADS):
            place = bases[digit]
            for w in range(_WARPS):
                count = counters[w * DIGITS + digit]
                counters[w * DIGITS + digit] = place - bases[digit]
                place += count
        cuda.syncthreads()
        for i in range(SORT_ITEMS):
            if begin + np.uint64(i * LANES) < length:
                digit = np.int64((words[i] >> np.uint64(shift)) & _DIGIT_MASK)
                rank = counters[warp * DIGITS + digit] + ranks[i]
                out[np.uint64(bases[digit] + rank)] = words[i]

    return scatter_digits


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
        _scan_block(partial, thread, THREADS)
        place = places[tile] + partial[thread] - own
        for i in range(ITEMS):
            if begin + i < limit and (flags[begin + i] & want != 0) == like:
                slots[place] = begin + i
                place += 1

    return write_flagged
