"""Keys to row numbers on the device: the formulas of `kernels/hashing.py`, schemes MURMUR3, FMIX64.

Shapes   states (1, 2) or (L, 2) u8 · values (L,) u8 · data (bytes,) u1 and starts (L+1,) i8: key i
         is data[starts[i]:starts[i+1]] · out (L, k) i8
How      a thread a key.  Strings are read byte by byte: neighbours' bytes share cache lines.
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel
from sparse_embed.kernels.hashing import FMIX64, MURMUR3, multiply_high, spread_word
from sparse_embed.kernels.murmur import _block as mix_block
from sparse_embed.kernels.murmur import _finish as mix_end
from sparse_embed.kernels.murmur import _mix_k1 as mix_k1
from sparse_embed.kernels.murmur import _mix_k2 as mix_k2
from sparse_embed.kernels.murmur import fmix64, murmur3_x64_128_u64

_ZERO = np.uint64(0)
_EIGHT = np.uint64(8)
_WORD = np.int64(8)


@device_function
def _word(data, at, count):
    """The `count` <= 8 bytes at `at`, little-endian."""
    word = _ZERO
    for i in range(count):
        word = word | (np.uint64(data[at + i]) << (np.uint64(i) * _EIGHT))
    return word


@functools.cache
def hash_ids_cuda(scheme: int):
    """out[i, j] = row j of the 8 bytes of values[i]"""
    digest = DIGEST

    @cuda_kernel
    def hash_ids(values, states, num_embeddings, out):
        _ = digest
        k = out.shape[1]
        per_key = 1 if states.shape[0] > 1 else 0
        for i in range(cuda.grid(1), out.shape[0], cuda.gridsize(1)):
            if scheme == MURMUR3:
                s = i * per_key
                h1, h2 = murmur3_x64_128_u64(values[i], states[s, 0], states[s, 1])
                h1, h2 = np.uint64(h1), np.uint64(h2)
                for j in range(k):
                    word = np.uint64(spread_word(h1, h2, j))
                    out[i, j] = np.int64(multiply_high(word, num_embeddings))
            else:
                out[i, 0] = np.int64(np.uint64(fmix64(values[i])) % num_embeddings)

    return hash_ids


@functools.cache
def hash_strings_cuda():
    """out[i, j] = row j of MurmurHash3_x64_128 of key i"""
    digest = DIGEST

    @cuda_kernel
    def hash_strings(data, starts, states, num_embeddings, out):
        _ = digest
        k = out.shape[1]
        per_key = 1 if states.shape[0] > 1 else 0
        for i in range(cuda.grid(1), out.shape[0], cuda.gridsize(1)):
            at, end = starts[i], starts[i + 1]
            length = end - at
            h1, h2 = states[i * per_key, 0], states[i * per_key, 1]
            while end - at >= 16:
                h1, h2 = mix_block(h1, h2, _word(data, at, 8), _word(data, at + 8, 8))
                h1, h2 = np.uint64(h1), np.uint64(h2)
                at += 16
            rest = end - at
            first = rest if rest < _WORD else _WORD
            h1 = h1 ^ np.uint64(mix_k1(_word(data, at, first)))
            h2 = h2 ^ np.uint64(mix_k2(_word(data, at + first, rest - first)))
            h1, h2 = mix_end(h1, h2, length)
            h1, h2 = np.uint64(h1), np.uint64(h2)
            for j in range(k):
                word = np.uint64(spread_word(h1, h2, j))
                out[i, j] = np.int64(multiply_high(word, num_embeddings))

    return hash_strings


SCHEMES = (MURMUR3, FMIX64)
