"""Lookup: rows of a table, one by one or pooled in bags.

    gather     out[k] = weight[indices[k]]
    pooled     out[b] = scale[b] * sum_k w[k] weight[indices[k]]     k in [offsets[b], offsets[b+1])
    max        out[b, d] = max_k weight[indices[k], d]               the first k wins

    scale      sum: 1 · mean: 1 / sum_k w[k] · sqrtn: 1 / sqrt(sum_k w[k]^2) · 0 where that is 0/0

Shapes   records (S, W) f4, weight in lanes [0, D), or narrower in dtype (`formats`)
         slots (L,) i8: where the row of position k is
         indices (L,) i8 · offsets (B+1,) i8 · bounds: see `plan.cut_bags`
         weights (L,) f4, not used unless `weighted` · out (L, D) or (B, D) f4
Order    left to right inside a bag, from +0.0; the scale is multiplied in at the end
Range    pooled with a `limit` other than UNLIMITED: the indices were not checked yet, so each chunk
         is, before a row of it is read; counter[1] becomes 1 when one is outside, `out` is rubbish
Virgin   weight lane 0 has all bits zero: the row's weights are its first ones (`initialize`)
Padding  positions with indices[k] == padding_idx: zeros in gather, skipped when pooled
Empty    an empty bag gives zeros in every mode, as torch.nn.EmbeddingBag
Source   torch.nn.EmbeddingBag; tf.nn.safe_embedding_lookup_sparse (weighted mean and sqrtn)
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparse_embed.kernels._intrinsics import (
    at,
    bits,
    first,
    next_chunk,
    prefetch_row,
    row_pointer,
    stack_f32,
    unlikely,
)
from sparse_embed.kernels._jit import DIGEST, device_function, team_kernel
from sparse_embed.kernels.bounds import OUTSIDE, PADDED, check_chunk
from sparse_embed.kernels.formats import PACKED_ROWS, lanes_of
from sparse_embed.kernels.initialize import init_row
from sparse_embed.kernels.lanes import (
    add_row,
    add_scaled_row,
    copy_row,
    store_scaled_row,
    zero_row,
)
from sparse_embed.kernels.stored_lanes import (
    FLOAT32,
    KINDS,
    add_scaled_stored,
    add_stored,
    is_virgin,
    prefetch_stored,
)

SUM, MEAN, SQRTN, MAX = 0, 1, 2, 3  # `mode`

_ZERO = np.float32(0)
_ONE = np.float32(1)
_VIRGIN = np.uint32(0)
_MOST_ONES = 1 << 24  # 2^24 + 1 is not a float32
_REGISTERS = 128  # float32 of a sum that stay in registers: all 16 of AVX2
_LONG = 4  # rows of a bag from which on it is worth while to come back for more columns
CHUNK = 1024  # positions, or positions and bags together (`plan`)


def rows_ahead(dim: int) -> int:
    """How many rows to ask for in advance: enough to hide memory, not more than the L1 holds."""
    return 16 if dim <= 128 else 8


def columns_at_once(dim: int) -> int:
    """Columns of a bag that are summed in one pass over its rows, so that the sums stay in
    registers: in memory they cost twice the time of 256 and 768 columns."""
    passes = -(-dim // _REGISTERS)
    return -(-dim // (16 * passes)) * 16 if passes > 1 else dim


@device_function
def weight_row(records, slot, row, scratch, dim, seed, init_kind, init_param):
    """Pointer to the weights of a row: in its record, or generated into `scratch`."""
    pointer = row_pointer(records, slot)
    if unlikely(bits(pointer[0]) == _VIRGIN):
        init_row(scratch, dim, seed, row, init_kind, init_param)
        pointer = scratch
    return pointer


WEIGHT_ROWS = {"float32": weight_row, **PACKED_ROWS}


@device_function
def bag_scale(denominator, mode):
    """What the sum of a bag is multiplied by, from its sum of w (mean) or w^2 (sqrtn)."""
    if mode != MEAN and mode != SQRTN:
        return _ONE
    if mode == SQRTN:
        denominator = np.float32(math.sqrt(denominator))
    return _ONE / denominator if denominator != _ZERO else _ZERO


@device_function
def bag_denominator(index, weight, begin, end, mode, padded, padding_idx, weighted):
    """The sum of w (mean) or w^2 (sqrtn) over a bag; nothing in a mode that does not ask for it."""
    if mode != MEAN and mode != SQRTN:
        return _ZERO
    denominator, count = _ZERO, end - begin
    if weighted or padded:
        for k in range(begin, end):
            if index[k] == padding_idx:
                count -= 1
            elif weighted:
                denominator += weight[k] if mode == MEAN else weight[k] * weight[k]
    if weighted:
        return denominator
    return np.float32(count if count < _MOST_ONES else _MOST_ONES)  # a sum of ones, in float32


@device_function
def sum_columns(
    total, records, slot, index, weight, begin, end, stop, column, columns, further,
    kind, padded, padding_idx, weighted, ahead,
):  # fmt: skip
    """total = the sum of columns [column, column + columns) over positions [begin, end).

    Returns whether a row is virgin: the sum is rubbish then.  (A loop that can also make such a row
    is an eighth slower.)  Towards the end it asks for what comes next: more columns of the same
    rows (`further`), or the rows of the next positions up to `stop`.
    """
    zero_row(total, columns)
    virgins = 0
    for k in range(begin, end):
        coming, there = k + ahead, column
        if further and coming >= end:
            coming, there = coming - end + begin, column + columns
        elif column > 0 and coming >= end:
            there = 0
        coming = coming if coming < stop else stop - 1
        prefetch_stored(row_pointer(records, slot[coming]), there, columns, kind)
        if padded and index[k] == padding_idx:
            continue
        row = row_pointer(records, slot[k])
        virgins += is_virgin(row, kind)
        if weighted:
            add_scaled_stored(total, row, column, weight[k], columns, kind)
        else:
            add_stored(total, row, column, columns, kind)
    return virgins > 0


@device_function
def pool_by_columns(
    out, total, records, slot, index, weight, begin, end, stop, scale, columns, whole, rest,
    kind, padded, padding_idx, weighted, ahead,
):  # fmt: skip
    """One bag, `columns` at a time up to column `whole`, and then the rest; as `sum_columns`.

    padded: a constant, for LLVM takes the question out of short rows' loop, but not of these: to
    ask each row whether it is padding cost 768 columns 12 to 15 % and 256 columns 5 to 8 %.
    """
    virgin = False
    for column in range(0, whole, columns):
        virgin = sum_columns(
            total, records, slot, index, weight, begin, end, stop, column, columns,
            column + columns < whole + rest, kind, padded, padding_idx, weighted, ahead,
        )  # fmt: skip
        store_scaled_row(at(out, column), total, scale, columns)
    if rest:
        sum_columns(
            total, records, slot, index, weight, begin, end, stop, whole, rest, False,
            kind, padded, padding_idx, weighted, ahead,
        )  # fmt: skip
        store_scaled_row(at(out, whole), total, scale, rest)
    return virgin


@functools.cache
def gather_cpu(dim: int, dtype: str = "float32"):
    digest = DIGEST
    row_of, lanes = WEIGHT_ROWS[dtype], lanes_of(dim, dtype)
    packed = dtype != "float32"
    ahead = rows_ahead(dim)

    @team_kernel
    def gather(records, slots, indices, padding_idx, seed, init_kind, init_param, counter, out):
        _ = digest
        last = indices.shape[0] - 1
        slot, index = first(slots), first(indices)
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin > last:
                break
            for k in range(begin, min(last + 1, begin + CHUNK)):
                prefetch_row(records, slot[min(k + ahead, last)], lanes)
                target = row_pointer(out, k)
                if index[k] == padding_idx:
                    zero_row(target, dim)
                    continue
                row = row_of(records, slot[k], index[k], target, dim, seed, init_kind, init_param)
                if not packed:  # a packed row was widened to the target
                    copy_row(target, row, dim)

    return gather


@functools.cache
def pool_cpu(dim: int, weighted: bool, dtype: str = "float32"):
    """Two kernels, because a product costs time where all rows are in the cache."""
    digest = DIGEST
    row_of, kind = WEIGHT_ROWS[dtype], KINDS[dtype]
    ahead = rows_ahead(dim) * (1 if kind == FLOAT32 else 2)  # as many lines on their way
    columns = columns_at_once(dim)
    by_columns, rest = columns < dim, dim % columns
    whole = dim - rest

    @team_kernel
    def pool(
        records, slots, indices, offsets, bounds, weights, mode, limit, padding_idx,
        seed, init_kind, init_param, counter, out,
    ):  # fmt: skip
        _ = digest
        chunks = bounds.shape[0] - 1
        slot, index = first(slots), first(indices)
        weight, offset = first(weights), first(offsets)
        total = stack_f32(dim)
        scratch = stack_f32(dim)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            start, stop = offset[bounds[chunk]], offset[bounds[chunk + 1]]
            found = check_chunk(index, start, stop, limit, padding_idx)
            if found == OUTSIDE:
                counter[1] = 1
                continue
            padded = found == PADDED
            for k in range(start, min(start + ahead, stop)):
                prefetch_stored(row_pointer(records, slot[k]), 0, columns, kind)
            for b in range(bounds[chunk], bounds[chunk + 1]):
                begin, end = offset[b], offset[b + 1]
                target = row_pointer(out, b)
                denominator = bag_denominator(
                    index, weight, begin, end, mode, padded, padding_idx, weighted
                )
                scale = bag_scale(denominator, mode)
                whole_rows, virgin = True, False
                if by_columns:  # alone: Numba then leaves out what it guards
                    whole_rows = end - begin < _LONG
                    if not whole_rows and padded:
                        virgin = pool_by_columns(
                            target, total, records, slot, index, weight, begin, end, stop, scale,
                            columns, whole, rest, kind, True, padding_idx, weighted, ahead,
                        )  # fmt: skip
                    elif not whole_rows:
                        virgin = pool_by_columns(
                            target, total, records, slot, index, weight, begin, end, stop, scale,
                            columns, whole, rest, kind, False, padding_idx, weighted, ahead,
                        )  # fmt: skip
                if whole_rows:
                    virgin = sum_columns(
                        total, records, slot, index, weight, begin, end, stop, 0, dim, False,
                        kind, padded, padding_idx, weighted, ahead,
                    )  # fmt: skip
                    store_scaled_row(target, total, scale, dim)
                if not unlikely(virgin):
                    continue
                zero_row(total, dim)
                for k in range(begin, end):
                    if index[k] == padding_idx:
                        continue
                    row = row_of(
                        records, slot[k], index[k], scratch, dim, seed, init_kind, init_param
                    )
                    if weighted:
                        add_scaled_row(total, row, weight[k], dim)
                    else:
                        add_row(total, row, dim)
                store_scaled_row(target, total, scale, dim)

    return pool


@functools.cache
def pool_max_cpu(dim: int, dtype: str = "float32"):
    digest = DIGEST
    row_of, lanes = WEIGHT_ROWS[dtype], lanes_of(dim, dtype)
    ahead = rows_ahead(dim)

    @team_kernel
    def pool_max(
        records, slots, indices, offsets, bounds, padding_idx,
        seed, init_kind, init_param, counter, out,
    ):  # fmt: skip
        _ = digest
        last = indices.shape[0] - 1
        chunks = bounds.shape[0] - 1
        slot, index = first(slots), first(indices)
        scratch = stack_f32(dim)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            for b in range(bounds[chunk], bounds[chunk + 1]):
                best = row_pointer(out, b)
                none = True
                for k in range(offsets[b], offsets[b + 1]):
                    prefetch_row(records, slot[min(k + ahead, last)], lanes)
                    if index[k] == padding_idx:
                        continue
                    row = row_of(
                        records, slot[k], index[k], scratch, dim, seed, init_kind, init_param
                    )
                    if none:
                        copy_row(best, row, dim)
                    else:
                        for d in range(dim):
                            best[d] = row[d] if row[d] > best[d] else best[d]
                    none = False
                if none:
                    zero_row(best, dim)

    return pool_max


@functools.cache
def max_positions_cpu(dim: int, dtype: str = "float32"):
    digest = DIGEST
    row_of = WEIGHT_ROWS[dtype]

    @team_kernel
    def max_positions(
        records, slots, indices, offsets, bounds, padding_idx,
        seed, init_kind, init_param, counter, out,
    ):  # fmt: skip
        """out[b, d] = the first position of bag b whose value in column d is the largest, or -1."""
        _ = digest
        chunks = bounds.shape[0] - 1
        slot, index = first(slots), first(indices)
        best = stack_f32(dim)
        scratch = stack_f32(dim)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            for b in range(bounds[chunk], bounds[chunk + 1]):
                target = row_pointer(out, b)
                for d in range(dim):
                    target[d] = -1
                none = True
                for k in range(offsets[b], offsets[b + 1]):
                    if index[k] == padding_idx:
                        continue
                    row = row_of(
                        records, slot[k], index[k], scratch, dim, seed, init_kind, init_param
                    )
                    for d in range(dim):
                        if none or row[d] > best[d]:
                            best[d] = row[d]
                            target[d] = k
                    none = False

    return max_positions
