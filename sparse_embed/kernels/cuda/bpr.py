"""Bayesian personalised ranking on the device: formulas, shapes, order of `kernels/bpr.py`.

Bits   the CPU's: sums over columns in 16 lanes and a tree, e^x and ln of `kernels/exponential.py`
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST
from sparse_embed.kernels.bpr import ONE, ZERO, penalty, slope_and_loss
from sparse_embed.kernels.cuda._rows import RowShape, group_mask
from sparse_embed.kernels.cuda._shim import SIMULATED, cuda, cuda_kernel
from sparse_embed.kernels.cuda.reduce import group_dot

# Rows of D + 1 columns do not begin at 16 bytes: a thread a column, and the 16 lanes of the sums.
LANES = RowShape(1, 1, 2 if SIMULATED else 16, 1)


@functools.cache
def differences_cuda():
    """kernel(items, rows, opponents, out): out (B, D+1) = q_i - q_j of each triplet.

    Shapes as in `bpr_gradients_cpu`, here and below.
    """
    digest = DIGEST

    @cuda_kernel
    def differences(items, rows, opponents, out):
        _ = digest
        batch, width = out.shape
        for place in range(cuda.grid(1), batch * width, cuda.gridsize(1)):
            k, d = place // width, place % width
            out[k, d] = items[rows[k], d] - items[rows[batch + max(opponents[k], 0)], d]

    return differences


@functools.cache
def slopes_cuda(dim: int):
    """kernel(users, bags, differences, opponents, shares, losses): shares[k] = -g of triplet k, and
    its loss, f4; 0 where there is no opponent.

    A group of lanes a triplet.
    """
    lanes, groups = LANES.lanes, LANES.groups
    num_parts = groups * 16
    digest = DIGEST

    @cuda_kernel
    def slopes(users, bags, differences, opponents, shares, losses):
        _ = digest
        parts = cuda.shared.array(num_parts, numba.float32)
        work = cuda.local.array(16, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        at = cuda.threadIdx.x // lanes * 16
        for k in range(cuda.grid(1) // lanes, losses.shape[0], cuda.gridsize(1) // lanes):
            u = bags[k]
            x = group_dot(users, u, differences, k, parts, at, work, lane, lanes, mask, dim)
            g, loss = slope_and_loss(x + differences[k, dim])
            if lane == 0:
                shares[k] = -g if opponents[k] >= 0 else ZERO
                losses[k] = loss if opponents[k] >= 0 else ZERO

    return slopes


@functools.cache
def user_sums_cuda():
    """kernel(reg, starts, users, differences, shares, user_grad): a thread a number."""
    digest = DIGEST

    @cuda_kernel
    def user_sums(reg, starts, users, differences, shares, user_grad):
        _ = digest
        number, width = user_grad.shape
        for place in range(cuda.grid(1), number * width, cuda.gridsize(1)):
            u, d = place // width, place % width
            total = ZERO
            if d < width - 1:
                total = total + penalty(reg, starts[u + 1] - starts[u]) * users[u, d]
                for k in range(starts[u], starts[u + 1]):
                    total = total + shares[k] * differences[k, d]
            user_grad[u, d] = total

    return user_sums


@functools.cache
def upstream_cuda():
    """kernel(users, bags, opponents, firsts, lasts, shares, upstream)

    users (U, D+1), and behind them the gradients by the negatives: m stands against some of the
    triplets [firsts[m], lasts[m]).  shares of negatives become 1.  A thread a number.
    """
    digest = DIGEST

    @cuda_kernel
    def fill(users, bags, opponents, firsts, lasts, shares, upstream):
        _ = digest
        number, width = users.shape
        batch = opponents.shape[0]
        for place in range(cuda.grid(1), upstream.shape[0] * width, cuda.gridsize(1)):
            row, d = place // width, place % width
            m = row - number
            if m < 0:
                upstream[row, d] = users[row, d] if d < width - 1 else ONE
                continue
            total = ZERO
            for k in range(firsts[m], lasts[m]):
                if opponents[k] == m:
                    value = users[bags[k], d] if d < width - 1 else ONE
                    total = total - shares[k] * value
            upstream[row, d] = total
            if d == 0:
                shares[batch + m] = ONE

    return fill


@functools.cache
def penalize_cuda():
    """As `penalize_cpu`; a thread a number."""
    digest = DIGEST

    @cuda_kernel
    def penalize(reg, starts, rows, grad):
        _ = digest
        width = rows.shape[1]
        for place in range(cuda.grid(1), grad.shape[0] * width, cuda.gridsize(1)):
            v, d = place // width, place % width
            grad[v, d] = grad[v, d] + penalty(reg, starts[v + 1] - starts[v]) * rows[v, d]

    return penalize


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
