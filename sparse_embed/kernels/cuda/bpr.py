"""Bayesian personalised ranking on the device: formulas, shapes, order of `kernels/bpr.py`.

Bits   the CPU's: sums over columns in 16 lanes and a tree, e^x and ln of `kernels/exponential.py`
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST
from sparse_embed.kernels.bpr import ONE, ZERO, by_item, by_user, slope_and_loss
from sparse_embed.kernels.cuda._rows import RowShape, group_mask
from sparse_embed.kernels.cuda._shim import SIMULATED, cuda, cuda_kernel
from sparse_embed.kernels.cuda.reduce import group_dot

# Rows of D + 1 columns do not begin at 16 bytes: a thread a column, and the 16 lanes of the sums.
LANES = RowShape(1, 1, 2 if SIMULATED else 16, 1)


@functools.cache
def bpr_gradients_cuda(dim: int):
    """kernel(reg, users, differences, losses): as `bpr_gradients_cpu`, losses (B,) f4, one each.

    A group of lanes a triplet.
    """
    lanes, groups = LANES.lanes, LANES.groups
    num_parts = groups * 16
    digest = DIGEST

    @cuda_kernel
    def bpr_gradients(reg, users, differences, losses):
        _ = digest
        parts = cuda.shared.array(num_parts, numba.float32)
        work = cuda.local.array(16, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        at = cuda.threadIdx.x // lanes * 16
        for k in range(cuda.grid(1) // lanes, users.shape[0], cuda.gridsize(1) // lanes):
            bias = differences[k, dim]
            x = bias + group_dot(users, k, differences, k, parts, at, work, lane, lanes, mask, dim)
            g, loss = slope_and_loss(x)
            for d in range(lane, dim, lanes):
                user, item = users[k, d], differences[k, d]
                users[k, d] = by_item(reg, g, user, item)
                differences[k, d] = by_user(reg, g, user, item)
            if lane == 0:
                losses[k] = loss
                users[k, dim] = by_item(reg, g, ONE, bias)
                differences[k, dim] = ZERO

    return bpr_gradients


@functools.cache
def sum_losses_cuda():
    """kernel(losses, size, sums): sums (chunks,) f8 of `size` losses each, from left to right.

    A thread a chunk.
    """
    digest = DIGEST

    @cuda_kernel
    def sum_losses(losses, size, sums):
        _ = digest
        for chunk in range(cuda.grid(1), sums.shape[0], cuda.gridsize(1)):
            total = np.float64(0)
            for k in range(chunk * size, min(losses.shape[0], (chunk + 1) * size)):
                total += np.float64(losses[k])
            sums[chunk] = total

    return sum_losses


@functools.cache
def scale_columns_cuda():
    """kernel(rows, scale): rows (B, D+1) times scale (B, D), in place, but for the last column."""
    digest = DIGEST

    @cuda_kernel
    def scale_columns(rows, scale):
        _ = digest
        dim = scale.shape[1]
        for place in range(cuda.grid(1), scale.shape[0] * dim, cuda.gridsize(1)):
            k, d = place // dim, place % dim
            rows[k, d] = rows[k, d] * scale[k, d]

    return scale_columns
