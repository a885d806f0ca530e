"""Moving records and changing flags on the device.  Flags as in `kernels/records.py`, and

    PRESENT   the row was brought in from the files (tables laid out by row number)

Shapes   records (S, W) f4 · data (n, W) f4 · slots (n,) i8 · flags (S,) u1
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._jit import DIGEST
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel

PRESENT = np.uint8(32)
_ALL = np.uint8(255)
_NONE = np.uint8(0)


@functools.cache
def gather_records_cuda():
    """data[i] = records[slots[i]]; a thread 16 bytes: W is a multiple of 4 lanes."""
    digest = DIGEST

    @cuda_kernel
    def gather_records(records, slots, data):
        _ = digest
        width = data.shape[1]
        for place in range(cuda.grid(1), data.shape[0] * width, cuda.gridsize(1)):
            i, d = place // width, place % width
            data[i, d] = records[slots[i], d]

    return gather_records


@functools.cache
def scatter_records_cuda():
    """records[slots[i]] = data[i]; slots are distinct."""
    digest = DIGEST

    @cuda_kernel
    def scatter_records(records, slots, data):
        _ = digest
        width = data.shape[1]
        for place in range(cuda.grid(1), data.shape[0] * width, cuda.gridsize(1)):
            i, d = place // width, place % width
            records[slots[i], d] = data[i, d]

    return scatter_records


@functools.cache
def raise_flags_cuda():
    """flags[s] |= put for distinct slots."""
    digest = DIGEST

    @cuda_kernel
    def raise_flags(flags, slots, put):
        _ = digest
        for i in range(cuda.grid(1), slots.shape[0], cuda.gridsize(1)):
            flags[slots[i]] = flags[slots[i]] | put

    return raise_flags


@functools.cache
def turn_flags_cuda():
    """The flag `want` becomes `put`, wherever it is below `limit`."""
    digest = DIGEST

    @cuda_kernel
    def turn_flags(flags, limit, want, put):
        _ = digest
        for s in range(cuda.grid(1), limit, cuda.gridsize(1)):
            if flags[s] & want != _NONE:
                flags[s] = (flags[s] & (_ALL ^ want)) | put

    return turn_flags


@functools.cache
def missing_cuda():
    """marks[i] = 1 where row i of the batch is not PRESENT, else 0; padded positions give 0."""
    digest = DIGEST

    @cuda_kernel
    def missing(flags, rows, padding_idx, marks):
        _ = digest
        for i in range(cuda.grid(1), rows.shape[0], cuda.gridsize(1)):
            row = rows[i]
            marks[i] = _NONE
            if row != padding_idx and flags[row] & PRESENT == _NONE:
                marks[i] = np.uint8(1)

    return missing


@functools.cache
def take_cuda():
    """out[i] = values[places[i]]"""
    digest = DIGEST

    @cuda_kernel
    def take(values, places, out):
        _ = digest
        for i in range(cuda.grid(1), places.shape[0], cuda.gridsize(1)):
            out[i] = values[places[i]]

    return take


@functools.cache
def count_cuda():
    """out[i] = i"""
    digest = DIGEST

    @cuda_kernel
    def count(out):
        _ = digest
        for i in range(cuda.grid(1), out.shape[0], cuda.gridsize(1)):
            out[i] = i

    return count
