"""Merge: which rows a batch touches, and where.

    order      a stable sort of the positions by index, padded positions dropped
    segments   the entries of each unique index

Shapes   indices (L,) i8 · a, b (L,) u8 scratch · histogram (chunks, 4096) i8 scratch
         positions (n,) i8 · unique (U,) i8 · starts (U+1,) i8
How      the words `key << position_bits | position` are sorted by LSD radix on the key's bits in
         use: 12 bits a pass below 2^19 positions, 8 above (4096 open streams miss the TLB there).
         Chunks are cut by L alone.  A sort has one result, so threads cannot show.
Wide     key bits + position bits > 64: the caller sorts twice, low key bits first (`ops`).
Source   Knuth, TAOCP volume 3, 5.2.5
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from sparse_embed.kernels._jit import DIGEST, cpu_kernel, device_function

MAX_CHUNKS = 64
_CHUNK = 8192
_SMALL = 1 << 19
_ONE = np.uint64(1)


def num_chunks(length: int) -> int:
    """Chunks of a batch: a function of its length alone."""
    return max(1, min(MAX_CHUNKS, -(-length // _CHUNK)))


def digit_bits(key_bits: int, length: int) -> int:
    """Bits of a radix digit: as few passes as 12 (or 8) bits allow, evenly wide."""
    widest = 12 if length < _SMALL else 8
    passes = max(1, -(-key_bits // widest))
    return max(1, -(-key_bits // passes))


@functools.cache
def largest_key_cpu():
    digest = DIGEST

    @cpu_kernel
    def largest_key(indices, padding_idx, chunks, largest, kept):
        """largest[c], kept[c]: the largest index of chunk c but padding, and how many there are."""
        _ = digest
        length = indices.shape[0]
        for c in prange(chunks):
            top, count = np.int64(-1), 0
            for k in range(c * length // chunks, (c + 1) * length // chunks):
                if indices[k] != padding_idx:
                    top = max(top, indices[k])
                    count += 1
            largest[c] = top
            kept[c] = count

    return largest_key


@device_function
def _word(indices, words, k, first, shift, key_mask, position_bits):
    """Word k of the input of a pass: made from the index in the first pass."""
    if first:
        return (((np.uint64(indices[k]) >> shift) & key_mask) << position_bits) | np.uint64(k)
    return words[k]


@functools.cache
def radix_sort_cpu():
    digest = DIGEST

    @cpu_kernel
    def radix_sort(
        indices, padding_idx, key_shift, key_bits, position_bits, digit, chunks, a, b, histogram
    ):
        """Sort words of key bits [key_shift, key_shift + key_bits).  True: the result is in a."""
        _ = digest
        one = _ONE
        length = indices.shape[0]
        shift0, low = np.uint64(key_shift), np.uint64(position_bits)
        key_mask = (one << np.uint64(key_bits)) - one
        digits = 1 << digit
        digit_mask = np.uint64(digits - 1)
        passes = (key_bits + digit - 1) // digit
        source, target = b, a
        for step in range(2 * passes):
            number = step // 2
            scatter = step % 2 == 1
            first = number == 0
            shift = low + np.uint64(number * digit)
            for c in prange(chunks):
                begin, end = c * length // chunks, (c + 1) * length // chunks
                if not scatter:
                    for j in range(digits):
                        histogram[c, j] = 0
                    for k in range(begin, end):
                        if first and indices[k] == padding_idx:
                            continue
                        word = _word(indices, source, k, first, shift0, key_mask, low)
                        histogram[c, np.int64((word >> shift) & digit_mask)] += 1
                else:
                    for k in range(begin, end):
                        if first and indices[k] == padding_idx:
                            continue
                        word = _word(indices, source, k, first, shift0, key_mask, low)
                        j = np.int64((word >> shift) & digit_mask)
                        place = histogram[c, j]
                        histogram[c, j] = place + 1
                        target[place] = word
            if not scatter:
                total = 0
                for j in range(digits):
                    for c in range(chunks):
                        count = histogram[c, j]
                        histogram[c, j] = total
                        total += count
            else:
                if first:
                    length = total
                source, target = target, source
        return passes % 2 == 1

    return radix_sort


@functools.cache
def segments_cpu():
    digest = DIGEST

    @cpu_kernel
    def segments(words, position_bits, chunks, firsts, positions, unique, starts):
        """Cut sorted words: in step 0 firsts[c] = unique keys that begin in chunk c; in step 1 the
        outputs.  Returns the number of unique keys; `unique` and `starts` are long enough."""
        _ = digest
        length = words.shape[0]
        low = np.uint64(position_bits)
        position_mask = (_ONE << low) - _ONE
        total = 0
        for step in range(2):
            for c in prange(chunks):
                begin, end = c * length // chunks, (c + 1) * length // chunks
                u = firsts[c]
                for k in range(begin, end):
                    word = words[k]
                    key = word >> low
                    new = k == 0 or (words[k - 1] >> low) != key
                    if step == 1:
                        positions[k] = np.int64(word & position_mask)
                        if new:
                            unique[u] = np.int64(key)
                            starts[u] = k
                    if new:
                        u += 1
                if step == 0:
                    firsts[c] = u
            if step == 0:
                total = 0
                for c in range(chunks):
                    count = firsts[c]
                    firsts[c] = total
                    total += count
        starts[total] = length
        return total

    return segments
