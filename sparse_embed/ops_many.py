"""Operations on many tables and features at once: the door to the `many_*` kernels.

As `ops`: arguments are trusted.  T tables, F features of B bags each, L positions, U unique keys.
A key is one number for (table, row): table t has the keys [key_starts[t], key_starts[t+1]).  Tables
are kept in the order of their (dim, optimizer), so that unique keys of one kernel lie together.

The story:  number_bags -> find -> lookup;
            number_bags -> ops.merge_gradient(keys) -> find -> update.
The specification is `reference`, one table at a time: the same bits (tests/test_collection.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_embed import ops
from sparse_embed._typing import AnyArray, FloatArray, IndexArray
from sparse_embed.kernels import many_bags as _many_bags
from sparse_embed.kernels import many_find as _many_find
from sparse_embed.kernels import many_lookup as _many_lookup
from sparse_embed.kernels import many_update as _many_update
from sparse_embed.kernels import plan as _plan
from sparse_embed.kernels._jit import counter_of_items, guard_fork, new_counter
from sparse_embed.kernels.many_find import ALL, AWAY, FIELDS, INDEXED, PRESENT

__all__ = [
    "ALL",
    "AWAY",
    "CHUNK",
    "FIELDS",
    "INDEXED",
    "NO_KEY",
    "PRESENT",
    "Bags",
    "Features",
    "Found",
    "address",
    "find",
    "lookup",
    "number_bags",
    "update",
]

NO_KEY, CHUNK = _many_bags.NO_KEY, _many_bags.CHUNK
_ONE: FloatArray = np.ones(1, np.float32)


@dataclass(frozen=True)
class Features:
    """What the kernels need to know of each feature; every array is (F,).

    key_base: first key of its table.  rows: of its table, uint64.  padding, has_padding (uint8).
    modes, dims: int64.  seeds (uint64), init_kinds, init_params (float32): of its table.
    """

    key_base: IndexArray
    rows: AnyArray
    padding: IndexArray
    has_padding: AnyArray
    modes: IndexArray
    dims: IndexArray
    seeds: AnyArray
    init_kinds: IndexArray
    init_params: FloatArray

    def __len__(self) -> int:
        return len(self.dims)


@dataclass(frozen=True)
class Bags:
    """Numbered bags.  offsets (F B + 1,), bounds of them cut by CHUNK, weights (L,) or None, keys
    and places (L,), scale (by place) or None: all 1; see `kernels/many_bags.py`."""

    num_bags: int
    offsets: IndexArray
    bounds: IndexArray
    weights: FloatArray | None
    keys: IndexArray
    places: IndexArray
    scale: FloatArray | None

    @property
    def coefficients(self) -> ops.Coefficients:
        """As `ops.merge_gradient` takes them: places are bags of their own."""
        return ops.Coefficients(self.places, self.weights, self.scale)


@dataclass(frozen=True)
class Found:
    """Where keys are: addresses (n,) of records and flags, 0 for none (flags (0,) where they were
    not asked); missing (T,): how many rows of each table are not in memory."""

    records_at: IndexArray
    flags_at: IndexArray
    missing: IndexArray


def address(array: AnyArray) -> int:
    """Of the first element; the caller keeps the array."""
    return int(array.__array_interface__["data"][0])


def _place_bits(num_bags: int) -> int:
    return (num_bags - 1).bit_length()


def _or_one(array: FloatArray | None) -> tuple[FloatArray, int]:
    return (_ONE, 0) if array is None else (array, 1)


def number_bags(
    features: Features,
    indices: IndexArray,
    offsets: IndexArray,
    bounds: IndexArray | None,
    weights: FloatArray | None,
    num_bags: int,
    scaled: bool,
) -> Bags | None:
    """Check and number the positions of a batch; None when an index is out of range.

    Args:
        bounds: the bags cut by CHUNK; None: not yet.
        num_bags: B, at least 1; len(offsets) == F B + 1.
        scaled: a feature's mode is "mean" or "sqrtn".
    """
    guard_fork()
    if bounds is None:
        bounds = _plan.cut_bags(offsets, CHUNK)
    keys, places = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
    place_bits = _place_bits(num_bags)
    scale = np.empty(len(features) << place_bits if scaled else 0, np.float32)
    outside = np.zeros(len(bounds), np.int64)
    _many_bags.number_bags_cpu()(
        indices, offsets, bounds, num_bags, place_bits, features.key_base, features.rows,
        features.padding, features.has_padding, features.modes, *_or_one(weights),
        new_counter(len(bounds) - 1),
        keys, places, scale, outside,
    )  # fmt: skip
    if outside.any():
        return None
    return Bags(num_bags, offsets, bounds, weights, keys, places, scale if scaled else None)


def find(keys: IndexArray, key_starts: IndexArray, where: IndexArray, flags: bool) -> Found:
    """Look keys up in their tables' memory, and where their flags are, if asked; `where`
    (T, FIELDS) is of `kernels/many_find.py`."""
    guard_fork()
    records_at = np.empty(len(keys), np.int64)
    flags_at = np.empty(len(keys) if flags else 0, np.int64)
    missing = np.zeros((_many_find.CHUNKS, len(where)), np.int64)
    _many_find.find_many_cpu()(
        keys, key_starts, where, counter_of_items(len(keys)), records_at, flags_at, missing
    )
    return Found(records_at, flags_at, missing.sum(axis=0))


def lookup(
    features: Features,
    bags: Bags,
    found: Found,
    dims: tuple[int, ...],
    out_at: IndexArray,
    out_step: IndexArray,
) -> None:
    """Pool every feature whose dim is in `dims`: bag b of feature f goes to out_at[f] + b
    out_step[f], an address and bytes.  Positions that are not found are left out."""
    guard_fork()
    for dim in dims:
        _many_lookup.pool_many_cpu(dim)(
            found.records_at, bags.keys, bags.offsets, bags.bounds, bags.num_bags,
            _place_bits(bags.num_bags),
            *_or_one(bags.weights), *_or_one(bags.scale), features.dims, features.modes,
            features.key_base, features.seeds, features.init_kinds, features.init_params,
            out_at, out_step, new_counter(len(bags.bounds) - 1),
        )  # fmt: skip


def update(
    num_bags: int,
    merged: ops.Merged,
    coefficients: ops.Coefficients,
    found: Found,
    u0: int,
    u1: int,
    key_starts: IndexArray,
    tables: tuple[FloatArray, AnyArray, IndexArray, FloatArray],
    dim: int,
    name: str,
    grad_at: IndexArray,
    grad_step: IndexArray,
) -> None:
    """One fused step of the unique keys [u0, u1), all of tables with this dim and optimizer.

    Args:
        merged, coefficients: `ops.merge_gradient` of the keys; found: of the merged ones.
        tables: scalars (T, 9), seeds (T,), init_kinds (T,), init_params (T,).
        grad_at, grad_step: (F,) where the upstream gradient of a feature's first bag is, and the
            bytes from bag to bag.
    """
    if u1 <= u0:
        return
    guard_fork()
    entries = ops.gradient_entries(merged, u0, u1, coefficients)
    bounds, blocks = _plan.cut_segments(merged.starts, u0, u1, _many_update.CHUNK)
    sums = np.empty((len(blocks), dim), np.float32)
    for phase in range(0 if len(blocks) else 1, 2):
        _many_update.update_many_cpu(dim, name)(
            merged.indices, found.records_at, found.flags_at, key_starts, u0, u1, bounds, blocks,
            sums, merged.starts, *entries, _place_bits(num_bags), grad_at, grad_step, *tables,
            phase, new_counter(len(bounds) - 1),
        )  # fmt: skip
