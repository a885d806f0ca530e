"""Sums over the columns of a row on the device: the 16 lanes and the tree of `kernels/reduce.py`.

A group's thread t sums the lanes j = t, t + threads, ... < 16 of the contract, columns j, j + 16,
...; the 16 sums meet in shared memory, and every thread of the group adds them up the same tree.
"""

from __future__ import annotations

import numpy as np

from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.cuda._shim import sync_lanes

_ZERO = np.float32(0)


@device_function
def tree(parts, at, work):
    """The sum of parts[at:at + 16]; `work` (16,) f4 is this thread's own."""
    for j in range(8):
        work[j] = parts[at + j] + parts[at + j + 8]
    for j in range(4):
        work[j] = work[j] + work[j + 4]
    for j in range(2):
        work[j] = work[j] + work[j + 2]
    return work[0] + work[1]


@device_function
def group_sum_of_squares(values, at, parts, parts_at, work, lane, lanes, mask, dim):
    """sum_d values[at + d]^2, the same in every thread of the group; all of them call."""
    sync_lanes(mask)  # values are there, and nobody still reads parts
    for j in range(lane, 16, lanes):
        total = _ZERO
        for d in range(j, dim, 16):
            total = total + values[at + d] * values[at + d]
        parts[parts_at + j] = total
    sync_lanes(mask)
    return tree(parts, parts_at, work)


@device_function
def group_dot(a, i, b, k, parts, parts_at, work, lane, lanes, mask, dim):
    """sum_d a[i, d] b[k, d], the same in every thread of the group; all of them call."""
    sync_lanes(mask)
    for j in range(lane, 16, lanes):
        total = _ZERO
        for d in range(j, dim, 16):
            total = total + a[i, d] * b[k, d]
        parts[parts_at + j] = total
    sync_lanes(mask)
    return tree(parts, parts_at, work)
