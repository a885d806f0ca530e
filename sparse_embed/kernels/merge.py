"""Merge: which rows a batch touches, and where.

    order      a stable sort of the positions by index, padded positions dropped
    segments   the entries of each unique index

Payload  what is sorted along: the position, or any number payload[k] of it: who sums gradients
         wants its bag, and is spared to look it up where positions are in no order
Shapes   indices (L,) i8 · payload (L,) i8, below 2^payload_bits; or (0,): the position
         source, target (L,) u8 scratch · histogram (chunks+1, 4096) u4 scratch
         payloads (n,) i8 · unique (U,) i8 · starts (U+1,) i8 · counter (2,) i8, zeros
How      the words `key << payload_bits | payload` are sorted by LSD radix on the key's bits in
         use: 12 bits a pass below 2^19 positions, 8 above (4096 open streams miss the TLB there).
         Chunks are cut by L alone.  A sort has one result, so threads cannot show.
         Each pass is two calls, the counts and the scatter; the thread that finishes the last
         chunk turns counts into places.
Wide     key bits + payload bits > 64: what does not fit is shifted out of the word, so the caller
         sorts twice, low key bits first (`ops`).
Source   Knuth, TAOCP volume 3, 5.2.5
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import first, next_chunk, row_pointer
from sparse_embed.kernels._jit import DIGEST, cold_function, device_function, team_kernel

MAX_CHUNKS = 64
_CHUNK = 16384
_SMALL = 1 << 19
_ONE = np.uint64(1)
_ONE32 = np.uint32(1)


def num_chunks(length: int) -> int:
    """Chunks of a batch: a function of its length alone."""
    return max(1, min(MAX_CHUNKS, -(-length // _CHUNK)))


def digit_bits(key_bits: int, length: int) -> int:
    """Bits of a radix digit: as few passes as 12 (or 8) bits allow, evenly wide."""
    widest = 12 if length < _SMALL else 8
    passes = max(1, -(-key_bits // widest))
    return max(1, -(-key_bits // passes))


@device_function
def _next_place(places, j):
    place = places[j]
    places[j] = np.uint32(place + _ONE32)
    return place


@cold_function
def place_digits(histogram, chunks, digits):
    """Counts to places: first all of digit 0, chunk by chunk, then digit 1, ...

    Goes along the rows of the histogram (its last one is scratch): down its columns every access
    would miss the cache.
    """
    places = row_pointer(histogram, chunks)
    for j in range(digits):
        places[j] = 0
    for c in range(chunks):
        counts = row_pointer(histogram, c)
        for j in range(digits):
            places[j] = places[j] + counts[j]
    total = np.uint32(0)
    for j in range(digits):
        count = places[j]
        places[j] = total
        total = np.uint32(total + count)
    for c in range(chunks):
        counts = row_pointer(histogram, c)
        for j in range(digits):
            count = counts[j]
            counts[j] = places[j]
            places[j] = np.uint32(places[j] + count)


@functools.cache
def radix_pass_cpu():
    digest = DIGEST

    @team_kernel
    def radix_pass(
        indices, payload, padding_idx, payload_bits, digit, number, scatter, length, chunks,
        source, target, histogram, counter,
    ):  # fmt: skip
        """Half of pass `number`: digits are counted, or (scatter) words go from `source` to their
        places in `target`.  Few values in each loop: those that LLVM keeps on the stack seem, half
        of the time, to be overwritten by a word on its way out, and the processor waits."""
        _ = digest
        low = np.uint64(payload_bits)
        digits = 1 << digit
        digit_mask = np.uint64(digits - 1)
        shift = low + np.uint64(number * digit)
        index, load, words, out = first(indices), first(payload), first(source), first(target)
        while True:
            c = next_chunk(counter, 0)
            if c >= chunks:
                break
            begin, end = c * length // chunks, (c + 1) * length // chunks
            places = row_pointer(histogram, c)
            if not scatter:
                for j in range(digits):
                    places[j] = 0
            if number > 0:
                for k in range(begin, end):
                    word = words[k]
                    place = _next_place(places, np.int64((word >> shift) & digit_mask))
                    if scatter:
                        out[place] = word
            elif not scatter:
                for k in range(begin, end):
                    if index[k] != padding_idx:
                        _next_place(places, np.int64(np.uint64(index[k]) & digit_mask))
            elif payload.shape[0] > 0:
                for k in range(begin, end):
                    key = np.uint64(index[k])
                    if index[k] != padding_idx:
                        place = _next_place(places, np.int64(key & digit_mask))
                        out[place] = (key << low) | np.uint64(load[k])
            else:
                for k in range(begin, end):
                    key = np.uint64(index[k])
                    if index[k] != padding_idx:
                        place = _next_place(places, np.int64(key & digit_mask))
                        out[place] = (key << low) | np.uint64(k)
            if next_chunk(counter, 1) == chunks - 1 and not scatter:
                place_digits(histogram, chunks, digits)

    return radix_pass


@functools.cache
def segments_cpu():
    digest = DIGEST

    @team_kernel
    def segments(words, payload_bits, chunks, step, firsts, counter, payloads, unique, starts):
        """Cut sorted words.  Step 0: firsts[c] = how many unique keys begin before chunk c, for c
        up to `chunks`.  Step 1: the outputs, but for the last of `starts`; long enough."""
        _ = digest
        length = words.shape[0]
        low = np.uint64(payload_bits)
        payload_mask = (_ONE << low) - _ONE
        sorted_words, payload = first(words), first(payloads)
        key_of, start_of = first(unique), first(starts)
        while True:
            c = next_chunk(counter, 0)
            if c >= chunks:
                break
            begin, end = c * length // chunks, (c + 1) * length // chunks
            u = firsts[c] if step == 1 else 0
            before = _ONE << np.uint64(63)  # no key: payload bits were shifted out
            if begin > 0:
                before = sorted_words[begin - 1] >> low
            for k in range(begin, end):
                word = sorted_words[k]
                key = word >> low
                if step == 1:
                    payload[k] = np.int64(word & payload_mask)
                    if key != before:
                        key_of[u] = np.int64(key)
                        start_of[u] = k
                u += 1 if key != before else 0
                before = key
            if step == 0:
                firsts[c] = u
                if next_chunk(counter, 1) == chunks - 1:
                    total = 0
                    for i in range(chunks):
                        count = firsts[i]
                        firsts[i] = total
                        total += count
                    firsts[chunks] = total

    return segments
