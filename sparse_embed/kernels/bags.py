"""Bag of each position, and the scale of each bag.

Shapes   offsets (B+1,) i8 · bounds: see `plan.cut_bags` · indices (L,) i8
         weights (L,) f4, or one 1 and a step of 0 · bag_ids (L,) i8
         scale (B,) f4: what the bag's sum is multiplied by (`lookup.bag_scale`), or (0,): not asked
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, team_kernel
from sparse_embed.kernels.lookup import MEAN, bag_scale

CHUNK = 8192
_ZERO = np.float32(0)


@functools.cache
def bags_cpu():
    digest = DIGEST

    @team_kernel
    def bags(
        indices, offsets, bounds, weights, weight_step, mode, padding_idx, counter, bag_ids, scale
    ):
        _ = digest
        chunks = bounds.shape[0] - 1
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            for b in range(bounds[chunk], bounds[chunk + 1]):
                denominator = _ZERO
                for k in range(offsets[b], offsets[b + 1]):
                    bag_ids[k] = b
                    if indices[k] != padding_idx:
                        w = weights[k * weight_step]
                        denominator += w if mode == MEAN else w * w
                if scale.shape[0] > 0:
                    scale[b] = bag_scale(denominator, mode)

    return bags
