"""The records in memory: where a row lies (its slot), what to throw out, what is new.

Both kinds keep `records (S, W) float32` in anonymous memory with huge pages, never in a mapping of
a file, and a byte of flags per slot (kernels/records.py).

IdentitySlots    the table fits the budget: slot == row; a bit per row says whether it was loaded
IndexedSlots     it does not: a hash index row -> slot, second-chance eviction; changed rows go to
                 the scratch file, unchanged ones are dropped: the journal or the data file has them

`slots(rows)` brings rows in.  It reads and writes files before it changes any state, so that a full
disk leaves everything as it was; only the last, purely computing part sets `busy`, and a store that
was interrupted inside it must roll back.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels import records as kernels
from sparse_embed.kernels._jit import counter_of_items, new_counter
from sparse_embed.kernels.records import DIRTY, HOT, INFLIGHT, PINNED, REFERENCED, UNSAVED, USED
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.fresh_memory import fresh_memory
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.rowmap import RowMap
from sparse_embed.storage.scratch import Scratch

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# fetch(rows, out) reads the newest versions that are not in memory; returns slots of the scratch
# file (-1 where the row came from elsewhere).
Fetch = Callable[[Int64, Floats], Int64]

# stored(rows): which rows some file may hold a version of.
Stored = Callable[[Int64], NDArray[np.bool_]]

_CHUNK_BYTES = 8 << 20
_SMALLEST = 1024  # slots that every table may keep, whatever its budget
_STEP_BYTES = 4 << 20
_NONE = np.uint8(0)


def anonymous(rows: int, lanes: int) -> tuple[mmap.mmap, Floats]:
    """Zeroed records that cost something only where they are touched."""
    memory = fresh_memory(max(rows * lanes * 4, 4096))
    records = np.frombuffer(memory, np.float32, rows * lanes).reshape(rows, lanes)
    return memory, records


class Slots:
    """What both kinds share: records, flags, and the life of the flags around a commit."""

    kind: ClassVar[str] = "identity"
    records: Floats
    flags: Bytes
    busy: bool = False

    def __init__(self, layout: Layout, fetch: Fetch) -> None:
        self._layout = layout
        self._fetch = fetch
        self._chunk = max(1, _CHUNK_BYTES // layout.record_bytes)
        self._counts = np.zeros(32, np.int64)

    @property
    def limit(self) -> int:
        """Slots in use lie below this one."""
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """The most rows that can be in memory at one time."""
        raise NotImplementedError

    @property
    def whole(self) -> bool:
        """Every row of the table is in memory, at the slot of its number."""
        return False

    def trim(self) -> None:
        """Give memory back that indexes have come to need."""

    def slots(self, rows: Int64) -> Int64 | None:
        """The slots of `rows` (repeats allowed), all brought in; None when they cannot all fit."""
        raise NotImplementedError

    def rows_of(self, slots: Int64) -> Int64:
        raise NotImplementedError

    def find(self, rows: Int64) -> Int64:
        """The slots of rows that are in memory, -1 for the others."""
        raise NotImplementedError

    @property
    def index(self) -> NDArray[Any] | None:
        """What leads from a row to its slot, for kernels that look for themselves: bits of presence
        (identity), a row map (indexed), or None where slot == row for every row.

        Such a kernel marks what it finds in an indexed table as REFERENCED, and asks `slots` for
        rows that are not there.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forget everything."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the memory back."""
        raise NotImplementedError

    def flagged(self, want: np.uint8 = DIRTY) -> Int64:
        """The slots with a flag of `want`, ascending."""
        limit = self.limit
        counts = np.zeros(-(-limit // kernels.FLAGS_A_CHUNK), np.int64)
        kernels.count_flagged_cpu()(self.flags, limit, want, new_counter(), counts)
        ends = np.cumsum(counts)
        slots = np.empty(int(ends[-1]) if ends.size else 0, np.int64)
        words = self.flags[: self.flags.size // 8 * 8].view(np.uint64)
        kernels.select_flagged_cpu()(self.flags, words, want, ends, new_counter(), slots)
        return slots

    def gather(self, slots: Int64, out: Floats) -> None:
        kernels.gather_records_cpu()(self.records, slots, new_counter(), out)

    @property
    def in_blocks(self) -> bool:
        """Can `gather_blocks` take these records?"""
        return self._layout.record_bytes % 32 == 0

    def gather_blocks(
        self,
        slots: Int64,
        begin: int,
        salt: np.uint64,
        out: Bytes,
        digests: NDArray[np.uint64],
    ) -> None:
        """Bytes of the records from byte `begin` of them on, and the digest of each equal part."""
        kernels.gather_blocks_cpu()(
            self.records.view(np.uint64),
            slots,
            begin // 8,
            salt,
            new_counter(),
            out.view(np.uint64),
            digests,
        )

    def scatter(self, slots: Int64, data: Floats) -> None:
        """Write records, say nothing of it in their flags."""
        kernels.scatter_records_cpu()(self.records, slots, new_counter(), data)

    def put(self, slots: Int64, data: Floats) -> None:
        """Change records; they belong to the next commit."""
        self.scatter(slots, data)
        self._change_flags(slots, _NONE, DIRTY)

    def _change_flags(self, slots: Int64, clear: np.uint8, put: np.uint8) -> None:
        if slots.size:
            kernels.change_flags_cpu()(self.flags, slots, clear, put)

    def cold(self) -> Int64:
        """The slots that are DIRTY and were not in the newest commit frame."""
        slots = self.flagged()
        cold: Int64 = slots[self.flags[slots] & HOT == 0]
        return cold

    def mark_some_written(self, slots: Int64) -> None:
        self._change_flags(slots, DIRTY, INFLIGHT)

    def mark_written(self) -> None:
        kernels.mark_written_cpu()(self.flags, self.limit)

    def settle(self, durable: bool) -> None:
        kernels.settle_cpu()(self.flags, self.limit, _NONE if durable else DIRTY)


class IdentitySlots(Slots):
    """Slot == row."""

    def __init__(
        self, layout: Layout, fetch: Fetch, stored: Stored, new: bool, budget: Budget
    ) -> None:
        super().__init__(layout, fetch)
        self._stored = stored
        self._budget = budget
        self._rows = layout.num_embeddings
        self._allocate()
        self._present: NDArray[np.uint64] | None = None
        if not new:
            self._forget_presence()

    @staticmethod
    def bytes_needed(layout: Layout) -> int:
        rows = layout.num_embeddings
        return rows * (layout.record_bytes + 1) + rows // 8

    def _allocate(self) -> None:
        self._memory, self.records = anonymous(self._rows, self._layout.lanes)
        self.flags = np.zeros(self._rows, np.uint8)

    def _forget_presence(self) -> None:
        self._present = np.zeros((self._rows + 63) // 64, np.uint64)
        self._num_present = 0

    @property
    def index(self) -> NDArray[np.uint64] | None:
        return self._present

    @property
    def whole(self) -> bool:
        return self._present is None

    @property
    def limit(self) -> int:
        return self._rows

    @property
    def capacity(self) -> int:
        return self._rows

    def slots(self, rows: Int64) -> Int64:
        if self._present is not None:
            counter = counter_of_items(len(rows))
            kernels.missing_rows_cpu()(self._present, rows, counter, self._counts)
            if self._counts.any():
                self._load(rows)
        return rows

    def _load(self, rows: Int64) -> None:
        present = self._present
        assert present is not None
        missing = np.empty(rows.size, np.int64)
        self.busy = True  # the bits are set before the rows are there
        missing = missing[: kernels.collect_missing_cpu()(present, rows, missing)]
        try:
            # The others are virgin, and fresh memory is zero already.
            stored = np.sort(missing[self._stored(missing)])
            for begin in range(0, stored.size, self._chunk):
                part = stored[begin : begin + self._chunk]
                data = np.empty((part.size, self._layout.lanes), np.float32)
                self._fetch(part, data)
                self.scatter(part, data)
        except BaseException:
            kernels.clear_bits_cpu()(present, missing)
            self.busy = False
            raise
        self.busy = False
        self._num_present += missing.size
        if self._num_present == self._rows:
            self._present = None

    def adopt(self, rows: Int64, data: Floats, flags: Bytes) -> None:
        """Take over records from another layout, with what their flags say of commits."""
        self.scatter(rows, data)
        self.flags[rows] = flags & UNSAVED
        if self._present is not None:
            kernels.collect_missing_cpu()(self._present, rows, np.empty_like(rows))
            self._num_present += rows.size

    def rows_of(self, slots: Int64) -> Int64:
        return slots

    def find(self, rows: Int64) -> Int64:
        if self._present is None:
            return rows
        bits = (self._present[rows >> 6] >> (rows & 63).astype(np.uint64)) & np.uint64(1)
        return np.where(bits != 0, rows, -1)

    def reset(self) -> None:
        self._allocate()
        self._forget_presence()
        self.busy = False

    def release(self) -> None:
        self._budget.give(self.bytes_needed(self._layout))
        self.records = np.empty((0, self._layout.lanes), np.float32)
        self.flags = np.empty(0, np.uint8)
        del self._memory


class IndexedSlots(Slots):
    """Rows at any slot, found through a hash index."""

    kind = "indexed"

    def __init__(self, layout: Layout, fetch: Fetch, scratch: Scratch, budget: Budget) -> None:
        super().__init__(layout, fetch)
        self._scratch = scratch
        self._budget = budget
        self._slot_bytes = layout.record_bytes + 17  # flags, row number, place on the free list
        share = budget.total // self._slot_bytes
        self._most = min(layout.num_embeddings, max(_SMALLEST, share))
        # Indexes grow with the rows that no data file has yet.  They push records out of memory,
        # but never below a quarter of the budget: training has to go on.
        self._least = min(self._most, max(_SMALLEST, share // 4))
        self._index = RowMap(budget)
        self._drawn = 0
        self._draw_at_least(min(_SMALLEST, self._most))
        self._allocate()

    def _allocate_records(self) -> None:
        self._memory, self.records = anonymous(self._most, self._layout.lanes)

    def _free_records(self, keep: int) -> None:
        """Slots from `keep` on are not used for now."""
        start = -(-keep * self._layout.record_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and start < len(self._memory):
            self._memory.madvise(mmap.MADV_DONTNEED, start)

    def _release_records(self) -> None:
        self.records = np.empty((0, self._layout.lanes), np.float32)
        del self._memory

    def _allocate(self) -> None:
        self._allocate_records()
        self.flags = np.zeros(self._most, np.uint8)
        self._row = np.zeros(self._most, np.int64)
        self._free = np.zeros(self._most, np.int64)
        self._num_free = 0
        self._high = 0  # slots below have been handed out at some time
        self._hand = 0
        self._arrived = np.empty(0, np.int64)  # slots of the rows that came last

    def _draw_at_least(self, slots: int) -> None:
        self._budget.take(slots * self._slot_bytes)
        self._drawn += slots

    @property
    def index(self) -> NDArray[np.int64]:
        return self._index.table

    @property
    def limit(self) -> int:
        return self._high

    @property
    def capacity(self) -> int:
        return min(self._most, max(self._drawn, self._least) + self._growth())

    def trim(self) -> None:
        if self._budget.excess:
            self._shrink(self._budget.excess)

    def _growth(self) -> int:
        """Slots that the budget would still allow."""
        left = max(0, self._budget.total - self._budget.used) // self._slot_bytes
        return min(left, self._most - self._drawn)

    def find(self, rows: Int64) -> Int64:
        return self._index.find(rows)

    def rows_of(self, slots: Int64) -> Int64:
        return self._row[slots]

    @property
    def count(self) -> int:
        """Rows in memory."""
        return self._index.count

    def entries(self, chunk: int) -> Iterator[tuple[Int64, Int64]]:
        """(rows, slots) of everything in memory, a chunk at a time."""
        slots = self.flagged(USED)
        for begin in range(0, slots.size, chunk):
            part = slots[begin : begin + chunk]
            yield self._row[part], part

    def slots(self, rows: Int64) -> Int64 | None:
        self.trim()
        slots = self._index.find(rows, self.flags, REFERENCED)
        absent = slots < 0
        if not absent.any():
            return slots
        missing = np.unique(rows[absent])
        hits = slots[~absent]
        # One batch, however often it calls, is no reason to stay: rows that came with the last one
        # lose its mark, and have it again if they are wanted now.
        self._change_flags(self._arrived, REFERENCED, _NONE)
        try:
            self._change_flags(hits, _NONE, REFERENCED | PINNED)
            got = self._make_room(missing.size)
        finally:
            self._change_flags(hits, PINNED, _NONE)
        if got is None:
            return None
        self._bring_in(missing, got)
        self._arrived = got
        slots[absent] = self._index.find(rows[absent], self.flags, REFERENCED)
        return slots

    def _bring_in(self, rows: Int64, slots: Int64) -> None:
        """Read `rows` into free `slots`, then make them known."""
        self._index.reserve(rows.size)
        origin = np.empty(rows.size, np.int64)
        for begin in range(0, rows.size, self._chunk):
            part = slice(begin, begin + self._chunk)
            data = np.empty((rows[part].size, self._layout.lanes), np.float32)
            origin[part] = self._fetch(rows[part], data)
            self.scatter(slots[part], data)
        spilled = origin >= 0
        flags = np.full(rows.size, USED | REFERENCED, np.uint8)
        flags[spilled] |= self._scratch.flags(origin[spilled])
        self.busy = True
        self._take_free(slots)
        self._row[slots] = rows
        self.flags[slots] = flags
        self._index.insert(rows, slots)
        self._scratch.remove(rows[spilled], origin[spilled])
        self.busy = False

    def _make_room(self, n: int) -> Int64 | None:
        """`n` slots free to use, evicting if need be; None when pinned rows leave too few."""
        while self._num_free + (self._drawn - self._high) < n:
            more = n - self._num_free - (self._drawn - self._high)
            step = min(max(more, _STEP_BYTES // self._slot_bytes), self._growth())
            if step > 0 and self._budget.draw(step * self._slot_bytes):
                self._drawn += step
            elif self._drawn < self._least:
                self._draw_at_least(min(more, self._least - self._drawn))
            else:
                break
        short = n - self._num_free - (self._drawn - self._high)
        if short > 0:
            victims = np.empty(short, np.int64)
            found, hand = kernels.choose_victims_cpu()(self.flags, self._high, self._hand, victims)
            self._change_flags(victims[:found], PINNED, _NONE)
            if found < short:
                return None
            self._hand = int(hand)
            self._evict(victims)
        reused = min(n, self._num_free)
        fresh = np.arange(self._high, self._high + n - reused, dtype=np.int64)
        return np.concatenate([self._free[self._num_free - reused : self._num_free], fresh])

    def _take_free(self, slots: Int64) -> None:
        reused = int(np.count_nonzero(slots < self._high))
        self._num_free -= reused
        self._high += slots.size - reused

    def _evict(self, victims: Int64) -> None:
        """Free these slots; what no file has yet goes to the scratch file first."""
        unsaved = victims[self.flags[victims] & UNSAVED != 0]
        for begin in range(0, unsaved.size, self._chunk):
            part = unsaved[begin : begin + self._chunk]
            data = np.empty((part.size, self._layout.lanes), np.float32)
            self.gather(part, data)
            flags = self.flags[part] & UNSAVED
            rows = self._row[part]
            places = self._scratch.write(rows, data, flags)
            self.busy = True
            self._scratch.admit(rows, places, flags)
            self._drop(part)
            self.busy = False
        self.busy = True
        self._drop(victims[self.flags[victims] & USED != 0])
        self.busy = False

    def _drop(self, slots: Int64) -> None:
        self._index.erase(self._row[slots])
        self.flags[slots] = 0
        self._free[self._num_free : self._num_free + slots.size] = slots
        self._num_free += slots.size

    def _shrink(self, excess: int) -> None:
        """Give slots back because an index or a map had to grow."""
        keep = max(self._least, self._drawn - -(-excess // self._slot_bytes))
        if keep >= self._drawn:
            return
        used = np.flatnonzero(self.flags[keep : self._high] & USED) + keep
        self._evict(used.astype(np.int64))
        self.busy = True
        free = self._free[: self._num_free]
        free = free[free < keep]
        self._free[: free.size] = free
        self._num_free = free.size
        self._high = min(self._high, keep)
        if self._hand >= self._high:
            self._hand = 0
        self._budget.give((self._drawn - keep) * self._slot_bytes)
        self._drawn = keep
        self.busy = False
        self._free_records(keep)

    def settle(self, durable: bool) -> None:
        super().settle(durable)
        self._scratch.settle(durable)

    def reset(self) -> None:
        self._index.clear()
        self._scratch.clear()
        self._budget.give(self._drawn * self._slot_bytes)
        self._drawn = 0
        self._draw_at_least(min(_SMALLEST, self._most))
        self._allocate()
        self.busy = False

    def release(self) -> None:
        self._index.release()
        self._budget.give(self._drawn * self._slot_bytes)
        self._drawn = 0
        self._release_records()
        self.flags = np.empty(0, np.uint8)
        self._row = np.empty(0, np.int64)
        self._free = np.empty(0, np.int64)


__all__ = ["DIRTY", "INFLIGHT", "IdentitySlots", "IndexedSlots", "Slots"]
