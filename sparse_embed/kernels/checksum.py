"""XXH64 of a buffer, and of its 1 MiB blocks in parallel.

Shapes   words (n,) u8: the bytes as little-endian 64-bit words (lengths are multiples of 8 here)
         digests (blocks,) u8: one digest per block of `block_words` words, the last one shorter
Source   XXH64, Yann Collet's specification (xxHash, doc/xxhash_spec.md), for inputs of 8 n bytes
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, device_function, serial_kernel, team_kernel

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_ZERO = np.uint64(0)
_EIGHT = np.uint64(8)
_S64 = np.uint64(64)


@device_function
def _rotl(x, r):
    return (x << np.uint64(r)) | (x >> (_S64 - np.uint64(r)))


@device_function
def round_of(acc, word):
    """A lane after one more word."""
    return _rotl(acc + word * _P2, 31) * _P1


@device_function
def _merge(h, acc):
    return (h ^ round_of(_ZERO, acc)) * _P1 + _P4


@device_function
def start(seed):
    """The four lanes before the first stripe of four words."""
    return seed + _P1 + _P2, seed + _P2, seed, seed - _P1


@device_function
def merged(a, b, c, d):
    """The four lanes after the last stripe, as one."""
    h = _rotl(a, 1) + _rotl(b, 7) + _rotl(c, 12) + _rotl(d, 18)
    return _merge(_merge(_merge(_merge(h, a), b), c), d)


@device_function
def avalanche(h):
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@device_function
def _xxh64(words, begin, end, seed):
    n = end - begin
    i = begin
    if n >= 4:
        a, b, c, d = start(seed)
        while i + 4 <= end:
            a = round_of(a, words[i])
            b = round_of(b, words[i + 1])
            c = round_of(c, words[i + 2])
            d = round_of(d, words[i + 3])
            i += 4
        h = merged(a, b, c, d)
    else:
        h = seed + _P5
    h = h + np.uint64(n) * _EIGHT
    while i < end:
        h = _rotl(h ^ round_of(_ZERO, words[i]), 27) * _P1 + _P4
        i += 1
    return avalanche(h)


@functools.cache
def xxh64_cpu():
    digest = DIGEST

    @serial_kernel
    def xxh64(words, seed):
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        return _xxh64(words, np.int64(0), words.shape[0], seed)

    return xxh64


@functools.cache
def block_digests_cpu():
    digest = DIGEST

    @team_kernel
    def block_digests(words, block_words, seed, digests, counter):
        digest  # noqa: B018
        while True:
            b = next_chunk(counter, 0)
            if b >= digests.shape[0]:
                break
            end = min((b + 1) * block_words, words.shape[0])
            digests[b] = _xxh64(words, b * block_words, end, seed)

    return block_digests


@functools.cache
def block_digests_serial():
    """The same for a background thread, which must not enter Numba's thread pool."""
    digest = DIGEST

    @serial_kernel
    def block_digests(words, block_words, seed, digests, _counter):
        digest  # noqa: B018
        for b in range(digests.shape[0]):
            end = min((b + 1) * block_words, words.shape[0])
            digests[b] = _xxh64(words, b * block_words, end, seed)

    return block_digests
