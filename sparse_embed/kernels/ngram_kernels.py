"""Character n-grams of "<word>" to row numbers: fastText's sub-words, and floret's.

Shapes   words as in `kernels.hashing` (base, starts, lengths, layout) · counts (B,) i8: rows a word
         offsets (B + 1,) i8 · indices (offsets[B],) i8
Order    at each start from left to right, n = 1 .. maxn; those with n >= minn, but no lone bracket
         at either end; floret puts the whole "<word>" first, and each n-gram gives num_hashes rows
UTF-8    a character is a byte and the continuation bytes (10xxxxxx) behind it, valid or not
"</s>"   fastText's and floret's end of line: no n-grams
Work     chunks of `CHUNK` words; counter: `_jit.new_counter`
Source   fastText and floret, src/dictionary.cc, Dictionary::computeSubwords
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._bytes import byte_function, copy_bytes, load_u8, load_u32
from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, team_kernel
from sparse_embed.kernels.fnv import FNV_BASIS, fnv_byte
from sparse_embed.kernels.hashing import OFFSETS, half_word
from sparse_embed.kernels.murmur import murmur3_x64_128

CHUNK = 512
_END_OF_LINE = np.uint32(int.from_bytes(b"</s>", "little"))
_OPEN = np.uint8(ord("<"))
_CLOSE = np.uint8(ord(">"))


@byte_function
def _is_continuation(byte):
    return (byte & 0xC0) == 0x80


@functools.cache
def count_ngrams_cpu(layout: int, floret: bool):
    digest = DIGEST

    @team_kernel
    def count_ngrams(base, starts, lengths, minn, maxn, num_hashes, counter, longest, counts):
        """counts[i] = rows of word i; longest[c] = the bytes of chunk c's longest word."""
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        n = counts.shape[0]
        while True:
            c = next_chunk(counter, 0)
            if c >= longest.shape[0]:
                break
            for i in range(c * CHUNK, min(n, (c + 1) * CHUNK)):
                at = base + np.int64(starts[i])
                if layout == OFFSETS:
                    length = np.int64(starts[i + 1]) - np.int64(starts[i])
                else:
                    length = lengths[i]
                longest[c] = max(longest[c], length)
                if length == 4 and load_u32(at) == _END_OF_LINE:
                    counts[i] = 0
                    continue
                characters = 2
                for j in range(length):
                    if not _is_continuation(load_u8(at + j)):
                        characters += 1
                found = 0
                for size in range(minn, maxn + 1):
                    if size == 1:
                        found += characters - 2
                    else:
                        found += max(0, characters - size + 1)
                counts[i] = (found + 1) * num_hashes if floret else found

    return count_ngrams


@functools.cache
def hash_ngrams_cpu(layout: int, floret: bool):
    digest = DIGEST

    @team_kernel
    def hash_ngrams(
        base, starts, lengths, minn, maxn, num_hashes, state, buckets, first_row, longest, offsets,
        counter, indices,
    ):  # fmt: skip
        """indices[offsets[i]:offsets[i + 1]] = the rows of word i."""
        digest  # noqa: B018
        n = offsets.shape[0] - 1
        scratch = np.empty(longest + 2, np.uint8)
        text = np.int64(scratch.ctypes.data)
        while True:
            c = next_chunk(counter, 0)
            if c * CHUNK >= n:
                break
            for i in range(c * CHUNK, min(n, (c + 1) * CHUNK)):
                out = offsets[i]
                if offsets[i + 1] == out:
                    continue
                at = base + np.int64(starts[i])
                if layout == OFFSETS:
                    length = np.int64(starts[i + 1]) - np.int64(starts[i])
                else:
                    length = lengths[i]
                copy_bytes(text + 1, at, length)
                scratch[0] = _OPEN
                scratch[length + 1] = _CLOSE
                end = length + 2
                if floret:
                    h1, h2 = murmur3_x64_128(text, end, state, state)
                    for j in range(num_hashes):
                        indices[out] = first_row + np.int64(half_word(h1, h2, j) % buckets)
                        out += 1
                for begin in range(end):
                    if _is_continuation(scratch[begin]):
                        continue
                    stop = begin
                    h = FNV_BASIS
                    for size in range(1, maxn + 1):
                        if stop >= end:
                            break
                        h = fnv_byte(h, scratch[stop])
                        stop += 1
                        while stop < end and _is_continuation(scratch[stop]):
                            h = fnv_byte(h, scratch[stop])
                            stop += 1
                        if size < minn or (size == 1 and (begin == 0 or stop == end)):
                            continue
                        if floret:
                            h1, h2 = murmur3_x64_128(text + begin, stop - begin, state, state)
                            for j in range(num_hashes):
                                indices[out] = first_row + np.int64(half_word(h1, h2, j) % buckets)
                                out += 1
                        else:
                            indices[out] = first_row + np.int64(np.uint64(h) % buckets)
                            out += 1

    return hash_ngrams


@functools.cache
def copy_bags_cpu():
    digest = DIGEST

    @team_kernel
    def copy_bags(which, from_offsets, from_indices, offsets, counter, indices):
        """Bag i becomes a copy of bag which[i] of the cache; which[i] < 0: left as it is."""
        digest  # noqa: B018
        n = which.shape[0]
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= n:
                break
            for i in range(begin, min(n, begin + CHUNK)):
                w = which[i]
                if w >= 0:
                    source = from_offsets[w]
                    target = offsets[i]
                    for j in range(from_offsets[w + 1] - source):
                        indices[target + j] = from_indices[source + j]

    return copy_bags
