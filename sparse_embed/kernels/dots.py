"""Gradient of per_sample_weights.

    dots    dots[k] = sum_d grad[bag(k), d] weight[indices[k], d];  0 at padded positions
    sum     gw[k] = dots[k]
    mean    gw[k] = scale (dots[k] - scale S)             S = sum_j w[j] dots[j] over k's bag
    sqrtn   gw[k] = scale (dots[k] - w[k] (scale (scale S)))

Shapes   records, slots, indices, offsets, weights as in `lookup` · grad (B, D) f4
         bag_ids (L,) i8, or (0,): bag(k) = k · dots, out (L,) f4
Order    over columns: 16 lanes and a tree (`reduce`); S: left to right from +0.0
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk, prefetch_row, row_pointer, stack_f32
from sparse_embed.kernels._jit import DIGEST, team_kernel
from sparse_embed.kernels.formats import lanes_of
from sparse_embed.kernels.lookup import MEAN, WEIGHT_ROWS, bag_scale
from sparse_embed.kernels.reduce import dot

_AHEAD = 16
_CHUNK = 1024
_ZERO = np.float32(0)


@functools.cache
def dots_cpu(dim: int, dtype: str):
    digest = DIGEST
    row_of, lanes = WEIGHT_ROWS[dtype], lanes_of(dim, dtype)

    @team_kernel
    def dots(
        records, slots, indices, grad, bag_ids, padding_idx,
        seed, init_kind, init_param, counter, out,
    ):  # fmt: skip
        _ = digest
        num_positions = indices.shape[0]
        scratch = stack_f32(dim)
        while True:
            begin = next_chunk(counter, 0) * _CHUNK
            if begin >= num_positions:
                break
            for k in range(begin, min(num_positions, begin + _CHUNK)):
                prefetch_row(records, slots[min(k + _AHEAD, indices.shape[0] - 1)], lanes)
                if indices[k] == padding_idx:
                    out[k] = _ZERO
                    continue
                bag = bag_ids[k] if bag_ids.shape[0] > 0 else k
                row = row_of(
                    records, slots[k], indices[k], scratch, dim, seed, init_kind, init_param
                )
                out[k] = dot(row_pointer(grad, bag), row, dim)

    return dots


@functools.cache
def weights_grad_cpu():
    digest = DIGEST

    @team_kernel
    def weights_grad(
        dots, indices, offsets, bounds, weights, weight_step, mode, padding_idx, counter, out
    ):
        """Modes mean and sqrtn only: for sum the dots are the answer."""
        _ = digest
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= bounds.shape[0] - 1:
                break
            for b in range(bounds[chunk], bounds[chunk + 1]):
                begin, end = offsets[b], offsets[b + 1]
                denominator, total = _ZERO, _ZERO
                for k in range(begin, end):
                    if indices[k] != padding_idx:
                        w = weights[k * weight_step]
                        denominator += w if mode == MEAN else w * w
                        total += w * dots[k]
                scale = bag_scale(denominator, mode)
                for k in range(begin, end):
                    w = weights[k * weight_step]
                    if indices[k] == padding_idx:
                        out[k] = _ZERO
                    elif mode == MEAN:
                        out[k] = scale * (dots[k] - scale * total)
                    else:
                        out[k] = scale * (dots[k] - w * (scale * (scale * total)))

    return weights_grad
