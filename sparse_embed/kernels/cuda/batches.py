"""What a batch is made of: range check, bag of each position, scale of each bag, dropout.

Shapes   indices (L,) i8 · offsets (B+1,) i8 · weights (L,) f4, or one 1 and a step of 0
         found (6,) i8, all zero before: positions out of range, one more than the largest index
         that is in range and not padding, padded positions, offsets that are less than the one
         before, the first offset, the last one less the number of positions
         bag_ids (L,) i8 · scale (B,) f4 · out (n,) f4 (dropout)
How      a thread a position or a bag.  Counts are integers and may be atomic: they have no order.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel
from sparse_embed.kernels.initialize import GAMMA, mix64
from sparse_embed.kernels.lookup import MEAN, bag_scale

RUN = 8
_ZERO = np.float32(0)
_ONE = np.uint64(1)
_S40 = np.uint64(40)


@functools.cache
def survey_cuda():
    """One pass over a batch: `found` as above."""
    digest = DIGEST

    @cuda_kernel
    def survey(indices, num_embeddings, padding_idx, has_padding, offsets, pooled, found):
        _ = digest
        shared = cuda.shared.array(4, numba.int64)
        thread = cuda.threadIdx.x
        if thread < 4:
            shared[thread] = np.int64(0)
        cuda.syncthreads()
        outside, largest, padded, falls = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for k in range(cuda.grid(1), indices.shape[0], cuda.gridsize(1)):
            index = indices[k]
            if has_padding and index == padding_idx:
                padded += 1
            elif index < 0 or index >= num_embeddings:
                outside += 1
            elif index >= largest:
                largest = index + 1
        for b in range(cuda.grid(1), offsets.shape[0] - 1, cuda.gridsize(1)):
            if offsets[b + 1] < offsets[b]:
                falls += 1
        if outside > 0:
            cuda.atomic.add(shared, 0, outside)
        cuda.atomic.max(shared, 1, largest)
        if padded > 0:
            cuda.atomic.add(shared, 2, padded)
        if falls > 0:
            cuda.atomic.add(shared, 3, falls)
        cuda.syncthreads()
        if thread == 1:
            cuda.atomic.max(found, 1, shared[1])
        elif thread < 4:
            cuda.atomic.add(found, thread, shared[thread])
        if cuda.grid(1) == 0 and pooled:
            found[4] = offsets[0]
            found[5] = offsets[offsets.shape[0] - 1] - indices.shape[0]

    return survey


@device_function
def is_wrong(found):
    """Whether what the survey found is an error: then indices and offsets are not to be used."""
    return found[0] != 0 or found[3] != 0 or found[4] != 0 or found[5] != 0


@device_function
def bag_of(offsets, k, low):
    """The last b >= low with offsets[b] <= k."""
    high = np.int64(offsets.shape[0] - 2)
    while low < high:
        middle = (low + high + 1) >> 1
        if offsets[middle] <= k:
            low = middle
        else:
            high = middle - 1
    return low


@functools.cache
def bag_ids_cuda():
    """bag_ids[k] = the last b with offsets[b] <= k.  A thread takes RUN positions in a row: it
    searches for the first, and again where a bag that is not the next one follows."""
    digest = DIGEST

    @cuda_kernel
    def bag_ids(offsets, out):
        _ = digest
        last = offsets.shape[0] - 1
        for run in range(cuda.grid(1), (out.shape[0] + RUN - 1) // RUN, cuda.gridsize(1)):
            bag = bag_of(offsets, np.int64(run * RUN), np.int64(0))
            end = offsets[bag + 1]
            for i in range(RUN):
                k = run * RUN + i
                if k < out.shape[0]:
                    if k >= end and bag + 1 < last:
                        bag += 1
                        end = offsets[bag + 1]
                        if k >= end:
                            bag = bag_of(offsets, np.int64(k), bag)
                            end = offsets[bag + 1]
                    out[k] = bag

    return bag_ids


@functools.cache
def bag_scales_cuda():
    """Scales of modes mean and sqrtn."""
    digest = DIGEST

    @cuda_kernel
    def bag_scales(indices, offsets, weights, weight_step, mode, padding_idx, scale):
        _ = digest
        for b in range(cuda.grid(1), scale.shape[0], cuda.gridsize(1)):
            denominator = _ZERO
            for k in range(offsets[b], offsets[b + 1]):
                if indices[k] != padding_idx:
                    w = weights[k * weight_step]
                    denominator += w if mode == MEAN else w * w
            scale[b] = bag_scale(denominator, mode)

    return bag_scales


@functools.cache
def dropout_scale_cuda():
    """As `kernels/dropout.py`."""
    digest = DIGEST

    @cuda_kernel
    def dropout_scale(seed, step, threshold, keep, scale):
        _ = digest
        key = mix64(mix64(seed + GAMMA) + step * GAMMA)
        for k in range(cuda.grid(1), scale.shape[0], cuda.gridsize(1)):
            h = mix64(key + (np.uint64(k) + _ONE) * GAMMA)
            scale[k] = _ZERO if (h >> _S40) < threshold else keep

    return dropout_scale
