"""NumPy's fixed-width strings: UCS-4 (`U`) to UTF-8, and the true lengths of `S` items.

Shapes   codes (n, w) u4: the code points of a native `U` array, padded with zeros
         offsets (n + 1,) i8 · buffer (capacity,) u8, capacity >= 4 n w · starts, lengths (n,) i8
Padding  NumPy cannot tell a trailing NUL from padding, so trailing NULs are no part of a key
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._bytes import load_u8
from sparse_embed.kernels._jit import DIGEST, serial_kernel

_LOW6 = np.uint32(0x3F)
_MARK = np.uint32(0x80)


@functools.cache
def encode_ucs4_serial():
    digest = DIGEST

    @serial_kernel
    def encode_ucs4(codes, offsets, buffer):
        """Items encoded; fewer than n when the next one holds a surrogate or no code point."""
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        n, width = codes.shape
        end = 0
        offsets[0] = 0
        for i in range(n):
            used = width
            while used > 0 and codes[i, used - 1] == 0:
                used -= 1
            for j in range(used):
                c = np.uint32(codes[i, j])
                if c < 0x80:
                    buffer[end] = c
                    end += 1
                elif c < 0x800:
                    buffer[end] = (c >> 6) | 0xC0
                    buffer[end + 1] = (c & _LOW6) | _MARK
                    end += 2
                elif c < 0x10000:
                    if 0xD800 <= c < 0xE000:
                        return i
                    buffer[end] = (c >> 12) | 0xE0
                    buffer[end + 1] = ((c >> 6) & _LOW6) | _MARK
                    buffer[end + 2] = (c & _LOW6) | _MARK
                    end += 3
                else:
                    if c > 0x10FFFF:
                        return i
                    buffer[end] = (c >> 18) | 0xF0
                    buffer[end + 1] = ((c >> 12) & _LOW6) | _MARK
                    buffer[end + 2] = ((c >> 6) & _LOW6) | _MARK
                    buffer[end + 3] = (c & _LOW6) | _MARK
                    end += 4
            offsets[i + 1] = end
        return n

    return encode_ucs4


@functools.cache
def trim_nuls_serial():
    digest = DIGEST

    @serial_kernel
    def trim_nuls(base, width, starts, lengths):
        """Spans of the items of an `S` array of item size `width` at address `base`."""
        digest  # noqa: B018
        for i in range(starts.shape[0]):
            start = base + i * width
            end = start + width
            while end > start and load_u8(end - 1) == 0:
                end -= 1
            starts[i] = start
            lengths[i] = end - start

    return trim_nuls
