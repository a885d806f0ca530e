"""Fused backward and optimizer step of many tables at once: `update`, by address.

Shapes   keys (U,) i8: the unique keys, sorted · records_at, flags_at (U,) i8: see `many_find`; rows
         at 0 are left out · table_starts (T+1,) i8: first key of each table
         starts (U+1,) i8 · bounds, blocks: see `plan.cut_segments`
         of entries [shift, shift + e), see `entries`: places (e,) i8 (`many_bags`)
         and factors (e,) f4, or one 1 and a step of 0
         grad_at (F,) i8: address of the upstream gradient of a feature's first bag
         grad_step (F,) i8: bytes from bag to bag
         scalars (T, SCALARS) f4, seeds (T,) u8, init_kinds (T,) i8, init_params (T,) f4
Phases   0: the sums of the hot blocks, where there are any; 1: the rows
Order    as `backward`: a row's positions ascend, so the features that share a table come in their
         order, as if their batches were one behind the other; blocks of 256.  The bits of `update`.
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._addresses import f32_at, prefetch_at, u8_at
from sparse_embed.kernels._intrinsics import (
    at,
    bits,
    first,
    next_chunk,
    prefetch_write,
    row_pointer,
    stack_f32,
    unlikely,
)
from sparse_embed.kernels._jit import DIGEST, cold_function, device_function, team_kernel
from sparse_embed.kernels.backward import add_hot_blocks
from sparse_embed.kernels.lanes import add_row, add_scaled_row, copy_row, zero_row
from sparse_embed.kernels.many_find import table_of
from sparse_embed.kernels.plan import BLOCK, HOT
from sparse_embed.kernels.update import (
    _ROWS,
    CLIP_NORM,
    CLIP_VALUE,
    FILL,
    clip_row,
    keep_written,
    materialize,
)

CHUNK = 512  # see `plan`
_AHEAD_GRAD = 12
_AHEAD = 6
_VIRGIN = np.uint32(0)
_INFINITY = np.float32(np.inf)
_DIRTY = np.uint8(1)


@device_function
def sum_places(
    total, begin, end, last, places, factors, factor_step, place_bits, grad_at, grad_step, dim
):
    """total = the sum over entries [begin, end), left to right from +0.0."""
    bag = (np.int64(1) << place_bits) - np.int64(1)
    zero_row(total, dim)
    for i in range(begin, end):
        ahead = places[min(i + _AHEAD_GRAD, last)]
        feature = ahead >> place_bits
        prefetch_at(grad_at[feature] + (ahead & bag) * grad_step[feature], dim, 0)
        place = places[i]
        feature = place >> place_bits
        row = f32_at(grad_at[feature] + (place & bag) * grad_step[feature])
        add_scaled_row(total, row, factors[i * factor_step], dim)


@cold_function
def sum_place_blocks(
    total, block, begin, end, last, places, factors, factor_step, place_bits, grad_at, grad_step,
    shift, blocks, block_sums, dim,
):  # fmt: skip
    """As `sum_places`, of a segment of several blocks; hot ones have their sums already."""
    zero_row(total, dim)
    if end - begin > HOT:
        add_hot_blocks(total, begin, end, shift, blocks, block_sums, dim)
    else:
        for start in range(begin, end, BLOCK):
            sum_places(
                block, start, min(start + BLOCK, end), last,
                places, factors, factor_step, place_bits, grad_at, grad_step, dim,
            )  # fmt: skip
            add_row(total, block, dim)


@functools.cache
def update_many_cpu(dim: int, name: str):
    digest = DIGEST
    update_row, per_column, beyond = _ROWS[name]
    state_lanes = per_column * dim + beyond
    used_lanes = dim + state_lanes

    @team_kernel
    def update_many(
        keys, records_at, flags_at, table_starts, u0, u1, bounds, blocks, block_sums, starts,
        places, factors, factor_step, place_bits, grad_at, grad_step,
        scalars, seeds, init_kinds, init_params, phase, counter,
    ):  # fmt: skip
        _ = digest
        last, shift = places.shape[0] - 1, starts[u0]
        chunks, num_blocks = bounds.shape[0] - 1, blocks.shape[0]
        key_of, record_of, flag_of = first(keys), first(records_at), first(flags_at)
        place, factor, start_of = first(places), first(factors), first(starts)
        source_at, source_step = first(grad_at), first(grad_step)
        g = stack_f32(dim)
        block = stack_f32(dim)
        while phase == 0:
            j = next_chunk(counter, 0)
            if j >= num_blocks:
                return
            sum_places(
                g, blocks[j, 0] - shift, blocks[j, 1] - shift, last,
                place, factor, factor_step, place_bits, source_at, source_step, dim,
            )  # fmt: skip
            copy_row(row_pointer(block_sums, j), g, dim)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            low, high = bounds[chunk], bounds[chunk + 1]
            table = table_of(table_starts, key_of[low]) if low < high else 0
            table_end = table_starts[table + 1]
            for u in range(low, high):
                ahead = min(u + _AHEAD, u1 - 1)
                prefetch_at(record_of[ahead], used_lanes, 1)
                prefetch_write(u8_at(flag_of[ahead]))
                if unlikely(record_of[u] == 0):
                    continue
                begin, end = start_of[u] - shift, start_of[u + 1] - shift
                if unlikely(end - begin > BLOCK):
                    sum_place_blocks(
                        g, block, begin, end, last, place, factor, factor_step, place_bits,
                        source_at, source_step, shift, blocks, block_sums, dim,
                    )  # fmt: skip
                else:
                    sum_places(
                        g, begin, end, last,
                        place, factor, factor_step, place_bits, source_at, source_step, dim,
                    )  # fmt: skip
                key = key_of[u]
                while unlikely(key >= table_end):
                    table += 1
                    table_end = table_starts[table + 1]
                numbers = row_pointer(scalars, table)
                if unlikely(numbers[CLIP_VALUE] < _INFINITY or numbers[CLIP_NORM] < _INFINITY):
                    clip_row(g, dim, numbers[CLIP_VALUE], numbers[CLIP_NORM])
                record = f32_at(record_of[u])
                if unlikely(bits(record[0]) == _VIRGIN):
                    materialize(
                        record, at(record, dim), dim, state_lanes, key - table_starts[table],
                        seeds[table], init_kinds[table], init_params[table], numbers[FILL],
                    )  # fmt: skip
                update_row(record, at(record, dim), g, dim, numbers)
                keep_written(record)
                flag = u8_at(flag_of[u])
                flag[0] = flag[0] | _DIRTY

    return update_many
