"""Where the newest committed version of a row lies in the journal: row -> place.

Few rows of a large table are in a hash map.  Once an array with a place for every row would be
smaller, it is one: 4 ns a row to fill instead of 35 and the map's growth, which for the 30 million
rows of many commits held training up for 4 s.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sparse_embed.storage.budget import Budget
from sparse_embed.storage.rowmap import RowMap

_ENTRY_BYTES = 32  # of the map, a row in it
_ROW_BYTES = 8  # of the array
_FEW = 8  # times as large as a map of what is left: then it is a map again
_AT_ONCE = 1 << 20

Int64 = NDArray[np.int64]


class Places:
    """Row numbers below `num_embeddings` to places >= 0; -1 means absent."""

    def __init__(self, num_embeddings: int, budget: Budget) -> None:
        self._rows = num_embeddings
        self._budget = budget
        self._map = RowMap(budget)
        self._array: Int64 | None = None

    @property
    def count(self) -> int:
        """Number of rows that have a place."""
        if self._array is None:
            return self._map.count
        return int(np.count_nonzero(self._array >= 0))

    def find(self, rows: Int64) -> Int64:
        if self._array is None:
            return self._map.find(rows)
        found: Int64 = self._array[rows]
        return found

    def insert(self, rows: Int64, places: Int64) -> None:
        """May be repeated after an interrupt."""
        more = (self._map.count + rows.size) * _ENTRY_BYTES
        if self._array is None and more > _ROW_BYTES * self._rows:
            array = np.full(self._rows, -1, np.int64)
            old, its = self._map.items()
            array[old] = its
            self._become(array, RowMap(self._budget))
        if self._array is None:
            self._map.insert(rows, places)
        else:
            self._array[rows] = places

    def _become(self, array: Int64 | None, new: RowMap) -> None:
        """Both hold the same, and all of it: half a map would show old rows."""
        self._budget.take(_ROW_BYTES * self._rows if array is not None else 0)
        had, old = self._array is not None, self._map
        self._array, self._map = array, new
        old.release()
        self._budget.give(_ROW_BYTES * self._rows if had else 0)

    def items(self) -> tuple[Int64, Int64]:
        """All rows and their places, in no particular order."""
        if self._array is None:
            return self._map.items()
        rows = np.flatnonzero(self._array >= 0)
        return rows, self._array[rows]

    def drop(self, gone: Callable[[Int64], NDArray[np.bool_]]) -> None:
        """Forget rows at places that are gone: each is found elsewhere by now."""
        if self._array is None and not self._map.count:
            return
        if self._array is not None:
            for begin in range(0, self._rows, _AT_ONCE):
                part = self._array[begin : begin + _AT_ONCE]
                part[gone(part)] = -1
            if self.count * _ENTRY_BYTES * _FEW >= _ROW_BYTES * self._rows:
                return
        rows, places = self.items()
        keep = ~gone(places)
        fresh = RowMap(self._budget)
        fresh.insert(rows[keep], places[keep])
        self._become(None, fresh)

    def release(self) -> None:
        """Give the memory back to the budget for good."""
        self._become(None, RowMap(self._budget))
        self._map.release()
