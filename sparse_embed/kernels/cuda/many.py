"""Many tables and features at once on the device: keys, and columns side by side.

As `kernels/many_bags.py`, but for the place of a gradient: those of all features of one dim lie in
one matrix, and bag b of the feature that stands there at `places[f]` is its row places[f] B + b.

Shapes   indices, bag_ids (L,) i8 · offsets (F B + 1,) i8 · key_base, rows, padding, has_padding,
         places, modes (F,) i8 · keys, bags (L,) i8 · found (6,) i8, zeros: as `batches.survey_cuda`
         key_starts (T + 1,) i8 · unique, out (n,) i8 · num (1,) i8 · cuts (T + 1,) i8
         wide (B, C) f4: columns of the features side by side · flat (B C,) f4: a matrix (B, D) a
         feature, one behind the other · begins, widths, columns (C,) i8: of each column of `wide`,
         the columns of the matrices before its own, those of its own, and which of them it is
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel
from sparse_embed.kernels.lookup import MEAN, bag_scale
from sparse_embed.kernels.many_bags import NO_KEY

_NONE = np.int64(NO_KEY)
_ZERO = np.float32(0)


@functools.cache
def number_keys_cuda():
    """keys and bags of the positions, and what is wrong with them; a thread a position or bag."""
    digest = DIGEST

    @cuda_kernel
    def number_keys(
        indices, offsets, bag_ids, num_bags, key_base, rows, padding, has_padding, places,
        found, keys, bags,
    ):  # fmt: skip
        _ = digest
        length, last = indices.shape[0], offsets.shape[0] - 1
        outside, falls = np.int64(0), np.int64(0)
        for k in range(cuda.grid(1), length, cuda.gridsize(1)):
            bag, index = bag_ids[k], indices[k]
            f = bag // num_bags
            key = key_base[f] + index
            if has_padding[f] != 0 and index == padding[f]:
                key = _NONE
            elif index < 0 or index >= rows[f]:
                outside += 1
            keys[k] = key
            bags[k] = bag + (places[f] - f) * num_bags
        for b in range(cuda.grid(1), last, cuda.gridsize(1)):
            if offsets[b + 1] < offsets[b]:
                falls += 1
        if outside > 0:
            cuda.atomic.add(found, 0, outside)
        if falls > 0:
            cuda.atomic.add(found, 3, falls)
        if cuda.grid(1) == 0:
            found[4] = offsets[0]
            found[5] = offsets[last] - length

    return number_keys


@functools.cache
def scale_bags_cuda():
    """scale[p B + b] of bag b of feature f, where p = order[f]; 1 for sums.  A thread a bag."""
    digest = DIGEST

    @cuda_kernel
    def scale_bags(
        indices, offsets, num_bags, modes, padding, has_padding, order, weights, weight_step, scale
    ):
        _ = digest
        for bag in range(cuda.grid(1), scale.shape[0], cuda.gridsize(1)):
            f = bag // num_bags
            mode, skip, skips = modes[f], padding[f], has_padding[f] != 0
            denominator = _ZERO
            for k in range(offsets[bag], offsets[bag + 1]):
                if not (skips and indices[k] == skip):
                    w = weights[k * weight_step]
                    denominator += w if mode == MEAN else w * w
            scale[bag + (order[f] - f) * num_bags] = bag_scale(denominator, mode)

    return scale_bags


@device_function
def first_not_below(values, length, wanted):
    """The first place of ascending values with at least this one."""
    low, high = np.int64(0), np.int64(length)
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@functools.cache
def cut_keys_cuda():
    """cuts[t] = where the unique keys of table t begin."""
    digest = DIGEST

    @cuda_kernel
    def cut_keys(unique, num, key_starts, cuts):
        _ = digest
        for t in range(cuda.grid(1), cuts.shape[0], cuda.gridsize(1)):
            cuts[t] = first_not_below(unique, num[0], key_starts[t])

    return cut_keys


@functools.cache
def rows_of_keys_cuda():
    """out[u] = the row of a unique key in its table."""
    digest = DIGEST

    @cuda_kernel
    def rows_of_keys(unique, num, key_starts, out):
        _ = digest
        for u in range(cuda.grid(1), num[0], cuda.gridsize(1)):
            key = unique[u]
            t = first_not_below(key_starts, key_starts.shape[0], key + 1) - 1
            out[u] = key - key_starts[t]

    return rows_of_keys


@functools.cache
def arrange_columns_cuda(side_by_side: bool):
    """wide = what is in flat, or flat = what is in wide; a thread a number of `wide`."""
    digest = DIGEST

    @cuda_kernel
    def arrange_columns(flat, wide, begins, widths, columns):
        _ = digest
        num_bags, count = wide.shape[0], wide.shape[1]
        for at in range(cuda.grid(1), num_bags * count, cuda.gridsize(1)):
            b, c = at // count, at % count
            place = begins[c] * num_bags + b * widths[c] + columns[c]
            if side_by_side:
                wide[b, c] = flat[place]
            else:
                flat[place] = wide[b, c]

    return arrange_columns
