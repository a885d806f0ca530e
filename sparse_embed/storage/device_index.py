"""Resident rows of a table that is larger than its part of a GPU's memory.

Index, flags and the clock that says what leaves lie on the device, beside the records: a batch
whose rows are all there costs one kernel and one number of 8 bytes.  Only the numbers of absent
rows come to the host, which reads them from the files; rows that leave stay in the host's memory as
long as it has room, and go to the scratch file beyond (`host_tier`).

`prefetch` does the same on a stream of its own, beside what the device is doing for the batch in
hand: rows of that batch keep their slots meanwhile, so the two never touch the same record.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.device import DeviceMemory
from sparse_embed.device_scan import select_flagged
from sparse_embed.kernels.cuda import records as flagging
from sparse_embed.kernels.cuda import slots as kernels
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.device_slots import DeviceSlots
from sparse_embed.storage.host_tier import HostTier
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.resident import Fetch, Stored

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]

_SMALLEST = 1024  # slots that every table may keep, whatever its budget
_CELLS = 2  # of the index, for each slot
_SLOT_BYTES = 12 * _CELLS + 17  # index; flags, row number, two stamps
_GONE = 8  # a row in so many cells may be gone before the index is made again
_WINDOW = 1 << 16  # slots that the hand looks over at a time, at least
_NOTHING = np.empty(0, np.int64)


class DeviceIndexedSlots(DeviceSlots):
    """Rows at any slot of the device, found through an index there."""

    kind = "indexed"

    def __init__(
        self,
        layout: Layout,
        fetch: Fetch,
        stored: Stored,
        scratch: HostTier,
        budget: Budget,
        memory: DeviceMemory,
    ) -> None:
        slot_bytes = layout.record_bytes + _SLOT_BYTES
        share = budget.total // slot_bytes
        self._size = min(layout.num_embeddings, max(_SMALLEST, share), 2**31 - 1)
        held = self._size * slot_bytes
        budget.take(held)
        super().__init__(layout, fetch, stored, budget, held, memory, self._size)
        self._scratch = scratch
        size, what = self._size, "the index of resident rows"
        self._owners = memory.empty(size, np.int64, what)
        self._stamps = memory.empty(size, np.int32, what)
        self._seen = memory.empty(size, np.int32, what)
        self._keys = memory.empty(_CELLS * size, np.int64, what)
        self._places = memory.empty(_CELLS * size, np.int32, what)
        self._forget()

    def _forget(self) -> None:
        memory = self._memory
        for array in (self.flags, self._stamps, self._seen, self._keys, self._owners):
            memory.clear(array)
        self._now = self._in_hand = 1  # numbers of the last batch, and of the last but prefetched
        self._high = 0  # slots below have been handed out at some time
        self._hand = 0
        self._gone = 0  # cells of the index that rows have left, at the most
        self._spare = np.empty(0, np.int64)  # slots below `high` that are free
        self._guess = 0  # how many rows of the next batch may be absent
        self._memory.record(self._changed)

    @property
    def limit(self) -> int:
        return self._high

    @property
    def capacity(self) -> int:
        return self._size

    # ---- bringing rows in -----------------------------------------------------------------------

    def bring(self, rows: Any, padding_idx: int) -> Any:
        self._beside.join()
        if rows.shape[0] == 0:
            return rows
        self._now += 1
        self._in_hand = self._now
        slots, absent = self._find(rows, padding_idx)
        if absent.size:
            if absent.size > self._size or not self._load(absent, self._now):
                self._memory.record(self._changed)
                return None
            slots, _ = self._find(rows, padding_idx, again=True)
        self._memory.record(self._changed)
        return slots

    def _bring_beside(self, rows: Any, padding_idx: int) -> None:
        self._now += 1
        _, absent = self._find(rows, padding_idx)
        if absent.size:
            self._load(absent[: self._size // 2], self._in_hand)

    def _find(self, rows: Any, padding_idx: int, again: bool = False) -> tuple[Any, Int64]:
        """Slots by position, and the distinct absent rows, ascending; `again`: there are none."""
        memory, length = self._memory, int(rows.shape[0])
        slots = memory.work("slots", length, np.int64)
        claims = memory.work("claims", 2 * length, np.int64)
        number = memory.work("absent count", 1, np.int64)
        absent = memory.work("absent", length, np.int64)
        if not again:
            memory.clear(claims)
            memory.clear(number)
        memory.each(
            kernels.find_slots_cuda(), length, self._keys, self._places, rows, padding_idx,
            self._now, self._stamps, slots, claims, absent, number,
        )  # fmt: skip
        if again:
            return slots, _NOTHING
        # As many as the last time come along with their number: one wait instead of two.
        count = memory.read_later(number)
        guess = min(self._guess, length)
        found = memory.download(absent[:guess]) if guess else _NOTHING
        missing = int(count()[0])
        self._guess = missing + missing // 8
        if missing > guess:
            found = memory.download(absent[:missing])
        return slots, np.sort(found[:missing])

    def _load(self, rows: Int64, kept: int) -> bool:
        """Read absent `rows` into slots of their own; False when they do not fit beside the rows
        that batches from `kept` on have used.  Files come first: an error there changes nothing
        but what has left already."""
        slots = self._make_room(rows.size, kept)
        if slots is None:
            return False
        memory = self._memory
        try:
            origin = self._scratch.find(rows)
            spilled = origin >= 0
            read = self._stored(rows) & ~spilled
            chosen = np.concatenate([np.flatnonzero(spilled), np.flatnonzero(read)])
            if chosen.size:
                wanted = rows[chosen]

                def fetch(begin: int, end: int, out: Floats) -> None:
                    self._fetch(wanted[begin:end], out)

                self._moving.bring(memory.put("read slots", slots[chosen]), fetch)
            virgin = slots[~(read | spilled)]
            if virgin.size:
                memory.each(
                    kernels.clear_records_cuda(), virgin.size * self._layout.lanes, self.records,
                    memory.put("virgin slots", virgin),
                )  # fmt: skip
            given = np.zeros(rows.size, np.uint8)
            given[spilled] = self._scratch.flags(origin[spilled])
            coming = [
                memory.put(name, array)
                for name, array in (("rows in", rows), ("slots in", slots), ("flags in", given))
            ]
        except BaseException:
            self._spare = np.concatenate([self._spare, slots])
            raise
        self.busy = True
        memory.each(
            kernels.admit_cuda(), rows.size, self._keys, self._places, *coming,
            self._now, self._owners, self._stamps, self._seen, self.flags,
        )  # fmt: skip
        self._scratch.remove(rows[spilled], origin[spilled])
        self.busy = False
        return True

    # ---- making room ----------------------------------------------------------------------------

    def _make_room(self, n: int, kept: int) -> Int64 | None:
        """`n` slots to use, taken from the free ones and from rows that leave."""
        short = n - self._spare.size - (self._size - self._high)
        if short > 0:
            leaving = self._choose(short, kept)
            if leaving is None:
                return None
            self._evict(leaving)
            self._spare = np.concatenate([self._spare, leaving])
        reused = min(n, self._spare.size)
        fresh = np.arange(self._high, self._high + n - reused, dtype=np.int64)
        slots = np.concatenate([self._spare[:reused], fresh])
        self._spare = self._spare[reused:]
        self._high += fresh.size
        return slots

    def _choose(self, n: int, kept: int) -> Int64 | None:
        """`n` slots whose rows may leave, as the clock says; None when there are not so many."""
        memory, left = self._memory, 2 * self._high
        chosen: list[Int64] = []
        while n > 0 and left > 0:
            begin = self._hand
            end = min(begin + max(4 * n, _WINDOW), self._high)
            marks = memory.work("idle", end - begin, np.uint8)
            memory.each(
                kernels.mark_idle_cuda(), end - begin, self._owners, self._stamps, self._seen,
                begin, kept, marks,
            )  # fmt: skip
            found = select_flagged(memory, marks, end - begin, 1)
            count = min(int(found.shape[0]), n)
            part = np.empty(0, np.int64)
            if count:
                slots = memory.work("leaving", count, np.int64)
                memory.each(
                    kernels.choose_cuda(), count, found[:count], begin, self._now,
                    self._stamps, slots,
                )  # fmt: skip
                part = memory.download(slots)
                if count == n:
                    end = int(part[-1]) + 1
            memory.each(kernels.pass_hand_cuda(), end - begin, self._stamps, self._seen, begin, end)
            chosen.append(part)
            n -= count
            left -= end - begin
            self._hand = end if end < self._high else 0
        return np.concatenate(chosen) if n == 0 else None

    def _evict(self, slots: Int64) -> None:
        """The rows in these slots leave; what no file has goes to the host's tier first."""
        memory = self._memory
        there = memory.put("leaving", slots)
        rows = memory.work("their rows", slots.size, np.int64)
        flags = memory.work("their flags", slots.size, np.uint8)
        memory.each(
            kernels.describe_cuda(), slots.size, there, self._owners, self.flags, rows, flags
        )
        found = memory.download(flags)
        # Clean ones only where they find memory: the files have them.
        room = self._scratch.has_room(slots.size)
        moved = np.arange(slots.size) if room else np.flatnonzero(found)
        if moved.size:
            names, marks = memory.download(rows)[moved], found[moved]
            places = self._scratch.claim(moved.size)
            self._moving.send(
                slots[moved], lambda begin, end, data: self._scratch.store(places[begin:end], data)
            )
        self.busy = True
        if moved.size:
            self._scratch.admit(names, places, marks)
        there = memory.put("leaving", slots)
        memory.each(kernels.dismiss_cuda(), slots.size, self._keys, there, self._owners, self.flags)
        self._gone += slots.size
        if self._gone > _CELLS * self._size // _GONE:
            memory.clear(self._keys)
            memory.each(
                kernels.index_again_cuda(), self._high, self._keys, self._places, self._owners,
                self._high,
            )  # fmt: skip
            self._gone = 0
        self.busy = False

    # ---- from the host --------------------------------------------------------------------------

    def slots(self, rows: Int64) -> Int64 | None:
        if rows.size == 0:
            return rows
        found = self.bring(self._memory.put("rows", rows), -1)
        return None if found is None else np.asarray(self._memory.download(found))

    def find(self, rows: Int64) -> Int64:
        self._beside.join()
        if rows.size == 0:
            return rows
        memory = self._memory
        found = memory.work("found", rows.size, np.int64)
        memory.each(
            kernels.look_up_slots_cuda(), rows.size, self._keys, self._places,
            memory.put("rows", rows), found,
        )  # fmt: skip
        return np.asarray(memory.download(found))

    def rows_of(self, slots: Int64) -> Int64:
        self._beside.join()
        if slots.size == 0:
            return slots
        memory = self._memory
        rows = memory.work("their rows", slots.size, np.int64)
        memory.each(
            flagging.take_cuda(), slots.size, self._owners, memory.put("places", slots), rows
        )
        return np.asarray(memory.download(rows)) - 1

    # ---- the life of the table ------------------------------------------------------------------

    def settle(self, durable: bool) -> None:
        super().settle(durable)
        self._scratch.settle(durable)

    def reset(self) -> None:
        self._beside.join()
        self._scratch.clear()
        self._forget()
        self.busy = False

    def release(self) -> None:
        super().release()
        self._owners = self._stamps = self._seen = self._keys = self._places = None


__all__ = ["DeviceIndexedSlots"]
