"""The bags of many features, numbered and checked in one pass.

    bag      f B + b: bag b of feature f, feature-major, as offsets count them
    key      base[f] + index: one number for (table, row), so that one sort merges all tables;
             NO_KEY at padded positions
    place    f << place_bits | b: where the position's upstream gradient is found; b < 2^place_bits
    scale    by what the sum of a bag is multiplied (`lookup.bag_scale`), by the feature's mode

Shapes   indices (L,) i8 · offsets (F B + 1,) i8 · bounds: see `plan.cut_bags`
         base (F,) i8 · rows (F,) u8: rows of the feature's table · padding (F,) i8, has_padding
         (F,) u1 · mode (F,) i8 · weights (L,) f4, or one 1 and a step of 0
         keys, places (L,) i8 · scale (F << place_bits,) f4, by place, or (0,): not asked
         outside (chunks,) i8: how many indices of a chunk are out of range
Order    of the sum of weights: left to right, as `bags`
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import first, next_chunk
from sparse_embed.kernels._jit import DIGEST, team_kernel
from sparse_embed.kernels.lookup import MEAN, bag_scale

CHUNK = 1024  # as a lookup's: bags are cut once
NO_KEY = -1
_NONE = np.int64(NO_KEY)
_ZERO = np.float32(0)


@functools.cache
def number_bags_cpu():
    digest = DIGEST

    @team_kernel
    def number_bags(
        indices, offsets, bounds, num_bags, place_bits, base, rows, padding, has_padding, mode,
        weights, weight_step, counter, keys, places, scale, outside,
    ):  # fmt: skip
        _ = digest
        chunks, scaled = bounds.shape[0] - 1, scale.shape[0] > 0
        index, offset, weight = first(indices), first(offsets), first(weights)
        key_of, place_of, factor = first(keys), first(places), first(scale)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            bad = 0
            bag, end = bounds[chunk], bounds[chunk + 1]
            while bag < end:
                f = bag // num_bags
                stop = min(end, (f + 1) * num_bags)
                first_key, limit, how = base[f], rows[f], mode[f]
                skip, skips = padding[f], has_padding[f] != 0
                place = (f << place_bits) + bag - f * num_bags
                for b in range(bag, stop):
                    begin, beyond = offset[b], offset[b + 1]
                    for k in range(begin, beyond):
                        key = index[k]
                        place_of[k] = place
                        if skips and key == skip:
                            key_of[k] = _NONE
                        else:
                            bad += np.int64(np.uint64(key) >= limit)
                            key_of[k] = first_key + key
                    if scaled:
                        denominator = _ZERO
                        for k in range(begin, beyond):
                            if key_of[k] != _NONE:
                                w = weight[k * weight_step]
                                denominator += w if how == MEAN else w * w
                        factor[place] = bag_scale(denominator, how)
                    place += 1
                bag = stop
            outside[chunk] = bad

    return number_bags
