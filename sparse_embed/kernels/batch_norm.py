"""Batch normalisation of (B, D) vectors, a column at a time, and its gradients.

    mean[d] = sum_b x[b, d] / B        variance[d] = sum_b (x[b, d] - mean[d])^2 / B
    r[d] = 1 / sqrt(variance[d] + eps)     n[b, d] = (x[b, d] - mean[d]) r[d]
    y[b, d] = n[b, d] weight[d] + bias[d]

    dbias[d] = sum_b g[b, d]           dweight[d] = sum_b g[b, d] n[b, d]
    dx[b, d] = weight[d] r[d] (g[b, d] - dbias[d] / B - n[b, d] (dweight[d] / B))    with own stats
    dx[b, d] = weight[d] r[d] g[b, d]                                                with given ones

Shapes   x, y, g, dx (B, D) f4 · all others (D,) f4
Order    over b: from left to right from +0.0; a column never depends on another
Source   Ioffe and Szegedy, Batch Normalization (2015), algorithm 1 and section 3
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk, row_pointer, stack_f32
from sparse_embed.kernels._jit import DIGEST, team_kernel

_LANES = 16  # columns of a task: a cache line
_ZERO = np.float32(0)
_ONE = np.float32(1)


@functools.cache
def batch_norm_cpu():
    digest = DIGEST

    @team_kernel
    def batch_norm(x, weight, bias, eps, own, counter, mean, variance, out):
        """`own`: mean and variance are found here and written; else they are read."""
        _ = digest
        rows, columns = x.shape
        count = np.float32(rows)
        total, rate = stack_f32(16), stack_f32(16)
        while True:
            low = next_chunk(counter, 0) * _LANES
            if low >= columns:
                break
            lanes = min(_LANES, columns - low)
            if own:
                for j in range(lanes):
                    total[j] = _ZERO
                for b in range(rows):
                    source = row_pointer(x, b)
                    for j in range(lanes):
                        total[j] = total[j] + source[low + j]
                for j in range(lanes):
                    mean[low + j] = total[j] / count
                    total[j] = _ZERO
                for b in range(rows):
                    source = row_pointer(x, b)
                    for j in range(lanes):
                        distance = source[low + j] - mean[low + j]
                        total[j] = total[j] + distance * distance
                for j in range(lanes):
                    variance[low + j] = total[j] / count
            for j in range(lanes):
                rate[j] = _ONE / np.float32(math.sqrt(variance[low + j] + eps))
            for b in range(rows):
                for j in range(lanes):
                    d = low + j
                    out[b, d] = (x[b, d] - mean[d]) * rate[j] * weight[d] + bias[d]

    return batch_norm


@functools.cache
def batch_norm_backward_cpu():
    digest = DIGEST

    @team_kernel
    def batch_norm_backward(
        grad, x, weight, eps, own, mean, variance, counter, dx, dweight, dbias
    ):  # fmt: skip
        _ = digest
        rows, columns = x.shape
        count = np.float32(rows)
        rate = stack_f32(16)
        while True:
            low = next_chunk(counter, 0) * _LANES
            if low >= columns:
                break
            lanes = min(_LANES, columns - low)
            for j in range(lanes):
                d = low + j
                dweight[d] = _ZERO
                dbias[d] = _ZERO
                rate[j] = _ONE / np.float32(math.sqrt(variance[d] + eps))
            for b in range(rows):
                for j in range(lanes):
                    d = low + j
                    dbias[d] += grad[b, d]
                    dweight[d] += grad[b, d] * ((x[b, d] - mean[d]) * rate[j])
            for b in range(rows):
                for j in range(lanes):
                    d = low + j
                    g = grad[b, d]
                    if own:
                        n = (x[b, d] - mean[d]) * rate[j]
                        g = g - dbias[d] / count - n * (dweight[d] / count)
                    dx[b, d] = weight[d] * rate[j] * g

    return batch_norm_backward
