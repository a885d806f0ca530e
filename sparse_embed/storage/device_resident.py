"""Resident rows in the memory of a GPU: the same two kinds as in `resident`, the same files.

DeviceIdentitySlots   the table fits: slot == row.  Flags lie on the device, one of them says that
                      the row was brought in; a batch is looked through there, and only the row
                      numbers that are missing come to the host
DeviceIndexedSlots    it does not: records lie on the device; index, flags and eviction are the
                      host's, as in `resident`

Records come and go through pinned staging, a piece at a time; no file mapping is ever registered
with CUDA.  Rows are read from files, and written to the journal, by the code that serves the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.device import DeviceMemory
from sparse_embed.device_scan import select_flagged, take
from sparse_embed.kernels.cuda import records as kernels
from sparse_embed.kernels.records import DIRTY
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.resident import Fetch, IndexedSlots, Slots, Stored
from sparse_embed.storage.scratch import Scratch

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]

_NONE = np.uint8(0)
_PIECE = 8 << 20  # bytes on their way between device and host at a time


class DeviceRecords:
    """Moves records between their slots on the device and arrays of the host."""

    def __init__(self, memory: DeviceMemory, slots: int, lanes: int, what: str) -> None:
        self.memory = memory
        self._lanes = lanes
        self.array = memory.zeros((slots, lanes), np.float32, what)

    def _pieces(self, n: int) -> range:
        return range(0, n, max(1, _PIECE // (4 * self._lanes)))

    def gather(self, slots: Int64, out: Floats) -> None:
        """out[i] = the record in slots[i]"""
        memory = self.memory
        for begin in self._pieces(len(slots)):
            part = slots[begin : begin + self._pieces(1 << 62).step]
            buffer = memory.work("records", part.size * self._lanes, np.float32)
            data = buffer.reshape((part.size, self._lanes))
            memory.each(
                kernels.gather_records_cuda(), data.size, self.array, memory.upload(part), data
            )
            staged = memory.staging(data.size * 4).view(np.float32).reshape(data.shape)
            out[begin : begin + part.size] = memory.download(data, staged)

    def scatter(self, slots: Int64, data: Floats) -> None:
        """The record in slots[i] = data[i]"""
        memory = self.memory
        for begin in self._pieces(len(slots)):
            part = slots[begin : begin + self._pieces(1 << 62).step]
            buffer = memory.work("records", part.size * self._lanes, np.float32)
            target = buffer.reshape((part.size, self._lanes))
            staged = memory.staging(target.size * 4).view(np.float32).reshape(target.shape)
            staged[...] = data[begin : begin + part.size]
            memory.fill(target, staged)
            memory.each(
                kernels.scatter_records_cuda(), target.size, self.array, memory.upload(part), target
            )
            memory.synchronize()  # the staging buffer is used again


class DeviceIdentitySlots(Slots):
    """Slot == row, records and flags on the device."""

    records: Any
    flags: Any

    def __init__(
        self,
        layout: Layout,
        fetch: Fetch,
        stored: Stored,
        new: bool,
        budget: Budget,
        memory: DeviceMemory,
    ) -> None:
        super().__init__(layout, fetch)
        self._stored = stored
        self._budget = budget
        self._rows = layout.num_embeddings
        self._memory = memory
        self._all_present = new
        self._moving = DeviceRecords(memory, self._rows, layout.lanes, "resident rows")
        self.records = self._moving.array
        self.flags = memory.zeros(self._rows, np.uint8, "the flags of resident rows")

    @staticmethod
    def bytes_needed(layout: Layout) -> int:
        """Of device memory."""
        return layout.num_embeddings * (layout.record_bytes + 1)

    @property
    def limit(self) -> int:
        return self._rows

    @property
    def capacity(self) -> int:
        return self._rows

    # ---- bringing rows in -----------------------------------------------------------------------

    def bring(self, rows: Any, padding_idx: int) -> None:
        """Bring in the rows of a batch that lies on the device (repeats allowed)."""
        if self._all_present or rows.shape[0] == 0:
            return
        memory, length = self._memory, int(rows.shape[0])
        marks = memory.work("marks", length, np.uint8)
        memory.each(kernels.missing_cuda(), length, self.flags, rows, padding_idx, marks)
        places = select_flagged(memory, marks, length, 1)
        if places.shape[0]:
            self._load(np.unique(memory.download(take(memory, rows, places))))

    def _load(self, missing: Int64) -> None:
        # The others are virgin, and the device's memory is zero there already.
        stored = missing[self._stored(missing)]
        for begin in range(0, stored.size, self._chunk):
            part = stored[begin : begin + self._chunk]
            data = np.empty((part.size, self._layout.lanes), np.float32)
            self._fetch(part, data)
            self.scatter(part, data)
        self._change(missing, _NONE, kernels.PRESENT)  # last: an error before leaves them missing

    def slots(self, rows: Int64) -> Int64:
        if not self._all_present and rows.size:
            self.bring(self._memory.upload(rows), -1)
        return rows

    def find(self, rows: Int64) -> Int64:
        if self._all_present or rows.size == 0:
            return rows
        memory = self._memory
        marks = memory.work("marks", rows.size, np.uint8)
        memory.each(kernels.missing_cuda(), rows.size, self.flags, memory.upload(rows), -1, marks)
        return np.where(memory.download(marks) != 0, np.int64(-1), rows)

    def rows_of(self, slots: Int64) -> Int64:
        return slots

    # ---- records and flags ----------------------------------------------------------------------

    def _change(self, slots: Int64, clear: np.uint8, put: np.uint8) -> None:
        memory = self._memory
        memory.each(
            kernels.change_flags_cuda(), slots.size, self.flags, memory.upload(slots), clear, put
        )

    def flagged(self, want: np.uint8 = DIRTY) -> Int64:
        found = select_flagged(self._memory, self.flags, self._rows, int(want))
        return np.asarray(self._memory.download(found))

    def gather(self, slots: Int64, out: Floats) -> None:
        self._moving.gather(slots, out)

    def scatter(self, slots: Int64, data: Floats) -> None:
        self._moving.scatter(slots, data)

    def put(self, slots: Int64, data: Floats) -> None:
        self.scatter(slots, data)
        self._change(slots, _NONE, DIRTY)

    def mark_changed(self, slots: Int64) -> None:
        """The kernels have set these flags themselves."""

    def mark_written(self) -> None:
        self._memory.each(kernels.mark_written_cuda(), self._rows, self.flags, self._rows)

    def settle(self, durable: bool) -> None:
        put = _NONE if durable else DIRTY
        self._memory.each(kernels.settle_cuda(), self._rows, self.flags, self._rows, put)

    def reset(self) -> None:
        self._memory.clear(self.records)
        self._memory.clear(self.flags)
        self._all_present = False
        self.busy = False

    def release(self) -> None:
        self._budget.give(self.bytes_needed(self._layout))
        self.records = self.flags = None
        del self._moving


class DeviceIndexedSlots(IndexedSlots):
    """Rows at any slot of the device; which ones, and what to throw out, the host decides."""

    records: Any

    def __init__(
        self,
        layout: Layout,
        fetch: Fetch,
        scratch: Scratch,
        budget: Budget,
        memory: DeviceMemory,
    ) -> None:
        self._device = memory
        super().__init__(layout, fetch, scratch, budget)

    def _allocate_records(self) -> None:
        if getattr(self, "_moving", None) is None:
            self._moving: Any = DeviceRecords(
                self._device, self._most, self._layout.lanes, "resident rows"
            )
            self.kernel_flags: Any = self._device.zeros(self._most, np.uint8, "flags")
        self.records = self._moving.array

    def _free_records(self, keep: int) -> None:
        """The device's memory was asked for once, and stays."""

    def _release_records(self) -> None:
        self.records = self.kernel_flags = self._moving = None

    def gather(self, slots: Int64, out: Floats) -> None:
        self._moving.gather(slots, out)

    def scatter(self, slots: Int64, data: Floats) -> None:
        self._moving.scatter(slots, data)

    def mark_changed(self, slots: Int64) -> None:
        """Kernels have written to these slots."""
        self.flags[slots] |= DIRTY


def device_slots(
    layout: Layout,
    fetch: Fetch,
    stored: Stored,
    new: bool,
    scratch: Scratch,
    cache_bytes: int | None,
    memory: DeviceMemory,
) -> DeviceIdentitySlots | DeviceIndexedSlots:
    """Rows laid out by number when the table fits `cache_bytes` of the device, else indexed.

    Raises:
        DeviceMemoryError: the device has less than that.
    """
    budget = Budget(memory.default_cache_bytes() if cache_bytes is None else cache_bytes)
    if budget.draw(DeviceIdentitySlots.bytes_needed(layout)):
        return DeviceIdentitySlots(layout, fetch, stored, new, budget, memory)
    return DeviceIndexedSlots(layout, fetch, scratch, budget, memory)


__all__ = ["DeviceIdentitySlots", "DeviceIndexedSlots", "device_slots"]
