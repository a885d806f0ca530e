"""How the lanes of a warp share a row: shapes, loads, stores, first weights.

A group of `lanes` threads owns a row.  Lane l holds, of the tile of columns that begins at `first`,
the columns first + (c lanes + l) vec + v for c < chunks, v < vec, in registers: values[c vec + v].

    vec     4 where D is a multiple of 4 (rows then begin at 16 bytes), else 1
    lanes   a power of 2, at most a warp; 64 columns take half a warp, 16 bytes a lane
    chunks  as many as fit 4 registers a lane and array; wider rows are walked in tiles
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.cuda._shim import (
    SIMULATED,
    THREADS,
    WARP,
    blocks_for,
    load4,
    load4_once,
    store4,
    store4_once,
)
from sparse_embed.kernels.initialize import (
    GAMMA,
    NORMAL,
    UNIFORM,
    mix64,
    normal_value,
    row_key,
    uniform_value,
)

_REGISTERS = 4
_ZERO = np.float32(0)
_ONE = np.uint64(1)

VIRGIN = np.uint32(0)
NEGATIVE_ZERO = np.float32(-0.0)


class RowShape(NamedTuple):
    """How a row of D columns is shared; see above."""

    dim: int
    vec: int
    lanes: int
    chunks: int

    @property
    def width(self) -> int:
        """Registers of a lane for one tile."""
        return self.vec * self.chunks

    @property
    def tile(self) -> int:
        """Columns of a tile."""
        return self.lanes * self.width

    @property
    def threads(self) -> int:
        """Threads of a block: in the simulator one group, see `_shim.sync_lanes`."""
        return self.lanes if SIMULATED else THREADS

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return self.threads // self.lanes

    def blocks(self, rows: int) -> int:
        """Blocks of a grid for this many rows; groups go on in strides of the grid."""
        return blocks_for(rows, self.groups)

    def many_blocks(self, rows: int) -> int:
        """As `blocks`, a group a row as far as that goes: the card deals out the work."""
        return min(-(-rows // self.groups), 2 if SIMULATED else 1 << 30)


@functools.cache
def row_shape(dim: int) -> RowShape:
    """The shape for D columns."""
    vec = 4 if dim % 4 == 0 else 1
    lanes = 1
    while lanes < (2 if SIMULATED else WARP) and lanes * vec < dim:
        lanes *= 2
    chunks = min(-(-dim // (vec * lanes)), _REGISTERS // vec)
    return RowShape(dim, vec, lanes, chunks)


@device_function
def group_mask(thread, lanes):
    """The lanes of this thread's group, as bits of its warp."""
    if lanes == 32:
        return 0xFFFFFFFF
    return ((1 << lanes) - 1) << (thread % 32 // lanes * lanes)


@device_function
def load_tile(values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim):
    """values[at:] = this lane's columns of matrix[row, base:base + dim], from column `first` on.

    base: compile-time; where it is not a multiple of 4 (state behind narrow weights) a lane's
    numbers are not at 16 bytes."""
    for c in range(chunks):
        column = first + (c * lanes + lane) * vec
        if column < dim:
            if vec == 4 and base & 3 == 0:
                p, q, r, s = load4(matrix, row, base + column)
                values[at + c * 4] = p
                values[at + c * 4 + 1] = q
                values[at + c * 4 + 2] = r
                values[at + c * 4 + 3] = s
            else:
                for v in range(vec):
                    values[at + c * vec + v] = matrix[row, base + column + v]


@device_function
def store_tile(values, matrix, row, base, first, lane, lanes, vec, chunks, dim):
    """The way back; columns at and beyond `dim` are left out."""
    for c in range(chunks):
        column = first + (c * lanes + lane) * vec
        if column < dim:
            if vec == 4 and base & 3 == 0:
                store4(
                    matrix, row, base + column,
                    values[c * 4], values[c * 4 + 1], values[c * 4 + 2], values[c * 4 + 3],
                )  # fmt: skip
            else:
                for v in range(vec):
                    matrix[row, base + column + v] = values[c * vec + v]


@device_function
def load_tile_once(values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim):
    """As `load_tile`, of what is not read again soon."""
    if vec == 4 and base & 3 == 0:
        for c in range(chunks):
            column = first + (c * lanes + lane) * vec
            if column < dim:
                p, q, r, s = load4_once(matrix, row, base + column)
                values[at + c * 4] = p
                values[at + c * 4 + 1] = q
                values[at + c * 4 + 2] = r
                values[at + c * 4 + 3] = s
    else:
        load_tile(values, at, matrix, row, base, first, lane, lanes, vec, chunks, dim)


@device_function
def store_tile_once(values, matrix, row, base, first, lane, lanes, vec, chunks, dim):
    """The way back."""
    if vec == 4 and base & 3 == 0:
        for c in range(chunks):
            column = first + (c * lanes + lane) * vec
            if column < dim:
                store4_once(
                    matrix, row, base + column,
                    values[c * 4], values[c * 4 + 1], values[c * 4 + 2], values[c * 4 + 3],
                )  # fmt: skip
    else:
        store_tile(values, matrix, row, base, first, lane, lanes, vec, chunks, dim)


@device_function
def first_weight(key, column, init_kind, init_param):
    """The first weight of a column of the row with this key (`initialize.row_key`)."""
    h = mix64(key + (np.uint64(column) + _ONE) * GAMMA)
    if init_kind == UNIFORM:
        return uniform_value(h, init_param)
    if init_kind == NORMAL:
        return normal_value(h, init_param)
    return _ZERO


@device_function
def init_tile(
    settled, values, at, row, first, lane, lanes, vec, chunks, dim, seed, init_kind, init_param
):
    """values[at:] = this lane's first weights of `row`, from column `first` on; settled: rounds
    them as the table's records do (`formats`)."""
    key = row_key(seed, row)
    for c in range(chunks):
        column = first + (c * lanes + lane) * vec
        if column < dim:
            for v in range(vec):
                value = first_weight(key, column + v, init_kind, init_param)
                values[at + c * vec + v] = settled(value)
