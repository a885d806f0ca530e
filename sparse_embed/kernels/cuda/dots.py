"""Gradient of per_sample_weights on the device: formulas, shapes, order as in `kernels/dots.py`."""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST
from sparse_embed.kernels.cuda._rows import VIRGIN, first_weight, group_mask, row_shape
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel, sync_lanes, word_at
from sparse_embed.kernels.cuda.formats import FORMATS
from sparse_embed.kernels.cuda.reduce import tree
from sparse_embed.kernels.initialize import row_key
from sparse_embed.kernels.lookup import MEAN, bag_scale

_ZERO = np.float32(0)


@functools.cache
def dots_cuda(dim: int, dtype: str = "float32"):
    """A group of lanes a position; bag_ids as in `backward`: one 0 and a step of 0 when absent."""
    shape = row_shape(dim)
    lanes = shape.lanes
    num_parts = shape.groups * 16
    _, weight_of, settled, first_bits = FORMATS[dtype]
    digest = DIGEST

    @cuda_kernel
    def dots(
        records, slots, indices, grad, bag_ids, bag_step, padding_idx,
        seed, init_kind, init_param, out,
    ):  # fmt: skip
        _ = digest
        parts = cuda.shared.array(num_parts, numba.float32)
        work = cuda.local.array(16, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        at = cuda.threadIdx.x // lanes * 16
        for k in range(cuda.grid(1) // lanes, indices.shape[0], cuda.gridsize(1) // lanes):
            padded = indices[k] == padding_idx
            slot = np.int64(0) if padded else slots[k]
            bag = bag_ids[k * bag_step] + k * (1 - bag_step)
            virgin = not padded and word_at(records, slot) & first_bits == VIRGIN
            key = row_key(seed, indices[k])
            sync_lanes(mask)
            for j in range(lane, 16, lanes):
                total = _ZERO
                if not padded:
                    for d in range(j, dim, 16):
                        value = weight_of(records, slot, d)
                        if virgin:
                            value = settled(first_weight(key, d, init_kind, init_param))
                        total = total + grad[bag, d] * value
                parts[at + j] = total
            sync_lanes(mask)
            if lane == 0:
                out[k] = tree(parts, at, work)

    return dots


@functools.cache
def weights_grad_cuda():
    """A thread a bag.  Modes mean and sqrtn only."""
    digest = DIGEST

    @cuda_kernel
    def weights_grad(dots, indices, offsets, weights, weight_step, mode, padding_idx, out):
        _ = digest
        for b in range(cuda.grid(1), offsets.shape[0] - 1, cuda.gridsize(1)):
            denominator, total = _ZERO, _ZERO
            for k in range(offsets[b], offsets[b + 1]):
                if indices[k] != padding_idx:
                    w = weights[k * weight_step]
                    denominator += w if mode == MEAN else w * w
                    total += w * dots[k]
            scale = bag_scale(denominator, mode)
            for k in range(offsets[b], offsets[b + 1]):
                w = weights[k * weight_step]
                if indices[k] == padding_idx:
                    out[k] = _ZERO
                elif mode == MEAN:
                    out[k] = scale * (dots[k] - scale * total)
                else:
                    out[k] = scale * (dots[k] - w * (scale * (scale * total)))

    return weights_grad
