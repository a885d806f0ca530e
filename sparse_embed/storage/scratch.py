"""Room on disk for rows that were changed, not yet committed, and had to leave memory.

A nameless file: it dies with the process and is never recovered, because nothing in it was ever
promised.  It is a log in segments: what leaves memory is appended, many records in one write, and a
segment is written again once all its rows have left.  When more than half of the file would be
stale, the rows of the emptiest segments move to the end first, so the file is at most twice as
large as the most rows that were out at one time, and some segments.

Single records at the places that happened to fall free cost a system call and a page of writeback
each: 20 microseconds a row against less than one.
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
from sparse_embed.storage.rowmap import RowMap
from sparse_embed.storage.segments import read_failed

Int64 = NDArray[np.int64]
_SLOT_BYTES = 9  # a flag, and the number of the row
_SEGMENT_BYTES = 1 << 20
_FEW = 4  # segments that the file may always have, stale or not
_NOTHING = np.empty(0, np.int64)


class Scratch:
    """Rows out of memory: row -> slot of the file, with the row's flags.

    Slots of the file are numbered from `_base` on.
    """

    def __init__(self, folder: Path | None, record_bytes: int, budget: Budget) -> None:
        self.busy = False  # interrupted in the middle of a change of state
        self._folder = folder
        self._record_bytes = record_bytes
        self._per = max(1, _SEGMENT_BYTES // record_bytes)  # slots of a segment
        self._budget = budget
        self._fd = -1
        self._map = RowMap(budget)
        self._flags = np.zeros(0, np.uint8)
        self._row = np.zeros(0, np.int64)  # of each slot; -1 where there is none
        self._begin_log()

    def _begin_log(self) -> None:
        self._base = 0
        self._live = np.zeros(0, np.int64)  # rows in each segment of the file
        self._open = -1  # the segment that is being filled
        self._next = 0  # its first slot that was not written yet

    @property
    def count(self) -> int:
        return self._map.count

    @property
    def nbytes(self) -> int:
        """Size of the file, at most."""
        return self._live.size * self._per * self._record_bytes

    def find(self, rows: Int64) -> Int64:
        """The slots of `rows`, -1 where a row is not here."""
        return self._map.find(rows)

    # ---- writing --------------------------------------------------------------------------------

    def write(self, rows: Int64, data: NDArray[np.float32], flags: NDArray[np.uint8]) -> Int64:
        """Put records into free slots and return these; `admit` then makes them known.

        Raises StoreError when the disk is full; nothing has changed then.
        """
        slots = self.claim(rows.size)
        self.store(slots, data)
        return slots

    def claim(self, n: int) -> Int64:
        """Slots to write to, in the order of writing.  They stay free until `admit`.

        May move rows to other slots first: those found before are void.
        """
        self._map.reserve(n)
        self._tidy(n)
        return self._free_slots(n)

    def _free_slots(self, n: int) -> Int64:
        """The next `n` slots of the log: the open segment, empty ones, new ones."""
        left = self._segment_end(self._open) - self._next if self._open >= 0 else 0
        first = np.arange(self._next, self._next + min(left, n), dtype=np.int64)
        wanted = -(-(n - first.size) // self._per)
        if not wanted:
            return first
        segments = self._empty()[:wanted]
        fresh = wanted - segments.size
        segments = np.concatenate([segments, self._live.size + np.arange(fresh, dtype=np.int64)])
        if fresh:
            self._have_slots(self._segment_end(int(segments[-1])))
        slots = self._base + segments[:, None] * self._per + np.arange(self._per, dtype=np.int64)
        return np.concatenate([first, slots.reshape(-1)[: n - first.size]])

    def _segment_end(self, segment: int) -> int:
        return self._base + (segment + 1) * self._per

    def _empty(self) -> Int64:
        """Segments that hold no row, ascending."""
        found = np.flatnonzero(self._live == 0)
        empty: Int64 = found[found != self._open]
        return empty

    def _have_slots(self, slots: int) -> None:
        old = self._flags.size
        if slots > old:
            size = max(slots, old + old // 4)
            self._budget.take((size - old) * _SLOT_BYTES)
            row = np.full(size, -1, np.int64)
            row[:old] = self._row[:old]
            self._row = row  # first: the size of the flags tells
            self._flags = np.concatenate([self._flags, np.zeros(size - old, np.uint8)])

    def _tidy(self, n: int) -> None:
        """Before `n` rows come: move rows together where the file would be more than half stale."""
        short = -(-n // self._per) - self._empty().size  # segments
        allowed = 2 * -(-(int(self._live.sum()) + n) // self._per) + _FEW
        if short <= 0 or self._live.size + short <= allowed:
            return
        # Less than half of the slots are in use, so the emptiest segments are less than half full.
        order = np.argsort(self._live, kind="stable")
        order = order[(self._live[order] > 0) & (order != self._open)]
        gained = np.arange(1, order.size + 1) - np.cumsum(self._live[order]) / self._per
        segments = order[: int(np.searchsorted(gained, short)) + 1]
        starts = self._base + np.sort(segments) * self._per
        slots = (starts[:, None] + np.arange(self._per, dtype=np.int64)).reshape(-1)
        slots = slots[self._row[slots] >= 0]
        rows, flags = self._row[slots], self._flags[slots]
        data = np.empty((rows.size, self._record_bytes // 4), np.float32)
        self._read_file(slots, data)
        places = self._free_slots(rows.size)
        self._write_file(places, data)
        self.busy = True
        self._vacate(slots)
        self.admit(rows, places, flags)
        self.busy = False

    def store(self, slots: Int64, data: NDArray[np.float32]) -> None:
        """Put records into slots that were claimed; errors as in `write`."""
        self._write_file(slots, data)

    def _write_file(self, slots: Int64, data: NDArray[np.float32]) -> None:
        where = "the scratch file for rows beyond the cache"
        if self._fd < 0:
            making = files.explained(f"cannot create {where}")
            with making, tempfile.TemporaryFile(dir=self._folder) as file:
                self._fd = os.dup(file.fileno())
        at, code = files.CALLS.pwrite_records(self._fd, self._offsets(slots), data.view(np.uint8))
        if at >= 0:
            files.raise_errno(code, f"cannot write {where}")

    def _offsets(self, slots: Int64) -> Int64:
        return (slots - self._base) * self._record_bytes

    def admit(self, rows: Int64, slots: Int64, flags: NDArray[np.uint8]) -> None:
        """The records written to `slots` are the newest versions of `rows` now."""
        self._occupy(slots)
        self._row[slots] = rows
        self._flags[slots] = flags
        self._map.insert(rows, slots)

    def _occupy(self, slots: Int64) -> None:
        """The slots that were claimed are in use."""
        if slots.size:
            segments = (slots - self._base) // self._per
            counts = np.bincount(segments, minlength=self._live.size)
            counts[: self._live.size] += self._live
            self._live = counts
            self._open, self._next = int(segments[-1]), int(slots[-1]) + 1

    # ---- reading --------------------------------------------------------------------------------

    def flags(self, slots: Int64) -> NDArray[np.uint8]:
        return self._flags[slots]

    def read(self, slots: Int64, out: NDArray[np.float32]) -> None:
        self._read_file(slots, out)

    def _read_file(self, slots: Int64, out: NDArray[np.float32]) -> None:
        at, code = read_records(self._fd, self._offsets(slots), out.view(np.uint8))
        if at >= 0:
            read_failed(code, "the scratch file")

    def places(self, slots: Int64) -> list[tuple[int, Int64]]:
        """(descriptor, byte offsets) of the records in these slots; nothing for none."""
        return [(self._fd, self._offsets(slots))] if slots.size else []

    # ---- leaving --------------------------------------------------------------------------------

    def remove(self, rows: Int64, slots: Int64) -> None:
        """The rows are back in memory, or durable: their slots may be reused."""
        self._map.erase(rows)
        self._vacate(slots)

    def _vacate(self, slots: Int64) -> None:
        self._row[slots] = -1
        self._flags[slots] = 0
        self._leave(slots)

    def _leave(self, slots: Int64) -> None:
        """The slots are free."""
        if slots.size:
            segments = (slots - self._base) // self._per
            self._live -= np.bincount(segments, minlength=self._live.size)

    def dirty(self, want: np.uint8 = DIRTY) -> tuple[Int64, Int64]:
        """(rows, slots) changed since the last frame, by slot; or with a flag of `want`."""
        if not self.count:
            return _NOTHING, _NOTHING
        slots = np.flatnonzero(self._flags & want)
        return self._row[slots], slots

    def rows(self) -> Int64:
        return self._map.items()[0]

    def mark_written(self, slots: Int64) -> None:
        self._flags[slots] = INFLIGHT

    def settle(self, durable: bool) -> None:
        """The frame's fate is known: its rows leave, or are as they were."""
        if not self.count:
            return
        slots = np.flatnonzero(self._flags & INFLIGHT)
        if not durable:
            self._flags[slots] = DIRTY
            return
        gone = slots[self._flags[slots] & DIRTY == 0]
        self._flags[slots] &= DIRTY
        self.remove(self._row[gone], gone)

    def clear(self) -> None:
        """Forget every row; the file's space is given back."""
        self._map.clear()
        self._row.fill(-1)
        self._flags.fill(0)
        self._begin_log()
        self.busy = False
        fd, self._fd = self._fd, -1  # first: an interrupt after the close must not close twice
        if fd >= 0:
            os.close(fd)

    def release(self) -> None:
        self.clear()
        self._map.release()
        self._budget.give(self._flags.size * _SLOT_BYTES)
        self._flags = np.zeros(0, np.uint8)
        self._row = np.zeros(0, np.int64)
