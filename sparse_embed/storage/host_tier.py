"""Rows that left a GPU: in the host's memory while the process has room, in a scratch file beyond.

Slots below `_kept` are in memory, the others in the file.  Rows that the files have too stay here
as well (with no flags), until memory is wanted for rows that they have not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels._jit import new_counter
from sparse_embed.kernels.records import gather_records_cpu, scatter_records_cpu
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.resident import anonymous
from sparse_embed.storage.scratch import Scratch

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]

_STEP = 64 << 20  # bytes that are drawn from the budget at a time


class HostTier(Scratch):
    """As `Scratch`, with memory before the file."""

    def __init__(self, folder: Path | None, record_bytes: int, budget: Budget) -> None:
        super().__init__(folder, record_bytes, budget)
        self._lanes = record_bytes // 4
        self._most = budget.total // record_bytes
        self._begin()

    def _begin(self) -> None:
        self._memory: Any = None
        self._records: Floats = np.empty((0, self._lanes), np.float32)
        self._kept = 0
        self._full = False
        self._high = 0  # slots of memory below have been in use
        self._unused = np.zeros(0, np.int64)  # those that are free again

    def has_room(self, n: int) -> bool:
        """Whether `n` rows more find memory, if need be that of rows that the files have too."""
        if self._draw(self._high + n - min(n, self._unused.size)):
            return True
        slots = np.flatnonzero((self._row >= 0) & (self._flags == 0))
        if slots.size:
            self.remove(self._row[slots], slots)
        return self._room >= n

    @property
    def _room(self) -> int:
        """Slots of memory that are free."""
        return self._unused.size + self._kept - self._high

    def claim(self, n: int) -> Int64:
        self.has_room(n)
        self._map.reserve(n)
        near = min(n, self._room)
        reused = self._unused[: min(near, self._unused.size)]
        fresh = np.arange(self._high, self._high + near - reused.size, dtype=np.int64)
        self._have_slots(self._high + fresh.size)
        parts = [reused, fresh]
        if near < n:
            self._base = self._kept  # memory has all it will have
            parts.append(super().claim(n - near))
        return np.concatenate(parts)

    def _draw(self, slots: int) -> bool:
        """Have memory for all slots below this one."""
        wanted = slots - self._kept
        if self._full or wanted <= 0:
            return wanted <= 0
        for room in (max(wanted, _STEP // self._record_bytes), wanted):
            room = min(room, self._most - self._kept)
            if room >= wanted and self._budget.draw(room * self._record_bytes):
                if self._memory is None:
                    self._memory, self._records = anonymous(self._most, self._lanes)
                self._kept += room
                return True
        self._full = True
        return False

    def _occupy(self, slots: Int64) -> None:
        near = slots[slots < self._kept]
        fresh = int(np.count_nonzero(near >= self._high))
        self._high += fresh
        self._unused = self._unused[near.size - fresh :]
        super()._occupy(slots[slots >= self._kept])

    def _leave(self, slots: Int64) -> None:
        near = slots < self._kept
        self._unused = np.concatenate([slots[near], self._unused])
        super()._leave(slots[~near])

    def store(self, slots: Int64, data: Floats) -> None:
        inside = slots < self._kept
        if inside.all():
            scatter_records_cpu()(self._records, slots, new_counter(), data)
            return
        scatter_records_cpu()(self._records, slots[inside], new_counter(), data[inside])
        self._write_file(slots[~inside], data[~inside])

    def read(self, slots: Int64, out: Floats) -> None:
        inside = slots < self._kept
        if inside.all():
            gather_records_cpu()(self._records, slots, new_counter(), out)
            return
        for here, read in ((inside, self._from_memory), (~inside, self._read_file)):
            places = np.flatnonzero(here)
            data = np.empty((places.size, self._lanes), np.float32)
            read(slots[places], data)
            out[places] = data

    def _from_memory(self, slots: Int64, out: Floats) -> None:
        gather_records_cpu()(self._records, slots, new_counter(), out)

    def places(self, slots: Int64) -> list[tuple[int, Int64]]:
        return super().places(slots[slots >= self._kept])

    def clear(self) -> None:
        super().clear()
        self._budget.give(self._kept * self._record_bytes)
        self._begin()


__all__ = ["HostTier"]
