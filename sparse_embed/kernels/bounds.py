"""Range check of a batch's indices, in one pass.

Shapes   indices (L,) i8 · outside (chunks,) i8: how many of each chunk are out of [0, E)
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from sparse_embed.kernels._jit import DIGEST, cpu_kernel


@functools.cache
def count_outside_cpu():
    digest = DIGEST

    @cpu_kernel
    def count_outside(indices, num_embeddings, padding_idx, outside):
        _ = digest
        length, chunks = indices.shape[0], outside.shape[0]
        limit = np.uint64(num_embeddings)
        for c in prange(chunks):
            count = 0
            for k in range(c * length // chunks, (c + 1) * length // chunks):
                index = indices[k]
                if np.uint64(index) >= limit and index != padding_idx:
                    count += 1
            outside[c] = count

    return count_outside
