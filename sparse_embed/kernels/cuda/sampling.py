"""Which interactions a batch holds, and what is drawn against them, on the device.

Formulas, shapes and draws of `kernels/interactions.py`: a thread an interaction or a draw.
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._jit import DIGEST
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel
from sparse_embed.kernels.draws import GOLDEN, below, mix64
from sparse_embed.kernels.interactions import (
    ATTEMPTS,
    NEGATIVE,
    draw_alias,
    permute,
    skip_taken,
    took,
)


@functools.cache
def sample_triplets_cuda():
    """Arguments as `sample_triplets_cpu`'s."""
    digest = DIGEST

    @cuda_kernel
    def sample_triplets(
        key, start, half_bits, rows, columns, indptr, catalogue, alias, bits, shift, users, items
    ):
        _ = digest
        total, number = np.uint64(columns.shape[0]), np.uint64(catalogue.shape[0])
        for k in range(cuda.grid(1), users.shape[0], cuda.gridsize(1)):
            place = np.int64(permute(start + np.uint64(k), total, half_bits, key))
            user = np.int64(rows[place])
            users[k] = user
            items[k, 0] = catalogue[columns[place]]
            random = mix64((key ^ NEGATIVE) + (start + np.uint64(k)) * GOLDEN)
            other = draw_alias(random, number, alias)
            low, high = indptr[user], indptr[user + 1]
            tries = 1
            while took(user, other, columns, low, high, bits, shift):
                random = mix64(random ^ NEGATIVE)
                if tries == ATTEMPTS:
                    free = number - np.uint64(high - low)
                    other = skip_taken(np.int64(below(random, free)), columns, low, high)
                    break
                other = draw_alias(random, number, alias)
                tries += 1
            items[k, 1] = catalogue[other]

    return sample_triplets


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
