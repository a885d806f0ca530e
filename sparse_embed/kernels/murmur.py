"""The murmur family: MurmurHash3 x64_128 and x86_32, MurmurHash64A, the fmix64 finaliser.

Shapes   address i8: where the bytes lie · length i8: how many · h1, h2, seed u8: the initial state
Twin     `sparse_embed.reference_hashes`, plain Python
Source   Austin Appleby, SMHasher (MurmurHash3.cpp, MurmurHash2.cpp), public domain
"""

from __future__ import annotations

import numpy as np

from sparse_embed.kernels._bytes import byte_function, load_few, load_u32, load_u64

_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)
_A1 = np.uint64(0x52DCE729)
_A2 = np.uint64(0x38495AB5)
_F1 = np.uint64(0xFF51AFD7ED558CCD)
_F2 = np.uint64(0xC4CEB9FE1A85EC53)
_FIVE = np.uint64(5)
_S27, _S31, _S33, _S37, _S64 = (np.uint64(s) for s in (27, 31, 33, 37, 64))
_ZERO = np.uint64(0)

_D1 = np.uint32(0xCC9E2D51)
_D2 = np.uint32(0x1B873593)
_D3 = np.uint32(0xE6546B64)
_G1 = np.uint32(0x85EBCA6B)
_G2 = np.uint32(0xC2B2AE35)
_FIVE32 = np.uint32(5)
_S13, _S15, _S16, _S17, _S19 = (np.uint32(s) for s in (13, 15, 16, 17, 19))

_M = np.uint64(0xC6A4A7935BD1E995)
_S47 = np.uint64(47)


@byte_function
def fmix64(h):
    """h (u8): a bijection of 64 bits; MurmurHash3's finaliser, HierarchicalKV's whole hash."""
    h = (h ^ (h >> _S33)) * _F1
    h = (h ^ (h >> _S33)) * _F2
    return h ^ (h >> _S33)


@byte_function
def _mix_k1(k):
    k = k * _C1
    return ((k << _S31) | (k >> _S33)) * _C2


@byte_function
def _mix_k2(k):
    k = k * _C2
    return ((k << _S33) | (k >> _S31)) * _C1


@byte_function
def _block(h1, h2, k1, k2):
    h1 = h1 ^ _mix_k1(k1)
    h1 = ((h1 << _S27) | (h1 >> _S37)) + h2
    h1 = h1 * _FIVE + _A1
    h2 = h2 ^ _mix_k2(k2)
    h2 = ((h2 << _S31) | (h2 >> _S33)) + h1
    return h1, h2 * _FIVE + _A2


@byte_function
def _finish(h1, h2, length):
    h1 = h1 ^ np.uint64(length)
    h2 = h2 ^ np.uint64(length)
    h1 = h1 + h2
    h2 = h2 + h1
    h1 = fmix64(h1)
    h2 = fmix64(h2)
    h1 = h1 + h2
    return h1, h2 + h1


@byte_function
def murmur3_x64_128(address, length, h1, h2):
    """(h1, h2) of `length` bytes; Appleby's function starts from h1 = h2 = seed.

    One flat function: made of seven small ones it takes 0.3 s longer to compile on a first call.
    """
    at = address
    end = address + length
    while end - at >= 16:
        k1 = load_u64(at) * _C1
        k2 = load_u64(at + 8) * _C2
        h1 = h1 ^ (((k1 << _S31) | (k1 >> _S33)) * _C2)
        h1 = (((h1 << _S27) | (h1 >> _S37)) + h2) * _FIVE + _A1
        h2 = h2 ^ (((k2 << _S33) | (k2 >> _S31)) * _C1)
        h2 = (((h2 << _S31) | (h2 >> _S33)) + h1) * _FIVE + _A2
        at += 16
    rest = end - at
    k1 = k2 = _ZERO  # mixing a zero word changes nothing
    if length >= 16:  # the rest is the end of the last 16 bytes, shifted down
        high = load_u64(end - 8)
        if rest > 8:
            shift = np.uint64((16 - rest) * 8)
            k1 = (load_u64(end - 16) >> shift) | (high << (_S64 - shift))
            k2 = high >> shift
        elif rest > 0:
            k1 = high >> np.uint64((8 - rest) * 8)
    elif rest >= 8:
        k1 = load_u64(at)
        if rest > 8:
            k2 = load_u64(end - 8) >> np.uint64((16 - rest) * 8)
    else:
        k1 = load_few(at, rest)
    k1 = k1 * _C1
    k2 = k2 * _C2
    h1 = h1 ^ (((k1 << _S31) | (k1 >> _S33)) * _C2) ^ np.uint64(length)
    h2 = h2 ^ (((k2 << _S33) | (k2 >> _S31)) * _C1) ^ np.uint64(length)
    h1 = h1 + h2
    h2 = h2 + h1
    h1 = (h1 ^ (h1 >> _S33)) * _F1
    h2 = (h2 ^ (h2 >> _S33)) * _F1
    h1 = (h1 ^ (h1 >> _S33)) * _F2
    h2 = (h2 ^ (h2 >> _S33)) * _F2
    h1 = h1 ^ (h1 >> _S33)
    h2 = h2 ^ (h2 >> _S33)
    h1 = h1 + h2
    return h1, h2 + h1


@byte_function
def murmur3_x64_128_u64(key, h1, h2):
    """The same hash of the 8 little-endian bytes of `key` (u8)."""
    return _finish(h1 ^ _mix_k1(key), h2, 8)


@byte_function
def murmur3_x64_128_two(k1, k2, h1, h2):
    """The same hash of one 16-byte block (k1, k2)."""
    h1, h2 = _block(h1, h2, k1, k2)
    return _finish(h1, h2, 16)


@byte_function
def _mix32(k):
    """k u4; every product is cut back to 32 bits at once: Numba widens u4 * u4 to u8."""
    k = np.uint32(k * _D1)
    return np.uint32(np.uint32((k << _S15) | (k >> _S17)) * _D2)


@byte_function
def murmur3_x86_32(address, length, seed):
    """MurmurHash3_x86_32 -> u4; `seed` u4."""
    h = np.uint32(seed)
    at = address
    end = address + length
    while end - at >= 4:
        h = np.uint32(h ^ _mix32(load_u32(at)))
        h = np.uint32((h << _S13) | (h >> _S19))
        h = np.uint32(h * _FIVE32 + _D3)
        at += 4
    if end > at:
        h = np.uint32(h ^ _mix32(np.uint32(load_few(at, end - at))))
    h = np.uint32(h ^ np.uint32(length))
    h = np.uint32(np.uint32(h ^ (h >> _S16)) * _G1)
    h = np.uint32(np.uint32(h ^ (h >> _S13)) * _G2)
    return np.uint32(h ^ (h >> _S16))


@byte_function
def murmur64a(address, length, seed):
    """MurmurHash64A -> u8; `seed` u8."""
    h = seed ^ (np.uint64(length) * _M)
    at = address
    end = address + length
    while end - at >= 8:
        k = load_u64(at) * _M
        h = (h ^ ((k ^ (k >> _S47)) * _M)) * _M
        at += 8
    rest = end - at
    if rest > 0:
        h = (h ^ load_few(at, rest)) * _M
    h = (h ^ (h >> _S47)) * _M
    return h ^ (h >> _S47)
