"""Pooled lookup in many tables at once.

    out[f][b] = scale[f, b] * sum_k w[k] weight(key[k])      k in bag b of feature f
    max         the largest of each column; the first k wins

Shapes   keys (L,) i8, offsets (F B + 1,) i8, scale by place or one 1 and a step of 0: `many_bags`
         records_at (L,) i8: see `many_find`; 0 is left out · bounds: see `plan.cut_bags`
         weights (L,) f4, or one 1 and a step of 0
         of a feature: dims, modes, base (first key of its table), seeds (u8), init_kinds,
         init_params (f4), out_at (address of its first bag), out_step (bytes from bag to bag)
Order    as `lookup.pool`, of which this gives the bits.  A kernel takes the features whose tables
         have its `dim` columns, and passes over the others.
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._addresses import f32_at, prefetch_at
from sparse_embed.kernels._intrinsics import bits, first, next_chunk, stack_f32
from sparse_embed.kernels._jit import DIGEST, device_function, team_kernel
from sparse_embed.kernels.initialize import init_row
from sparse_embed.kernels.lanes import add_scaled_row, copy_row, store_scaled_row, zero_row
from sparse_embed.kernels.lookup import MAX

_AHEAD = 16
_VIRGIN = np.uint32(0)


@device_function
def weights_at(address, row, scratch, dim, seed, init_kind, init_param):
    """Pointer to the weights of a row: in its record, or generated into `scratch`."""
    pointer = f32_at(address)
    if bits(pointer[0]) == _VIRGIN:
        init_row(scratch, dim, seed, row, init_kind, init_param)
        pointer = scratch
    return pointer


@functools.cache
def pool_many_cpu(dim: int):
    digest = DIGEST

    @team_kernel
    def pool_many(
        records_at, keys, offsets, bounds, num_bags, place_bits,
        weights, weight_step, scale, scale_step,
        dims, modes, base, seeds, init_kinds, init_params, out_at, out_step, counter,
    ):  # fmt: skip
        _ = digest
        last = keys.shape[0] - 1
        chunks = bounds.shape[0] - 1
        address, key, offset = first(records_at), first(keys), first(offsets)
        weight, factor = first(weights), first(scale)
        total = stack_f32(dim)
        scratch = stack_f32(dim)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            bag, end = bounds[chunk], bounds[chunk + 1]
            while bag < end:
                f = bag // num_bags
                stop = min(end, (f + 1) * num_bags)
                if dims[f] != dim:
                    bag = stop
                    continue
                mode, first_key = modes[f], base[f]
                seed, init_kind, init_param = seeds[f], init_kinds[f], init_params[f]
                place = (f << place_bits) + bag - f * num_bags
                to = out_at[f] + (bag - f * num_bags) * out_step[f]
                for b in range(bag, stop):
                    target = f32_at(to)
                    zero_row(total, dim)
                    none = True
                    for k in range(offset[b], offset[b + 1]):
                        prefetch_at(address[min(k + _AHEAD, last)], dim, 0)
                        if address[k] == 0:
                            continue
                        row = weights_at(
                            address[k], key[k] - first_key, scratch, dim,
                            seed, init_kind, init_param,
                        )  # fmt: skip
                        if mode != MAX:
                            add_scaled_row(total, row, weight[k * weight_step], dim)
                        elif none:
                            copy_row(total, row, dim)
                        else:
                            for d in range(dim):
                                total[d] = row[d] if row[d] > total[d] else total[d]
                        none = False
                    store_scaled_row(target, total, factor[place * scale_step], dim)
                    to += out_step[f]
                    place += 1
                bag = stop

    return pool_many
