"""fastText's 32-bit hash: FNV-1a over SIGN-EXTENDED bytes.

h = 2166136261; for each byte: h = (h ^ uint32(int8(byte))) * 16777619 mod 2^32

A byte of 0x80 or more is xored in as 0xFFFFFF80..FF, so this is not FNV-1a for non-ASCII text.
Source   fastText, src/dictionary.cc, Dictionary::hash
"""

from __future__ import annotations

import numpy as np

from sparse_embed.kernels._bytes import byte_function, load_u8

FNV_BASIS = np.uint32(2166136261)
_PRIME = np.uint32(16777619)


@byte_function
def fnv_byte(h, byte):
    """One step: h u4, byte u1 -> u4."""
    return np.uint32(np.uint32(h ^ np.uint32(np.int32(np.int8(byte)))) * _PRIME)


@byte_function
def fasttext_hash(address, length):
    """u4 of `length` bytes at `address`."""
    h = FNV_BASIS
    for at in range(address, address + length):
        h = fnv_byte(h, load_u8(at))
    return h
