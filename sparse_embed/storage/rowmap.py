"""A growing map from row numbers to int64 values; the batch operations are kernels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels import rowmap as kernels
from sparse_embed.kernels._jit import counter_of_items
from sparse_embed.storage.budget import Budget

_SMALLEST = 1024
_LOAD = 0.6
_BLOCK = 1 << 20
_NO_FLAGS, _NOTHING = np.empty(0, np.uint8), np.uint8(0)
Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class RowMap:
    """Keys are row numbers >= 0; a value of -1 means absent.  24 to 54 bytes an entry."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._table = self._empty(_SMALLEST)
        self._count = 0
        self._sure = True  # False: interrupted between a kernel's work and its sum

    @property
    def count(self) -> int:
        """Number of entries."""
        if not self._sure:
            self._count = int(np.count_nonzero(self._table[:, 0] >= 0))
            self._sure = True
        return self._count

    def _empty(self, capacity: int) -> NDArray[np.int64]:
        table = np.full((capacity, 2), -1, np.int64)
        self._budget.take(table.nbytes)
        return table

    def _drop(self) -> None:
        self._budget.give(self._table.nbytes)

    @property
    def nbytes(self) -> int:
        return self._table.nbytes

    @property
    def table(self) -> NDArray[np.int64]:
        """The map as kernels take it: (C, 2), key and value; a key of -1 is a free place."""
        return self._table

    def reserve(self, more: int) -> None:
        """Make room for `more` new keys: the one place that may run out of memory."""
        capacity = self._table.shape[0]
        while (self.count + more) > capacity * _LOAD:
            capacity *= 2
        if capacity != self._table.shape[0]:
            self._rehash(capacity)

    def _rehash(self, capacity: int) -> None:
        table = self._empty(capacity)
        for begin in range(0, len(self._table) if self.count else 0, _BLOCK):
            entries = self._table[begin : begin + _BLOCK]
            entries = entries[entries[:, 0] >= 0]
            kernels.insert_cpu()(table, entries[:, 0].copy(), entries[:, 1].copy())
        self._drop()
        self._table = table

    def find(self, keys: Int64, flags: Bytes = _NO_FLAGS, put: np.uint8 = _NOTHING) -> Int64:
        """The values of `keys`, -1 where absent; the flags of those found get `put`."""
        values = np.empty(keys.shape[0], np.int64)
        if self.count == 0:
            values.fill(-1)
        else:
            counter = counter_of_items(len(keys))
            kernels.find_cpu()(self._table, keys, flags, put, counter, values)
        return values

    def insert(self, keys: Int64, values: Int64) -> None:
        """Set table[keys[i]] = values[i], in order."""
        self.reserve(keys.shape[0])
        self._sure = False
        self._count += int(kernels.insert_cpu()(self._table, keys, values))
        self._sure = True

    def erase(self, keys: Int64) -> None:
        """Remove keys; absent ones are passed over.  Gives memory back when most are gone."""
        if not self.count:
            return
        self._sure = False
        self._count -= int(kernels.erase_cpu()(self._table, keys))
        self._sure = True
        capacity = self._table.shape[0]
        if capacity > _SMALLEST and self.count < capacity * _LOAD / 8:
            self._rehash(max(_SMALLEST, 1 << int(self.count * 2 / _LOAD).bit_length()))

    def items(self) -> tuple[Int64, Int64]:
        """All keys and their values, in no particular order."""
        keys = np.empty(self.count, np.int64)
        values = np.empty(self.count, np.int64)
        kernels.items_cpu()(self._table, keys, values)
        return keys, values

    def clear(self) -> None:
        self._drop()
        self._table = self._empty(_SMALLEST)
        self._count = 0
        self._sure = True

    def release(self) -> None:
        """Give the memory back to the budget for good."""
        self._drop()
        self._table = np.empty((0, 2), np.int64)
        self._count = 0
        self._sure = True
