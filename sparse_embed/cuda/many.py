"""Operations on many tables and features at once on a GPU: `ops_many` there.

One sort merges the batches of all tables; lookups and updates are then a launch for each feature
and table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_embed._typing import FloatArray
from sparse_embed.cuda.merging import Merged, Survey
from sparse_embed.cuda.ops import DeviceOps
from sparse_embed.kernels.cuda import batches as _batches
from sparse_embed.kernels.cuda import many as _many
from sparse_embed.ops_many import NO_KEY, Features


class Numbered(NamedTuple):
    """Positions of a batch: their keys and bags (`kernels/cuda/many.py`), what is wrong with them
    on the device, and a function that waits to know."""

    keys: Any
    bags: Any
    found: Any
    survey: Callable[[], Survey]


class ManyOps:
    """The operations of one collection.

    Args:
        features: as the user gave them.
        key_starts: (T + 1,) of the tables.
        order: features one table behind the other, tables of one dim together.
    """

    def __init__(
        self, ops: DeviceOps, features: Features, key_starts: Any, order: Sequence[int]
    ) -> None:
        self.ops, self.memory = ops, ops.memory
        dims = features.dims[list(order)]
        rank = np.empty(len(order), np.int64)  # of each feature in `order`
        rank[list(order)] = np.arange(len(order))
        firsts = np.searchsorted(_runs(dims), _runs(dims))  # of those with the same dim
        places = np.arange(len(order)) - firsts
        self.begins = np.concatenate([[0], np.cumsum(dims)])  # in columns, by rank
        upload = self.memory.upload
        self._key_base, self._padding = upload(features.key_base), upload(features.padding)
        self._rows = upload(features.rows.astype(np.int64))
        self._has_padding = upload(features.has_padding.astype(np.int64))
        self._modes, self._order = upload(features.modes), upload(rank)
        self._places = upload(places[rank])
        self._key_starts = upload(key_starts)
        self.width = int(self.begins[-1])
        every = [np.full(dim, rank[f]) for f, dim in enumerate(features.dims)]
        of_column = np.concatenate(every)
        inside = np.concatenate([np.arange(dim) for dim in features.dims])
        self._columns = tuple(
            upload(array) for array in (self.begins[of_column], dims[of_column], inside)
        )
        self.total = int(key_starts[-1])

    def number(self, indices: Any, offsets: Any, num_bags: int) -> Numbered:
        """Keys and bags of a batch; `num_bags` is at least 1."""
        memory, length = self.memory, int(indices.shape[0])
        bag_ids = memory.work("bag ids", length, np.int64)
        memory.each(_batches.bag_ids_cuda(), length, offsets, bag_ids)
        keys, bags = memory.empty(length, np.int64), memory.empty(length, np.int64)
        found = memory.zeros(len(Survey._fields), np.int64)
        memory.each(
            _many.number_keys_cuda(), max(length, int(offsets.shape[0])), indices, offsets, bag_ids,
            num_bags, self._key_base, self._rows, self._padding, self._has_padding, self._places,
            found, keys, bags,
        )  # fmt: skip
        read = memory.read_later(found)
        return Numbered(keys, bags, found, lambda: Survey(*map(int, read())))

    def scale(self, indices: Any, offsets: Any, weights: Any, num_bags: int) -> Any:
        """(F B,) of the bags of the features in their order here."""
        scale = self.memory.work("scales", int(offsets.shape[0]) - 1, np.float32)
        self.memory.each(
            _many.scale_bags_cuda(), int(scale.shape[0]), indices, offsets, num_bags, self._modes,
            self._padding, self._has_padding, self._order, *self.ops.or_one(weights), scale,
        )  # fmt: skip
        return scale

    def merge(self, numbered: Numbered) -> tuple[Merged, list[int]]:
        """The batch of all tables by unique row, its `indices` being row numbers; (T + 1,) where
        each table begins among them, which is waited for."""
        memory = self.memory
        merged = self.ops.merge(numbered.keys, NO_KEY, self.total, numbered.bags)
        length, tables = int(numbered.keys.shape[0]), int(self._key_starts.shape[0])
        if length == 0:
            return merged, [0] * tables
        cuts = memory.work("cuts", tables, np.int64)
        how = (merged.all_indices, merged.num, self._key_starts)
        memory.each(_many.cut_keys_cuda(), tables, *how, cuts)
        rows = memory.work("rows of keys", length, np.int64)
        memory.each(_many.rows_of_keys_cuda(), length, *how, rows)
        arrays = (rows, merged.all_starts, merged.all_positions)
        found: Any = memory.download(cuts)
        by_row = Merged(arrays, merged.num, merged.hot, memory.number, None, merged.all_bags)
        return by_row, found.tolist()

    def side_by_side(self, flat: Any, num_bags: int) -> Any:
        """(B, C) of a matrix (B, D) for each feature in `flat`."""
        wide = self.memory.empty((num_bags, self.width), np.float32, "pooled rows")
        kernel = _many.arrange_columns_cuda(True)
        self.memory.each(kernel, num_bags * self.width, flat, wide, *self._columns)
        return wide

    def apart(self, wide: Any) -> Any:
        """The way back."""
        flat = self.memory.empty(int(wide.size), np.float32, "the gradient of bags")
        kernel = _many.arrange_columns_cuda(False)
        self.memory.each(kernel, int(wide.size), flat, wide, *self._columns)
        return flat

    def matrix(self, flat: Any, first: int, last: int, num_bags: int) -> Any:
        """The matrices of features [first, last) of the order, which have one dim, as one."""
        begin, end = (int(self.begins[p]) * num_bags for p in (first, last))
        dim = int(self.begins[first + 1] - self.begins[first])
        return flat[begin:end].reshape((num_bags * (last - first), dim))


def _runs(dims: Any) -> FloatArray:
    """Numbers of runs of equal dims, ascending."""
    changes: FloatArray = np.cumsum(np.append(0, dims[1:] != dims[:-1]))
    return changes


__all__ = ["ManyOps", "Numbered"]
