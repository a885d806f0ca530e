"""Texts to tokens to hashes, and hashes to the rows of words and word n-grams.

Shapes   texts as in `kernels.hashing` (base, starts, lengths, layout) · counts (B,) i8: tokens
         offsets (B + 1,) i8 of tokens or of rows · hashes (T,) u8: one per token
Tokens   the bytes between ASCII whitespace and NUL (fastText's readWord); with `end_of_line` the
         token "</s>" closes each text
counter  `_jit.new_counter` of chunks of `CHUNK` texts
closing  address of the bytes of "</s>"
Rows     a text's words in order, then for each start i its n-grams of 2, 3, .. max_n words
FASTTEXT hash = the 32-bit hash, sign-extended; h = h * 116049371 + next hash; row = h % buckets
MURMUR3  hash = h1; h = fmix64(h * 9E3779B97F4A7C15 + next hash); row = h * buckets >> 64
Source   fastText, src/dictionary.cc, Dictionary::addWordNgrams, getLine, readWord
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._bytes import byte_function, load_u8
from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, team_kernel
from sparse_embed.kernels.fnv import fasttext_hash
from sparse_embed.kernels.hashing import FASTTEXT, OFFSETS, multiply_high
from sparse_embed.kernels.murmur import fmix64, murmur3_x64_128

CHUNK = 64
_PRIME = np.uint64(116049371)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW32 = np.uint64(0xFFFFFFFF)
END_OF_LINE = np.frombuffer(b"</s>", np.uint8).copy()


@byte_function
def _is_space(byte):
    """space, \\t, \\n, \\v, \\f, \\r and NUL"""
    return byte == 32 or 9 <= byte <= 13 or byte == 0


@byte_function
def _sign_extended(h):
    """A 32-bit hash as the u8 that C makes of an int32."""
    return np.uint64(np.int64(np.int32(np.uint32(h))))


@functools.cache
def count_tokens_cpu(layout: int):
    digest = DIGEST

    @team_kernel
    def count_tokens(base, starts, lengths, end_of_line, counter, counts):
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        n = counts.shape[0]
        while True:
            first = next_chunk(counter, 0) * CHUNK
            if first >= n:
                break
            for i in range(first, min(n, first + CHUNK)):
                at = base + np.int64(starts[i])
                end = base + np.int64(starts[i + 1]) if layout == OFFSETS else at + lengths[i]
                tokens = end_of_line
                inside = False
                while at < end:
                    space = _is_space(load_u8(at))
                    if inside and space:
                        inside = False
                    elif not inside and not space:
                        inside = True
                        tokens += 1
                    at += 1
                counts[i] = tokens

    return count_tokens


@functools.cache
def hash_tokens_cpu(layout: int, scheme: int):
    digest = DIGEST

    @team_kernel
    def hash_tokens(base, starts, lengths, closing, seed, offsets, counter, hashes):
        digest  # noqa: B018
        n = offsets.shape[0] - 1
        while True:
            first = next_chunk(counter, 0) * CHUNK
            if first >= n:
                break
            for i in range(first, min(n, first + CHUNK)):
                if offsets[i] == offsets[i + 1]:  # no tokens, or missing: not read
                    continue
                at = base + np.int64(starts[i])
                end = base + np.int64(starts[i + 1]) if layout == OFFSETS else at + lengths[i]
                for t in range(offsets[i], offsets[i + 1]):
                    while at < end and _is_space(load_u8(at)):
                        at += 1
                    begin = at
                    while at < end and not _is_space(load_u8(at)):
                        at += 1
                    length = at - begin
                    if length == 0:
                        begin, length = closing, np.int64(4)
                    if scheme == FASTTEXT:
                        hashes[t] = _sign_extended(fasttext_hash(begin, length))
                    else:
                        hashes[t] = murmur3_x64_128(begin, length, seed, seed)[0]

    return hash_tokens


@functools.cache
def combine_tokens_cpu(scheme: int):
    digest = DIGEST

    @team_kernel
    def combine_tokens(
        hashes, tokens, with_words, max_n, buckets, first_row, offsets, counter, indices
    ):  # fmt: skip
        """indices[offsets[i]:offsets[i + 1]] from hashes[tokens[i]:tokens[i + 1]]"""
        digest  # noqa: B018
        n = offsets.shape[0] - 1
        while True:
            first = next_chunk(counter, 0) * CHUNK
            if first >= n:
                break
            for i in range(first, min(n, first + CHUNK)):
                out = offsets[i]
                begin, end = tokens[i], tokens[i + 1]
                if with_words:
                    for t in range(begin, end):
                        if scheme == FASTTEXT:
                            row = np.int64((hashes[t] & _LOW32) % buckets)
                        else:
                            row = np.int64(multiply_high(hashes[t], buckets))
                        indices[out] = first_row + row
                        out += 1
                for t in range(begin, end):
                    h = hashes[t]
                    for u in range(t + 1, min(end, t + max_n)):
                        if scheme == FASTTEXT:
                            h = h * _PRIME + hashes[u]
                            row = np.int64(h % buckets)
                        else:
                            h = fmix64(h * _GOLDEN + hashes[u])
                            row = np.int64(multiply_high(h, buckets))
                        indices[out] = first_row + row
                        out += 1

    return combine_tokens
