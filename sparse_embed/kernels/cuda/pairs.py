"""Interactions of a batch, and which of their shared negatives were taken, on the device.

Formulas, shapes and draws of `kernels/interactions.py` and `mark_taken_cpu`.
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._jit import DIGEST
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel
from sparse_embed.kernels.interactions import permute, took

_ZERO = np.uint8(0)
_ONE = np.uint8(1)


@functools.cache
def sample_pairs_cuda():
    """Arguments as `sample_pairs_cpu`'s; a thread an interaction."""
    digest = DIGEST

    @cuda_kernel
    def sample_pairs(key, start, half_bits, rows, columns, users, items):
        _ = digest
        total = np.uint64(columns.shape[0])
        for k in range(cuda.grid(1), users.shape[0], cuda.gridsize(1)):
            place = np.int64(permute(start + np.uint64(k), total, half_bits, key))
            users[k] = rows[place]
            items[k] = columns[place]

    return sample_pairs


@functools.cache
def mark_taken_cuda():
    """Arguments as `mark_taken_cpu`'s; a thread a pair."""
    digest = DIGEST

    @cuda_kernel
    def mark_taken(size, users, negatives, indptr, columns, bits, marks):
        _ = digest
        number = negatives.shape[1]
        for place in range(cuda.grid(1), marks.shape[0] * number, cuda.gridsize(1)):
            k, m = place // number, place % number
            low, high = indptr[users[k]], indptr[users[k] + 1]
            taken = took(negatives[k // size, m], columns, low, high, bits)
            marks[k, m] = _ONE if taken else _ZERO

    return mark_taken


@functools.cache
def repeat_cuda():
    """out[i] = values[i % n]"""
    digest = DIGEST

    @cuda_kernel
    def repeat(values, out):
        _ = digest
        for i in range(cuda.grid(1), out.shape[0], cuda.gridsize(1)):
            out[i] = values[i % values.shape[0]]

    return repeat
