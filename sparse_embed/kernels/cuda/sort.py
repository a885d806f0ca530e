"""A stable radix sort of a batch on the device, by row.

Shapes   indices (L,) i8 · words (L,) u8: key << position_bits | position · counts (digits * tiles,)
         i8 · totals (digits,) i8
How      tiles by length alone.  A pass takes 8 bits: counts by digit and tile, prefix sums of each
         digit's, then each word goes to the place of its digit and tile plus its rank in the tile,
         which warps find by asking which lanes have the same digit: stable, and without atomics
         that have an order.  The first pass makes the words of the indices.
Padding  is the word of all ones in the bits of key and position, which is sorted to the end
Source   Satish, Harris, Garland: Designing efficient sorting algorithms for manycore GPUs, 2009;
         ranks by votes of warps: Adinets, Merrill: Onesweep, 2022
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._shim import (
    LANES,
    SIMULATED,
    THREADS,
    ballot_lanes,
    cuda,
    cuda_kernel,
    sync_warp,
)
from sparse_embed.kernels.cuda.merge import scan_block

DIGIT_BITS = 4 if SIMULATED else 8
DIGITS = 1 << DIGIT_BITS
SORT_ITEMS = 8
SORT_TILE = np.uint64(THREADS * SORT_ITEMS)
_WARPS = THREADS // LANES
_COUNTERS = _WARPS * DIGITS
_OWN_DIGITS = DIGITS // THREADS
_DIGIT_MASK = np.uint64(DIGITS - 1)


def sort_tiles(length: int) -> int:
    """Tiles of the sort of a batch of this length."""
    return max(1, -(-length // int(SORT_TILE)))


@device_function
def word_of(index, k, padding_idx, position_bits, padding):
    """What stands for position k of a batch.  Only as many bits of the index as a key has: what is
    out of range must not upset the order before somebody refuses it."""
    if index == padding_idx:
        return padding
    low = np.uint64(position_bits)
    return ((np.uint64(index) & (padding >> low)) << low) | np.uint64(k)


@functools.cache
def count_digits_cuda(make: bool):
    """counts[digit * tiles + tile]; a block a tile.  make: of indices, words are made of them."""
    digest = DIGEST

    @cuda_kernel
    def count_digits(source, padding_idx, position_bits, padding, shift, counts):
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
                    word = word_of(source[k], k, padding_idx, position_bits, padding)
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
            scan_block(partial, thread, THREADS)
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
    def scatter_digits(source, padding_idx, position_bits, padding, shift, counts, totals, out):
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
            words[i] = padding
            if k < length:
                if make:
                    words[i] = word_of(source[k], k, padding_idx, position_bits, padding)
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
        scan_block(partial, thread, THREADS)
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
