"""Room on disk for rows that were changed, not yet committed, and had to leave memory.

A nameless file: it dies with the process and is never recovered, because nothing in it was ever
promised.  Slots are reused, so it is as large as the most rows that were out at one time.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels.records import DIRTY, INFLIGHT
from sparse_embed.kernels.rowio import read_records
from sparse_embed.storage import files
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.journal import read_failed
from sparse_embed.storage.rowmap import RowMap

Int64 = NDArray[np.int64]
_SLOT_BYTES = 9  # a flag, and a place on the list of free slots


class Scratch:
    """Rows out of memory: row -> slot of the file, with the row's flags."""

    def __init__(self, folder: Path | None, record_bytes: int, budget: Budget) -> None:
        self._folder = folder
        self._record_bytes = record_bytes
        self._budget = budget
        self._fd = -1
        self._map = RowMap(budget)
        self._flags = np.zeros(0, np.uint8)
        self._free = np.zeros(0, np.int64)
        self._num_free = 0
        self._high = 0

    @property
    def count(self) -> int:
        return self._map.count

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._high * self._record_bytes

    def find(self, rows: Int64) -> Int64:
        """The slots of `rows`, -1 where a row is not here."""
        return self._map.find(rows)

    def write(self, rows: Int64, data: NDArray[np.float32], flags: NDArray[np.uint8]) -> Int64:
        """Put records into free slots and return these; `admit` then makes them known.

        Raises StoreError when the disk is full; nothing has changed then.
        """
        slots = self.claim(rows.size)
        self.store(slots, data)
        return slots

    def claim(self, n: int) -> Int64:
        """Slots to write to: reused ones first.  They stay free until `admit`."""
        self._map.reserve(n)
        reused = min(n, self._num_free)
        fresh = n - reused
        if self._high + fresh > self._flags.size:
            grown = max(self._high + fresh, 2 * self._flags.size, 4096)
            self._budget.take((grown - self._flags.size) * _SLOT_BYTES)
            self._free = np.resize(self._free, grown)  # first: the size of the flags tells
            self._flags = np.resize(self._flags, grown)
        return np.concatenate(
            [
                self._free[self._num_free - reused : self._num_free],
                np.arange(self._high, self._high + fresh, dtype=np.int64),
            ]
        )

    def store(self, slots: Int64, data: NDArray[np.float32]) -> None:
        """Put records into slots that were claimed; errors as in `write`."""
        where = "the scratch file for rows beyond the cache"
        if self._fd < 0:
            making = files.explained(f"cannot create {where}")
            with making, tempfile.TemporaryFile(dir=self._folder) as file:
                self._fd = os.dup(file.fileno())
        order = np.argsort(slots)
        at, code = files.CALLS.pwrite_records(
            self._fd, slots[order] * self._record_bytes, data[order].view(np.uint8)
        )
        if at >= 0:
            files.raise_errno(code, f"cannot write {where}")

    def admit(self, rows: Int64, slots: Int64, flags: NDArray[np.uint8]) -> None:
        """The records written to `slots` are the newest versions of `rows` now."""
        reused = int(np.count_nonzero(slots < self._high))
        self._num_free -= reused
        self._high += slots.size - reused
        self._flags[slots] = flags
        self._map.insert(rows, slots)

    def flags(self, slots: Int64) -> NDArray[np.uint8]:
        return self._flags[slots]

    def read(self, slots: Int64, out: NDArray[np.float32]) -> None:
        data = out.view(np.uint8)
        at, code = read_records(self._fd, slots * self._record_bytes, data)
        if at >= 0:
            read_failed(code, "the scratch file")

    def places(self, slots: Int64) -> list[tuple[int, Int64]]:
        """(descriptor, byte offsets) of the records in these slots; nothing for none."""
        return [(self._fd, slots * self._record_bytes)] if slots.size else []

    def remove(self, rows: Int64, slots: Int64) -> None:
        """The rows are back in memory, or durable: their slots may be reused."""
        self._map.erase(rows)
        self._free[self._num_free : self._num_free + slots.size] = slots
        self._num_free += slots.size

    def dirty(self) -> tuple[Int64, Int64]:
        """(rows, slots) changed since the last frame, by slot."""
        rows, slots = self._map.items()
        keep = self._flags[slots] & DIRTY != 0
        rows, slots = rows[keep], slots[keep]
        order = np.argsort(slots)
        return rows[order], slots[order]

    def rows(self) -> Int64:
        return self._map.items()[0]

    def mark_written(self, slots: Int64) -> None:
        self._flags[slots] = INFLIGHT

    def settle(self, durable: bool) -> None:
        """The frame's fate is known: its rows leave, or are as they were."""
        if not self.count:
            return
        rows, slots = self._map.items()
        inflight = self._flags[slots] & INFLIGHT != 0
        if durable:
            gone = inflight & (self._flags[slots] & DIRTY == 0)
            self._flags[slots] &= np.uint8(255) ^ INFLIGHT
            self.remove(rows[gone], slots[gone])
        else:
            self._flags[slots[inflight]] = DIRTY

    def clear(self) -> None:
        """Forget every row; the file's space is given back."""
        self._map.clear()
        self._num_free = 0
        self._high = 0
        fd, self._fd = self._fd, -1  # first: an interrupt after the close must not close twice
        if fd >= 0:
            os.close(fd)

    def release(self) -> None:
        self.clear()
        self._map.release()
        self._budget.give(self._flags.size * _SLOT_BYTES)
        self._flags = np.zeros(0, np.uint8)
        self._free = np.zeros(0, np.int64)
