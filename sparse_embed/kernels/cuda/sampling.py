"""Which interactions a batch holds, and what is drawn against them, on the device.

Formulas, shapes and draws of `kernels/interactions.py`: a thread an interaction or a draw.
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._jit import DIGEST
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel
from sparse_embed.kernels.draws import GOLDEN, mix64
from sparse_embed.kernels.interactions import NEGATIVE, draw_alias


@functools.cache
def sample_shared_cuda():
    """Arguments as `sample_shared_cpu`'s."""
    digest = DIGEST

    @cuda_kernel
    def sample_shared(key, start, alias, negatives):
        _ = digest
        number = np.uint64(alias.shape[0])
        for k in range(cuda.grid(1), negatives.shape[0], cuda.gridsize(1)):
            random = mix64((key ^ NEGATIVE) + (start + np.uint64(k)) * GOLDEN)
            negatives[k] = draw_alias(random, number, alias)

    return sample_shared
