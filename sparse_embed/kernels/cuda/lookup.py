"""Lookup on the device: formulas, shapes and orders as in `kernels/lookup.py`.

Shapes   as on the CPU, with weights (L,) f4, or one 1 and a step of 0
How      a group of lanes owns a position or a bag; of a bag, 4 rows are asked for before the first
         is added.  A row and the word that tells whether it is virgin are asked for together.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._rows import (
    VIRGIN,
    first_weight,
    init_tile,
    row_shape,
    store_tile,
)
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel, word_at
from sparse_embed.kernels.cuda.batches import is_wrong
from sparse_embed.kernels.cuda.formats import FORMATS
from sparse_embed.kernels.initialize import row_key
from sparse_embed.kernels.lookup import MAX, MEAN, bag_scale

POOLED = 4
_ZERO = np.float32(0)
_ONE = np.float32(1)


@functools.cache
def initialize_cuda(dim: int):
    """out[i, d] = init(seed, rows[i], d); a thread a number."""
    digest = DIGEST

    @cuda_kernel
    def initialize(rows, seed, init_kind, init_param, out):
        _ = digest
        for place in range(cuda.grid(1), rows.shape[0] * dim, cuda.gridsize(1)):
            i, d = place // dim, place % dim
            out[i, d] = first_weight(row_key(seed, rows[i]), d, init_kind, init_param)

    return initialize


@functools.cache
def gather_cuda(dim: int, dtype: str = "float32"):
    _, vec, lanes, chunks = row_shape(dim)
    load, _, settled, first_bits = FORMATS[dtype]
    width, tile = vec * chunks, vec * chunks * lanes
    digest = DIGEST

    @cuda_kernel
    def gather(records, slots, indices, padding_idx, found, seed, init_kind, init_param, out):
        _ = digest
        if is_wrong(found):
            return
        values = cuda.local.array(width, numba.float32)
        lane = cuda.grid(1) % lanes
        for k in range(cuda.grid(1) // lanes, indices.shape[0], cuda.gridsize(1) // lanes):
            row = indices[k]
            padded = row == padding_idx
            slot = np.int64(0) if padded else slots[k]
            for first in range(0, dim, tile):
                virgin = False
                if padded:
                    for x in range(width):
                        values[x] = _ZERO
                else:
                    virgin = word_at(records, slot) & first_bits == VIRGIN
                    load(values, 0, records, slot, 0, first, lane, lanes, vec, chunks, dim)
                if virgin:
                    init_tile(
                        settled, values, 0, row, first, lane, lanes, vec, chunks, dim,
                        seed, init_kind, init_param,
                    )  # fmt: skip
                store_tile(values, out, k, 0, first, lane, lanes, vec, chunks, dim)

    return gather


@device_function
def add_row(total, values, at, width, w, mode, none):
    """total = total + w * values[at:], or their maximum; `none`: nothing is in total yet."""
    for x in range(width):
        value = values[at + x]
        if mode != MAX:
            total[x] = total[x] + w * value
        elif none or value > total[x]:
            total[x] = value


@functools.cache
def pool_cuda(dim: int, dtype: str = "float32"):
    _, vec, lanes, chunks = row_shape(dim)
    load, _, settled, first_bits = FORMATS[dtype]
    width, tile = vec * chunks, vec * chunks * lanes
    staged = POOLED * width
    digest = DIGEST

    @functools.partial(cuda_kernel, resident=3 if vec == 4 else 1)
    def pool(
        records, slots, indices, offsets, weights, weight_step, mode, padding_idx, found,
        seed, init_kind, init_param, out,
    ):  # fmt: skip
        _ = digest
        if is_wrong(found):
            return
        stage = cuda.local.array(staged, numba.float32)
        one = cuda.local.array(width, numba.float32)
        total = cuda.local.array(width, numba.float32)
        rows = cuda.local.array(POOLED, numba.int64)
        places = cuda.local.array(POOLED, numba.int64)
        lane = cuda.grid(1) % lanes
        plain = mode != MAX and weight_step == 0
        for b in range(cuda.grid(1) // lanes, out.shape[0], cuda.gridsize(1) // lanes):
            begin, end = offsets[b], offsets[b + 1]
            for first in range(0, dim, tile):
                for x in range(width):
                    total[x] = _ZERO
                denominator = _ZERO
                none = True
                for k in range(begin, end, POOLED):
                    # Without branches, or one row would be asked for after the other has come:
                    # beyond the end the last position stands again, at padding any slot.
                    for j in range(POOLED):
                        at = np.uint64(min(k + j, end - 1))
                        rows[j] = indices[at]
                        places[j] = slots[at]
                    virgins = False
                    for j in range(POOLED):
                        place = np.int64(0) if rows[j] == padding_idx else places[j]
                        load(
                            stage, j * width, records, place, 0,
                            first, lane, lanes, vec, chunks, dim,
                        )  # fmt: skip
                        virgins = virgins | (word_at(records, place) & first_bits == VIRGIN)
                    if virgins:  # one at a time: first weights take many registers
                        for i in range(k, min(k + POOLED, end)):
                            if indices[i] != padding_idx:
                                load(
                                    one, 0, records, slots[i], 0,
                                    first, lane, lanes, vec, chunks, dim,
                                )  # fmt: skip
                                if word_at(records, slots[i]) & first_bits == VIRGIN:
                                    init_tile(
                                        settled, one, 0, indices[i], first, lane, lanes, vec,
                                        chunks, dim, seed, init_kind, init_param,
                                    )  # fmt: skip
                                w = weights[i] if weight_step else _ONE
                                denominator += w if mode == MEAN else w * w
                                add_row(total, one, 0, width, w, mode, none)
                                none = False
                    elif plain:
                        for j in range(POOLED):
                            if k + j < end and rows[j] != padding_idx:
                                denominator += _ONE
                                for x in range(width):
                                    total[x] = total[x] + stage[j * width + x]
                    else:
                        for j in range(POOLED):
                            if k + j < end and rows[j] != padding_idx:
                                w = weights[k + j] if weight_step else _ONE
                                denominator += w if mode == MEAN else w * w
                                add_row(total, stage, j * width, width, w, mode, none)
                                none = False
                scale = bag_scale(denominator, mode)
                for x in range(width):
                    total[x] = scale * total[x]
                store_tile(total, out, b, 0, first, lane, lanes, vec, chunks, dim)

    return pool


@functools.cache
def max_positions_cuda(dim: int, dtype: str = "float32"):
    """A thread a bag and column: what it reads is one column of a row, its neighbours the next."""
    _, weight_of, settled, first_bits = FORMATS[dtype]
    digest = DIGEST

    @cuda_kernel
    def max_positions(
        records, slots, indices, offsets, padding_idx, seed, init_kind, init_param, out
    ):
        _ = digest
        for place in range(cuda.grid(1), out.shape[0] * dim, cuda.gridsize(1)):
            b, d = place // dim, place % dim
            winner = np.int64(-1)
            best = _ZERO
            for k in range(offsets[b], offsets[b + 1]):
                if indices[k] != padding_idx:
                    value = weight_of(records, slots[k], d)
                    if word_at(records, slots[k]) & first_bits == VIRGIN:
                        key = row_key(seed, indices[k])
                        value = settled(first_weight(key, d, init_kind, init_param))
                    if winner < 0 or value > best:
                        best = value
                        winner = np.int64(k)
            out[b, d] = winner

    return max_positions
