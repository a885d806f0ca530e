"""Keys to row numbers, one pass.  out[i, j] = row j of key i

Shapes   states (1, 2) or (L, 2) u8: where MurmurHash3 starts, (seed, seed) or one pair per key
         out (L, k) i8 row numbers, or (L, 2) u8 raw words · signs (L,) i1, or (0,): not wanted
Strings  layout OFFSETS: starts (L+1,) i4/i8; key i is [starts[i], starts[i+1]) after `base`
         layout SPANS: starts (L,) i8 addresses, lengths (L,) i8; `base` is added too (0)
Ids      values (L,) u8, two's complement
Rows     MURMUR3         word 0 = h1, word j = fmix64(h1 + j (h2 | 1)); row = floor(word * E / 2^64)
         THINC, FLORET   words = low and high halves of h1, then of h2; row = word % E
         SKLEARN         h signed 32 bits; row = |h| % E, sign = -1 if h < 0 else +1
         others          row = h % E, unsigned
Output   RAW words, ONE_ROW a key (its own kernel: 2 ns less), or ROWS for any k
Work     chunks of `_CHUNK` keys: no result depends on the number of threads
Twin     `sparse_embed.reference_hashes`
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._bytes import byte_function
from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, team_kernel
from sparse_embed.kernels.fnv import fasttext_hash
from sparse_embed.kernels.murmur import (
    fmix64,
    murmur3_x64_128,
    murmur3_x64_128_two,
    murmur3_x64_128_u64,
    murmur3_x86_32,
    murmur64a,
)

MURMUR3, THINC, FLORET, FASTTEXT, SKLEARN, SPACY, FMIX64, ZCH = range(8)
OFFSETS, SPANS = range(2)
RAW, ONE_ROW, ROWS = range(3)

_CHUNK = 2048
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_LOW = np.uint64(0xFFFFFFFF)
_S32 = np.uint64(32)
_SIGN = np.uint64(0x80000000)
_TWO32 = np.uint64(1 << 32)


@byte_function
def multiply_high(a, b):
    """floor(a b / 2^64) of two u8, by 32-bit halves: Numba has no 128-bit integers.

    0.82 ns against 0.70 ns for LLVM's own i128, and the same lines run in CUDA and in NumPy.
    """
    a_low, a_high = a & _LOW, a >> _S32
    b_low, b_high = b & _LOW, b >> _S32
    middle = a_high * b_low + ((a_low * b_low) >> _S32)
    other = (middle & _LOW) + a_low * b_high
    return a_high * b_high + (middle >> _S32) + (other >> _S32)


@byte_function
def spread_word(h1, h2, j):
    """Word j of a 128-bit hash (u8); word 0 is h1, so more hashes never move the first row."""
    if j == 0:
        return h1
    return fmix64(h1 + np.uint64(j) * (h2 | _ONE))


@byte_function
def half_word(h1, h2, j):
    """32-bit word j < 4 of a 128-bit hash, as u8."""
    h = h1 if j < 2 else h2
    return h & _LOW if (j & 1) == 0 else h >> _S32


@byte_function
def magnitude32(h):
    """|h| of a signed 32-bit hash held in a u8."""
    return (_TWO32 - h) if (h & _SIGN) != _ZERO else h


@functools.cache
def hash_strings_cpu(scheme: int, layout: int, output: int):
    digest = DIGEST

    @team_kernel
    def hash_strings(base, starts, lengths, states, num_embeddings, out, signs, counter):
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        n, k = out.shape
        per_key = np.int64(1) if states.shape[0] > 1 else np.int64(0)
        while True:
            c = next_chunk(counter, 0)
            if c >= (n + _CHUNK - 1) // _CHUNK:
                break
            for i in range(c * _CHUNK, min(n, (c + 1) * _CHUNK)):
                at = base + np.int64(starts[i])
                if layout == OFFSETS:
                    length = np.int64(starts[i + 1]) - np.int64(starts[i])
                else:
                    length = lengths[i]
                h2 = _ZERO
                if scheme == MURMUR3:
                    s = i * per_key
                    h1, h2 = murmur3_x64_128(at, length, states[s, 0], states[s, 1])
                elif scheme == FLORET:
                    h1, h2 = murmur3_x64_128(at, length, states[0, 0], states[0, 1])
                elif scheme == THINC:
                    spacy_id = murmur64a(at, length, _ONE) if length > 0 else _ZERO
                    h1, h2 = murmur3_x64_128_u64(spacy_id, states[0, 0], states[0, 1])
                elif scheme == SPACY:
                    h1 = murmur64a(at, length, _ONE) if length > 0 else _ZERO
                elif scheme == FASTTEXT:
                    h1 = np.uint64(fasttext_hash(at, length))
                else:
                    h1 = np.uint64(murmur3_x86_32(at, length, np.uint32(states[0, 0])))
                if output == RAW:
                    out[i, 0] = h1
                    out[i, 1] = h2
                elif scheme == MURMUR3 and output == ONE_ROW:
                    out[i, 0] = multiply_high(h1, num_embeddings)
                elif scheme == MURMUR3:
                    for j in range(k):
                        out[i, j] = multiply_high(spread_word(h1, h2, j), num_embeddings)
                elif scheme == THINC or scheme == FLORET:  # noqa: SIM109 - pruned at compile time
                    for j in range(k):
                        out[i, j] = half_word(h1, h2, j) % num_embeddings
                elif scheme == SKLEARN:
                    out[i, 0] = magnitude32(h1) % num_embeddings
                    if signs.shape[0] > 0:
                        signs[i] = np.int8(-1) if (h1 & _SIGN) != _ZERO else np.int8(1)
                else:
                    out[i, 0] = h1 % num_embeddings

    return hash_strings


@functools.cache
def hash_ids_cpu(scheme: int, output: int):
    digest = DIGEST

    @team_kernel
    def hash_ids(values, states, num_embeddings, out, counter):
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        n, k = out.shape
        per_key = np.int64(1) if states.shape[0] > 1 else np.int64(0)
        while True:
            c = next_chunk(counter, 0)
            if c >= (n + _CHUNK - 1) // _CHUNK:
                break
            for i in range(c * _CHUNK, min(n, (c + 1) * _CHUNK)):
                h2 = _ZERO
                if scheme == MURMUR3:
                    s = i * per_key
                    h1, h2 = murmur3_x64_128_u64(values[i], states[s, 0], states[s, 1])
                elif scheme == THINC:
                    h1, h2 = murmur3_x64_128_u64(values[i], states[0, 0], states[0, 1])
                elif scheme == ZCH:
                    a, b = murmur3_x64_128_two(values[i], _ZERO, states[0, 0], states[0, 1])
                    h1 = a ^ b
                else:
                    h1 = fmix64(values[i])
                if output == RAW:
                    out[i, 0] = h1
                    out[i, 1] = h2
                elif scheme == MURMUR3 and output == ONE_ROW:
                    out[i, 0] = multiply_high(h1, num_embeddings)
                elif scheme == MURMUR3:
                    for j in range(k):
                        out[i, j] = multiply_high(spread_word(h1, h2, j), num_embeddings)
                elif scheme == THINC:
                    for j in range(k):
                        out[i, j] = half_word(h1, h2, j) % num_embeddings
                else:
                    out[i, 0] = h1 % num_embeddings

    return hash_ids
