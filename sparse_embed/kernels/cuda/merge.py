"""Merge on the device: a stable radix sort of (index, position), segments, prefix sums, selection.

Shapes   indices (L,) i8 · words (L,) u8: key << position_bits | position · flags (S,) u1
         counts (digits * tiles,) i8 · values, positions (n,) i8 · unique (U,), starts (U+1,),
         num (1,) i8
How      tiles of THREADS * ITEMS entries, ITEMS consecutive ones a thread, by length alone.  A pass
         of the sort takes 4 bits: counts by digit and tile, their prefix sums (digit first), then
         each entry goes to the place of its digit and tile plus its rank, counted within the tile
         by digit, thread and entry: stable, and without atomics.
Padding  has the key of all ones and is sorted to the end
Source   Satish, Harris, Garland: Designing efficient sorting algorithms for manycore GPUs, 2009
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._shim import ITEMS, SIMULATED, THREADS, cuda, cuda_kernel

TILE = THREADS * ITEMS
DIGIT_BITS = 4
DIGITS = 1 << DIGIT_BITS
SCAN_THREADS = 4 if SIMULATED else 1024
_COUNTERS = DIGITS * THREADS
_DIGIT_MASK = np.uint64(DIGITS - 1)
_NONE = np.uint64(0xFFFFFFFFFFFFFFFF)


def num_tiles(length: int) -> int:
    """Tiles of a batch of this length."""
    return max(1, -(-length // TILE))


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


@functools.cache
def make_words_cuda():
    """words[k] = indices[k] << position_bits | k; all ones for padding."""
    digest = DIGEST

    @cuda_kernel
    def make_words(indices, padding_idx, position_bits, words):
        _ = digest
        for k in range(cuda.grid(1), indices.shape[0], cuda.gridsize(1)):
            if indices[k] == padding_idx:
                words[k] = _NONE
            else:
                words[k] = (np.uint64(indices[k]) << np.uint64(position_bits)) | np.uint64(k)

    return make_words


@functools.cache
def count_digits_cuda():
    """counts[digit * tiles + tile]; a block a tile."""
    digest = DIGEST

    @cuda_kernel
    def count_digits(words, shift, counts):
        _ = digest
        shared = cuda.shared.array(DIGITS, numba.int32)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        tiles = cuda.gridDim.x
        for digit in range(thread, DIGITS, THREADS):
            shared[digit] = 0
        cuda.syncthreads()
        for i in range(ITEMS):
            k = tile * TILE + i * THREADS + thread
            if k < words.shape[0]:
                digit = np.int64((words[k] >> np.uint64(shift)) & _DIGIT_MASK)
                cuda.atomic.add(shared, digit, 1)
        cuda.syncthreads()
        for digit in range(thread, DIGITS, THREADS):
            counts[digit * tiles + tile] = shared[digit]

    return count_digits


@functools.cache
def scatter_digits_cuda():
    """One pass: `places` are the prefix sums of the counts."""
    digest = DIGEST

    @cuda_kernel
    def scatter_digits(words, shift, places, out):
        _ = digest
        counters = cuda.shared.array(_COUNTERS, numba.int32)
        partial = cuda.shared.array(THREADS, numba.int64)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        tiles = cuda.gridDim.x
        begin = tile * TILE + thread * ITEMS
        for digit in range(DIGITS):
            counters[digit * THREADS + thread] = 0
        for i in range(ITEMS):
            if begin + i < words.shape[0]:
                digit = np.int64((words[begin + i] >> np.uint64(shift)) & _DIGIT_MASK)
                counters[digit * THREADS + thread] += 1
        cuda.syncthreads()
        # Exclusive prefix sums over (digit, thread): each thread takes DIGITS counters in a row.
        own = np.int64(0)
        for c in range(DIGITS):
            own += counters[thread * DIGITS + c]
        partial[thread] = own
        cuda.syncthreads()
        _scan_block(partial, thread, THREADS)
        running = partial[thread] - own
        for c in range(DIGITS):
            count = counters[thread * DIGITS + c]
            counters[thread * DIGITS + c] = running
            running += count
        cuda.syncthreads()
        starts = cuda.shared.array(DIGITS, numba.int32)
        for digit in range(thread, DIGITS, THREADS):
            starts[digit] = counters[digit * THREADS]
        cuda.syncthreads()
        for i in range(ITEMS):
            if begin + i < words.shape[0]:
                word = words[begin + i]
                digit = np.int64((word >> np.uint64(shift)) & _DIGIT_MASK)
                rank = counters[digit * THREADS + thread]
                counters[digit * THREADS + thread] = rank + 1
                out[places[digit * tiles + tile] + (rank - starts[digit])] = word

    return scatter_digits


@functools.cache
def count_heads_cuda():
    """counts[tile] = unique keys that begin in a tile of sorted words."""
    digest = DIGEST

    @cuda_kernel
    def count_heads(words, position_bits, counts):
        _ = digest
        shared = cuda.shared.array(1, numba.int32)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        low = np.uint64(position_bits)
        if thread == 0:
            shared[0] = 0
        cuda.syncthreads()
        for i in range(ITEMS):
            k = tile * TILE + i * THREADS + thread
            if k < words.shape[0] and (k == 0 or words[k - 1] >> low != words[k] >> low):
                cuda.atomic.add(shared, 0, 1)
        cuda.syncthreads()
        if thread == 0:
            counts[tile] = shared[0]

    return count_heads


@functools.cache
def write_segments_cuda():
    """positions, unique and starts of sorted words; `places` are the prefix sums of the heads."""
    digest = DIGEST

    @cuda_kernel
    def write_segments(words, position_bits, places, num, positions, unique, starts):
        _ = digest
        partial = cuda.shared.array(THREADS, numba.int64)
        thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
        low = np.uint64(position_bits)
        mask = (np.uint64(1) << low) - np.uint64(1)
        length = words.shape[0]
        begin = tile * TILE + thread * ITEMS
        own = np.int64(0)
        for i in range(ITEMS):
            k = begin + i
            if k < length and (k == 0 or words[k - 1] >> low != words[k] >> low):
                own += 1
        partial[thread] = own
        cuda.syncthreads()
        _scan_block(partial, thread, THREADS)
        u = places[tile] + partial[thread] - own
        for i in range(ITEMS):
            k = begin + i
            if k < length:
                word = words[k]
                positions[k] = np.int64(word & mask)
                if k == 0 or words[k - 1] >> low != word >> low:
                    unique[u] = np.int64(word >> low)
                    starts[u] = k
                    u += 1
        if tile == 0 and thread == 0:
            starts[num[0]] = length

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
