"""Arrow's string views to spans: where each string lies, without moving a byte.

Shapes   views i8: address of n 16-byte views · buffers (k,) i8: addresses of the data buffers
         missing (n,) bool, or (0,) · starts, lengths (n,) i8
View     i4 length; up to 12 bytes follow inline, else 4 bytes prefix, i4 buffer number, i4 offset
Missing  a null's view may hold anything: it becomes an empty span
Source   Arrow columnar format, "Variable-size Binary View Layout"
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._bytes import load_u32
from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, team_kernel

_CHUNK = 4096
_INLINE = 12


@functools.cache
def spans_of_views_cpu():
    digest = DIGEST

    @team_kernel
    def spans_of_views(views, buffers, missing, counter, starts, lengths):
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        n = starts.shape[0]
        with_nulls = missing.shape[0] > 0
        while True:
            begin = next_chunk(counter, 0) * _CHUNK
            if begin >= n:
                break
            for i in range(begin, min(n, begin + _CHUNK)):
                view = views + i * 16
                starts[i] = view + 4
                lengths[i] = 0
                if with_nulls and missing[i]:
                    continue
                length = np.int64(load_u32(view))
                lengths[i] = length
                if length > _INLINE:
                    offset = np.int64(load_u32(view + 12))
                    starts[i] = buffers[np.int64(load_u32(view + 8))] + offset

    return spans_of_views
