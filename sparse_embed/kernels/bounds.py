"""Checks of a batch in one pass: the range of its indices, the order of its offsets.

Shapes   indices (L,) i8 · outside (chunks,) i8: how many of each chunk are out of [0, E)
         offsets (B+1,) i8
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, device_function, team_kernel

PLAIN, PADDED, OUTSIDE = 0, 1, 2
UNLIMITED = np.uint64(2**64 - 1)
"""A limit for indices that were checked before."""


@device_function
def check_chunk(index, begin, end, limit, padding_idx):
    """PADDED: some of indices [begin, end) are padding; OUTSIDE: one is neither that nor below
    `limit`.  index: a pointer."""
    padding = outside = 0
    for k in range(begin, end):
        padding += index[k] == padding_idx
    if limit != UNLIMITED:
        for k in range(begin, end):
            outside += np.uint64(index[k]) >= limit and index[k] != padding_idx
    if outside > 0:
        return OUTSIDE
    return PADDED if padding > 0 else PLAIN


@functools.cache
def count_outside_cpu():
    digest = DIGEST

    @team_kernel
    def count_outside(indices, num_embeddings, padding_idx, counter, outside):
        _ = digest
        length, chunks = indices.shape[0], outside.shape[0]
        limit = np.uint64(num_embeddings)
        while True:
            c = next_chunk(counter, 0)
            if c >= chunks:
                break
            count = 0
            for k in range(c * length // chunks, (c + 1) * length // chunks):
                index = indices[k]
                if np.uint64(index) >= limit and index != padding_idx:
                    count += 1
            outside[c] = count

    return count_outside
