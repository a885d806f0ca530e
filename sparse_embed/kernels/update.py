"""Fused backward and optimizer step: sum the gradient of a row, clip it, update its record.

Shapes   records (S, W) f4: weight lanes [0, D), then the optimizer's state · flags (S,) u1
         slots (u1-u0,) i8 and indices (U,) i8: where unique row u is (slots[u - u0]), and which
         it is (indices[u]); the rest as in `backward` · scalars (SCALARS,) f4:

             0 rate  1 weight decay, or the factor of the weight  2 eps  3 root  4 1 - beta1
             5 1 - beta2  6 clip_value  7 clip_norm (inf: off)  8 fill of the state

Clip     first each value to [-clip_value, clip_value]; then, if the norm of what is left exceeds
         clip_norm, times clip_norm / norm.  NaN stays NaN.
Virgin   a row that was never written gets its first weights and its state's fill just before.
         A weight lane 0 that comes out as +0.0 is stored as -0.0.
Narrow   what is narrower than float32 is widened to the stack, moved there by the same formula, and
         rounded back (`formats`); state that is float32 is moved where it lies.  The noise
         is a function of seed, step, row and column.
Flags    flags[slot] |= 1 (dirty)
Order    as `backward`; rows are independent, so the order of rows does not matter.
Memory   no gradient of (L, D) or (U, D) exists, only the block sums of hot rows.  (Mode "max" goes
         through `backward` and comes here unpooled: a loop for it would slow all the others.)
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparse_embed.kernels._intrinsics import (
    at,
    bits,
    first,
    from_bits,
    next_chunk,
    prefetch_row_write,
    prefetch_write,
    row_pointer,
    stack_f32,
    unlikely,
)
from sparse_embed.kernels._jit import DIGEST, cold_function, device_function, team_kernel
from sparse_embed.kernels.adagrad import adagrad_row, row_wise_adagrad_row
from sparse_embed.kernels.adam import lazy_adam_row, row_wise_adam_row
from sparse_embed.kernels.backward import sum_segment
from sparse_embed.kernels.formats import (
    READERS,
    SETTLERS,
    WRITERS,
    is_virgin_float32,
    is_virgin_half,
    keep_written_half,
    lanes_of,
    read_float32,
    row_noise_key,
    write_float32,
)
from sparse_embed.kernels.initialize import init_row
from sparse_embed.kernels.reduce import dot
from sparse_embed.kernels.sgd import sgd_row

SCALARS = 9
CLIP_VALUE, CLIP_NORM, FILL = 6, 7, 8

_ROWS = {
    # name: (row update, state lanes as multiples of D, and beyond)
    "sgd": (sgd_row, 0, 0),
    "adagrad": (adagrad_row, 1, 0),
    "row_wise_adagrad": (row_wise_adagrad_row, 0, 1),
    "lazy_adam": (lazy_adam_row, 2, 0),
    "row_wise_adam": (row_wise_adam_row, 1, 1),
}
_AHEAD = 6
_VIRGIN = np.uint32(0)
_NEGATIVE_ZERO = np.uint32(0x80000000)
_INFINITY = np.float32(np.inf)
_DIRTY = np.uint8(1)


@cold_function
def clip_row(g, dim, clip_value, clip_norm):
    """Clip a gradient in place, by value and then by norm."""
    if clip_value < _INFINITY:
        for d in range(dim):
            x = g[d]
            x = clip_value if x > clip_value else x
            g[d] = -clip_value if x < -clip_value else x
    if clip_norm < _INFINITY:
        norm = np.float32(math.sqrt(dot(g, g, dim)))
        if norm > clip_norm:
            factor = clip_norm / norm
            for d in range(dim):
                g[d] = g[d] * factor


@device_function
def materialize(w, state, dim, state_lanes, row, seed, init_kind, init_param, fill):
    """Write a virgin row's first weights and state."""
    init_row(w, dim, seed, row, init_kind, init_param)
    for lane in range(state_lanes):
        state[lane] = fill


@device_function
def keep_written(record):
    """Lane 0 all bits zero would mean virgin: +0.0 becomes -0.0."""
    if bits(record[0]) == _VIRGIN:
        record[0] = from_bits(_NEGATIVE_ZERO)


@functools.cache
def update_cpu(
    dim: int, name: str, dtype: str = "float32", state_dtype: str = "float32", rounding: str = ""
):
    digest = DIGEST
    if dim == 1:  # one number a row stays float32
        state_dtype = "float32"
    update_row, per_column, beyond = _ROWS[name]
    state_lanes = per_column * dim + beyond
    packed = dtype != "float32" or state_dtype != "float32"
    weight_lanes, field_lanes = lanes_of(dim, dtype), lanes_of(dim, state_dtype)
    beyond_at = weight_lanes + per_column * field_lanes
    used_lanes = beyond_at + beyond
    state_packed = state_dtype != "float32"
    buffer_lanes = dim + (state_lanes if state_packed else 0) if packed else 1
    read_weight, read_state, settle = READERS[dtype], READERS[state_dtype], SETTLERS[dtype]
    write_weight = WRITERS[dtype, rounding or "nearest"]
    write_state = WRITERS[state_dtype, rounding or "nearest"]
    is_virgin = is_virgin_float32 if dtype == "float32" else is_virgin_half
    keep = keep_written if dtype == "float32" else keep_written_half

    @team_kernel
    def update(
        records, flags, slots, indices, u0, bounds, blocks, block_sums, starts,
        bags, factors, factor_step, grad,
        scalars, rounding_key, seed, init_kind, init_param, counter,
    ):  # fmt: skip
        _ = digest
        clips = scalars[CLIP_VALUE] < _INFINITY or scalars[CLIP_NORM] < _INFINITY
        chunks, shift = bounds.shape[0] - 1, starts[u0]
        last, last_row = bags.shape[0] - 1, slots.shape[0] - 1
        start, slot_of = first(starts), first(slots)
        bag, factor = first(bags), first(factors)
        g = stack_f32(dim)
        block = stack_f32(dim)
        buffer = stack_f32(buffer_lanes)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            for u in range(bounds[chunk], bounds[chunk + 1]):
                ahead = slot_of[min(u - u0 + _AHEAD, last_row)]
                prefetch_row_write(records, ahead, used_lanes)
                prefetch_write(at(first(flags), ahead))
                sum_segment(
                    g, block, start[u] - shift, start[u + 1] - shift, last,
                    bag, factor, factor_step, grad, shift, blocks, block_sums, dim,
                )  # fmt: skip
                if unlikely(clips):
                    clip_row(g, dim, scalars[CLIP_VALUE], scalars[CLIP_NORM])
                slot = slot_of[u - u0]
                record = row_pointer(records, slot)
                row = buffer if packed else record
                state = at(buffer, dim) if state_packed else at(record, weight_lanes)
                if unlikely(is_virgin(record)):
                    materialize(
                        row, state, dim, state_lanes, indices[u],
                        seed, init_kind, init_param, scalars[FILL],
                    )  # fmt: skip
                    settle(row, dim)
                elif packed:
                    read_weight(row, record, dim)
                    if state_packed:
                        for i in range(per_column):
                            field = at(record, weight_lanes + i * field_lanes)
                            read_state(at(state, i * dim), field, dim)
                        last_field = at(state, per_column * dim)
                        read_float32(last_field, at(record, beyond_at), beyond)
                update_row(row, state, g, dim, scalars)
                if packed:
                    key = row_noise_key(rounding_key, indices[u])
                    write_weight(row, record, dim, key, 0)
                    if state_packed:
                        for i in range(per_column):
                            field = at(record, weight_lanes + i * field_lanes)
                            write_state(at(state, i * dim), field, dim, key, (i + 1) * dim)
                        last_field = at(state, per_column * dim)
                        write_float32(last_field, at(record, beyond_at), beyond, key, 0)
                keep(record)
                flags[slot] |= _DIRTY

    return update
