"""Fused backward and optimizer step on the device: formulas and order as in `kernels/update.py`.

    update_columns   SGD, Adagrad, LazyAdam without a norm: each column on its own, all in registers
    update_rows      what needs a sum over the columns (row-wise states, clip_norm): the gradient
                     of a row is kept in shared memory, in `scratch` beyond D = 1024

Shapes   scalars: nine f4, the places of `update` · rounding_key u8: of seed and step · slots (n,)
         i8 of the unique rows [u0, u0 + limit), as far as there are so many · others as in
         `backward` · scratch (groups of the grid * D,) f4, or (1,)
How      what is known of the next row, and the record of this one, are asked for before the
         gradient is added, so that a row costs one wait for memory and not six in a row
Narrow   as on the CPU: widened into registers, moved there, rounded back (`formats`)
Virgin   every lane of a group has looked before one of them stores
"""

from __future__ import annotations

import functools
import math

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.adam import adam_moment
from sparse_embed.kernels.cuda._rows import (
    NEGATIVE_ZERO,
    VIRGIN,
    group_mask,
    init_tile,
    load_tile,
    row_shape,
)
from sparse_embed.kernels.cuda._shim import IN_FLIGHT, cuda, cuda_kernel, sync_lanes, word_at
from sparse_embed.kernels.cuda.backward import HOT, sum_entries
from sparse_embed.kernels.cuda.reduce import group_sum_of_squares
from sparse_embed.kernels.cuda.rules import RULES, fields_of
from sparse_embed.kernels.formats import row_noise_key
from sparse_embed.kernels.plan import BLOCK
from sparse_embed.kernels.update import CLIP_NORM, CLIP_VALUE, FILL

NAMES = ("sgd", "adagrad", "lazy_adam", "row_wise_adagrad", "row_wise_adam")
SHARED_COLUMNS = 1024
_IN_FLIGHT = 2  # of `update_columns`: 18 registers fewer than with 4, and a tenth faster (H200)
_DIRTY = np.uint8(1)
_ZERO = np.float32(0)
_INFINITY = np.float32(np.inf)


@device_function
def clip_by_value(g, clip_value):
    """One value within [-clip_value, clip_value]; NaN stays NaN."""
    g = clip_value if g > clip_value else g
    return -clip_value if g < -clip_value else g


@device_function
def written(w, column):
    """A weight as it is stored: +0.0 in column 0 would mean virgin."""
    return NEGATIVE_ZERO if column == 0 and w == _ZERO else w


@device_function
def row_count(num, u0, limit):
    """Rows of [u0, u0 + limit) that there are."""
    rest = num[0] - u0
    return limit if limit < rest else rest


@device_function
def segment_of(slots, starts, u, u0, count):
    """The slot of unique row u0 + u, where its entries begin and end."""
    if u < count:
        at = np.uint64(u0 + u)
        return slots[np.uint64(u)], starts[at], starts[at + np.uint64(1)]
    return np.int64(0), np.int64(0), np.int64(0)


@device_function
def sum_tile(
    total, block, stage, share, ids, u, begin, end, hot_starts, block_sums,
    positions, bags, weights, scale, steps, grad, first, lane, lanes, vec, chunks, dim, in_flight,
):  # fmt: skip
    """total = this lane's columns of the gradient of segment u, entries [begin, end)."""
    for x in range(vec * chunks):
        total[x] = _ZERO
    hot = end - begin > HOT
    h = hot_starts[u] if hot else np.int64(0)
    for start in range(begin, end, BLOCK):
        if hot:
            load_tile(block, 0, block_sums, h, 0, first, lane, lanes, vec, chunks, dim)
            h += 1
        else:
            stop = start + BLOCK if start + BLOCK < end else end
            sum_entries(
                block, stage, share, ids, start, stop, positions, bags, weights,
                scale, steps, grad, first, lane, lanes, vec, chunks, dim, in_flight,
            )  # fmt: skip
        for x in range(vec * chunks):
            total[x] = total[x] + block[x]


@functools.cache
def update_columns_cuda(
    dim: int, name: str, dtype: str = "float32", state_dtype: str = "float32", rounding: str = ""
):
    _, vec, lanes, chunks = row_shape(dim)
    (
        load_weight, settled, first_bits, store_weight, load_state, store_state, noisy,
        first_at, second_at,
    ) = fields_of(dim, dtype, state_dtype, rounding, once=True)  # fmt: skip
    width, tile = vec * chunks, vec * chunks * lanes
    staged = _IN_FLIGHT * width
    move, fields = RULES[name]
    has_first, has_second = fields > 0, fields > 1
    digest = DIGEST

    @cuda_kernel
    def update_columns(
        records, flags, slots, indices, u0, limit, num, hot_starts, block_sums, starts,
        positions, bags, weights, scale, steps, grad, scalars, rounding_key,
        seed, init_kind, init_param,
    ):  # fmt: skip
        _ = digest
        g = cuda.local.array(width, numba.float32)
        block = cuda.local.array(width, numba.float32)
        stage = cuda.local.array(staged, numba.float32)
        share = cuda.local.array(_IN_FLIGHT, numba.float32)
        ids = cuda.local.array(_IN_FLIGHT, numba.int64)
        w = cuda.local.array(width, numba.float32)
        m = cuda.local.array(width, numba.float32)
        v = cuda.local.array(width, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        stride = cuda.gridsize(1) // lanes
        count = row_count(num, u0, limit)
        u = np.int64(cuda.grid(1) // lanes)
        slot, begin, end = segment_of(slots, starts, u, u0, count)
        while u < count:
            ahead = u + stride
            next_slot, next_begin, next_end = segment_of(slots, starts, ahead, u0, count)
            virgin = word_at(records, slot) & first_bits == VIRGIN
            flag = flags[np.uint64(slot)]
            key = rounding_key
            if noisy:
                key = row_noise_key(rounding_key, indices[u0 + u])
            for first in range(0, dim, tile):
                load_weight(w, 0, records, slot, 0, first, lane, lanes, vec, chunks, dim)
                if has_first:
                    load_state(m, 0, records, slot, first_at, first, lane, lanes, vec, chunks, dim)
                if has_second:
                    load_state(v, 0, records, slot, second_at, first, lane, lanes, vec, chunks, dim)
                sum_tile(
                    g, block, stage, share, ids, u0 + u, begin, end, hot_starts, block_sums,
                    positions, bags, weights, scale, steps, grad,
                    first, lane, lanes, vec, chunks, dim, _IN_FLIGHT,
                )  # fmt: skip
                if virgin:
                    init_tile(
                        settled, w, 0, indices[u0 + u], first, lane, lanes, vec, chunks, dim,
                        seed, init_kind, init_param,
                    )  # fmt: skip
                    for x in range(width):
                        m[x] = scalars[FILL]
                        v[x] = scalars[FILL]
                for c in range(chunks):
                    for x in range(c * vec, (c + 1) * vec):
                        column = first + (c * lanes + lane) * vec + (x - c * vec)
                        value = clip_by_value(g[x], scalars[CLIP_VALUE])
                        weight, m[x], v[x] = move(w[x], m[x], v[x], value, _ZERO, _ZERO, scalars)
                        w[x] = written(weight, column)
                if first == 0:
                    sync_lanes(mask)
                store_weight(w, records, slot, 0, first, lane, lanes, vec, chunks, dim, key, 0)
                if has_first:
                    store_state(
                        m, records, slot, first_at, first, lane, lanes, vec, chunks, dim, key, dim
                    )
                if has_second:
                    store_state(
                        v, records, slot, second_at, first, lane, lanes, vec, chunks, dim,
                        key, 2 * dim,
                    )  # fmt: skip
            if lane == 0:
                flags[np.uint64(slot)] = flag | _DIRTY
            u, slot, begin, end = ahead, next_slot, next_begin, next_end

    return update_columns


@functools.cache
def update_rows_cuda(
    dim: int, name: str, dtype: str = "float32", state_dtype: str = "float32", rounding: str = ""
):
    shape = row_shape(dim)
    (
        load_weight, settled, first_bits, store_weight, load_state, store_state, noisy,
        first_at, second_at,
    ) = fields_of(dim, dtype, state_dtype, rounding)  # fmt: skip
    _, vec, lanes, chunks = shape
    width, tile, groups = shape.width, shape.tile, shape.groups
    staged = IN_FLIGHT * width
    in_shared = dim <= SHARED_COLUMNS
    shared_columns = groups * dim if in_shared else 1
    num_parts = groups * 16
    move, fields = RULES[name]
    has_first, has_second = fields > 0, fields > 1
    is_row_adagrad, is_row_adam = name == "row_wise_adagrad", name == "row_wise_adam"
    # The one number of a row-wise state, which is float32.
    row_lane = second_at if is_row_adam else first_at
    digest = DIGEST

    @cuda_kernel
    def update_rows(
        records, flags, slots, indices, u0, limit, num, hot_starts, block_sums, starts,
        positions, bags, weights, scale, steps, grad, scalars, rounding_key,
        seed, init_kind, init_param, scratch,
    ):  # fmt: skip
        _ = digest
        kept = cuda.shared.array(shared_columns, numba.float32)
        parts = cuda.shared.array(num_parts, numba.float32)
        work = cuda.local.array(16, numba.float32)
        g = cuda.local.array(width, numba.float32)
        block = cuda.local.array(width, numba.float32)
        stage = cuda.local.array(staged, numba.float32)
        share = cuda.local.array(IN_FLIGHT, numba.float32)
        ids = cuda.local.array(IN_FLIGHT, numba.int64)
        w = cuda.local.array(width, numba.float32)
        m = cuda.local.array(width, numba.float32)
        v = cuda.local.array(width, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        group = cuda.threadIdx.x // lanes
        at = group * dim
        values = kept
        if not in_shared:
            at = (cuda.grid(1) // lanes) * dim
            values = scratch
        count = row_count(num, u0, limit)
        for u in range(cuda.grid(1) // lanes, count, cuda.gridsize(1) // lanes):
            slot, row = slots[u], indices[u0 + u]
            begin, end = starts[u0 + u], starts[u0 + u + 1]
            virgin = word_at(records, slot) & first_bits == VIRGIN
            key = rounding_key
            if noisy:
                key = row_noise_key(rounding_key, row)
            state = scalars[FILL]
            if is_row_adagrad or is_row_adam:
                state = scalars[FILL] if virgin else records[slot, row_lane]
            sync_lanes(mask)
            # The gradient of the row, clipped.
            for first in range(0, dim, tile):
                sum_tile(
                    g, block, stage, share, ids, u0 + u, begin, end, hot_starts, block_sums,
                    positions, bags, weights, scale, steps, grad,
                    first, lane, lanes, vec, chunks, dim, IN_FLIGHT,
                )  # fmt: skip
                for c in range(chunks):
                    for x in range(vec):
                        column = first + (c * lanes + lane) * vec + x
                        if column < dim:
                            values[at + column] = clip_by_value(g[c * vec + x], scalars[CLIP_VALUE])
            factor, clips = _ZERO, False
            if scalars[CLIP_NORM] < _INFINITY:
                squares = group_sum_of_squares(
                    values, at, parts, group * 16, work, lane, lanes, mask, dim
                )
                norm = np.float32(math.sqrt(squares))
                if norm > scalars[CLIP_NORM]:
                    factor, clips = scalars[CLIP_NORM] / norm, True
            # Each lane goes on with its own columns.
            if clips or is_row_adagrad:
                for first in range(0, dim, tile):
                    if is_row_adagrad:
                        if virgin:
                            init_tile(
                                settled, w, 0, row, first, lane, lanes, vec, chunks, dim,
                                seed, init_kind, init_param,
                            )  # fmt: skip
                        else:
                            load_weight(
                                w, 0, records, slot, 0, first, lane, lanes, vec, chunks, dim
                            )
                    for c in range(chunks):
                        for x in range(vec):
                            column = first + (c * lanes + lane) * vec + x
                            if column < dim:
                                value = values[at + column]
                                if clips:
                                    value = value * factor
                                if is_row_adagrad:
                                    value = value + scalars[1] * w[c * vec + x]
                                values[at + column] = value
            rate = scalars[0]
            if is_row_adagrad or is_row_adam:
                squares = group_sum_of_squares(
                    values, at, parts, group * 16, work, lane, lanes, mask, dim
                )
                mean = squares / np.float32(dim)
                if is_row_adagrad:
                    state = state + mean
                    rate = scalars[0] / (np.float32(math.sqrt(state)) + scalars[2])
                else:
                    state = adam_moment(state, mean, scalars[5])
            for first in range(0, dim, tile):
                if virgin:
                    init_tile(
                        settled, w, 0, row, first, lane, lanes, vec, chunks, dim,
                        seed, init_kind, init_param,
                    )  # fmt: skip
                    for x in range(width):
                        m[x] = scalars[FILL]
                        v[x] = scalars[FILL]
                else:
                    load_weight(w, 0, records, slot, 0, first, lane, lanes, vec, chunks, dim)
                    if has_first:
                        load_state(
                            m, 0, records, slot, first_at, first, lane, lanes, vec, chunks, dim
                        )
                    if has_second:
                        load_state(
                            v, 0, records, slot, second_at, first, lane, lanes, vec, chunks, dim
                        )
                for c in range(chunks):
                    for y in range(vec):
                        x = c * vec + y
                        column = first + (c * lanes + lane) * vec + y
                        if column < dim:
                            weight, m[x], v[x] = move(
                                w[x], m[x], v[x], values[at + column], rate, state, scalars
                            )
                            w[x] = written(weight, column)
                store_weight(w, records, slot, 0, first, lane, lanes, vec, chunks, dim, key, 0)
                if has_first:
                    store_state(
                        m, records, slot, first_at, first, lane, lanes, vec, chunks, dim, key, dim
                    )
                if has_second:
                    store_state(
                        v, records, slot, second_at, first, lane, lanes, vec, chunks, dim,
                        key, 2 * dim,
                    )  # fmt: skip
            if lane == 0:
                if is_row_adagrad or is_row_adam:
                    records[slot, row_lane] = state
                flags[slot] = flags[slot] | _DIRTY

    return update_rows
