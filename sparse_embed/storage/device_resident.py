"""Resident rows in the memory of a GPU: the same two kinds as in `resident`, the same files.

DeviceIdentitySlots   the table fits: slot == row.  Flags lie on the device, one of them says that
                      the row was brought in; a batch is looked through there, and only the row
                      numbers that are missing come to the host
DeviceIndexedSlots    it does not: an index and a clock on the device (`device_index`)

Records come and go through pinned staging (`device_records`); no file mapping is ever registered
with CUDA.  Rows are read from files, and written to the journal, by the code that serves the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.device import DeviceMemory
from sparse_embed.device_scan import select_flagged, take
from sparse_embed.kernels.cuda import records as kernels
from sparse_embed.kernels.cuda.streams import Mark
from sparse_embed.kernels.records import DIRTY
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.device_index import DeviceIndexedSlots
from sparse_embed.storage.device_records import Beside, DeviceRecords
from sparse_embed.storage.host_tier import HostTier
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.resident import Fetch, Slots, Stored

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]

_NONE = np.uint8(0)


class DeviceIdentitySlots(Slots):
    """Slot == row, records and flags on the device."""

    records: Any
    flags: Any
    view: Any = None  # what kernels are given of them, kept by those who start kernels

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
        self._beside = Beside(memory)
        self._changed = Mark()  # all flags are as the host knows them
        memory.record(self._changed)

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

    @property
    def complete(self) -> bool:
        """Whether every row of the table is here."""
        return self._all_present

    def bring(self, rows: Any, padding_idx: int) -> Any:
        """Bring in the rows of a batch that lies on the device (repeats allowed); their slots."""
        self._beside.join()
        if not self._all_present and rows.shape[0]:
            self._bring(rows, padding_idx)
            self._memory.record(self._changed)
        return rows

    def _bring(self, rows: Any, padding_idx: int) -> None:
        memory, length = self._memory, int(rows.shape[0])
        marks = memory.work("marks", length, np.uint8)
        memory.each(kernels.missing_cuda(), length, self.flags, rows, padding_idx, marks)
        places = select_flagged(memory, marks, length, 1)
        if places.shape[0]:
            self._load(np.unique(memory.download(take(memory, rows, places))))

    def prefetch(self, rows: Any, padding_idx: int, ready: Mark | None = None) -> None:
        """Bring in rows for the next batch beside the stream in use; see `DeviceIndexedSlots`.

        The batch in hand is here already: what it changes are other rows.
        """
        if self._all_present or rows.shape[0] == 0:
            return
        with self._beside.work(self._changed, *([] if ready is None else [ready])):
            if isinstance(rows, np.ndarray):
                rows = self._memory.put("rows", rows)
            self._bring(rows, padding_idx)

    def _load(self, missing: Int64) -> None:
        # The others are virgin, and the device's memory is zero there already.
        stored = missing[self._stored(missing)]
        if stored.size:

            def fetch(begin: int, end: int, out: Floats) -> None:
                self._fetch(stored[begin:end], out)

            self._moving.bring(self._memory.upload(stored), fetch)
        self._change(missing, _NONE, kernels.PRESENT)  # last: an error before leaves them missing

    def slots(self, rows: Int64) -> Int64:
        if not self._all_present and rows.size:
            self.bring(self._memory.upload(rows), -1)
        return rows

    def find(self, rows: Int64) -> Int64:
        if self._all_present or rows.size == 0:
            return rows
        self._beside.join()
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
        self._beside.join()
        found = select_flagged(self._memory, self.flags, self._rows, int(want))
        return np.asarray(self._memory.download(found))

    def gather(self, slots: Int64, out: Floats) -> None:
        self._beside.join()
        self._moving.gather(slots, out)

    def scatter(self, slots: Int64, data: Floats) -> None:
        self._beside.join()
        self._moving.scatter(slots, data)

    def put(self, slots: Int64, data: Floats) -> None:
        self.scatter(slots, data)
        self._change(slots, _NONE, DIRTY)

    def mark_written(self) -> None:
        self._beside.join()
        self._memory.each(kernels.mark_written_cuda(), self._rows, self.flags, self._rows)
        self._memory.record(self._changed)

    def settle(self, durable: bool) -> None:
        self._beside.join()
        put = _NONE if durable else DIRTY
        self._memory.each(kernels.settle_cuda(), self._rows, self.flags, self._rows, put)
        self._memory.record(self._changed)

    def reset(self) -> None:
        self._beside.join()
        self._memory.clear(self.records)
        self._memory.clear(self.flags)
        self._memory.record(self._changed)
        self._all_present = False
        self.busy = False

    def release(self) -> None:
        self._beside.join()
        self._budget.give(self.bytes_needed(self._layout))
        self.records = self.flags = self.view = None
        del self._moving


def device_slots(
    layout: Layout,
    fetch: Fetch,
    stored: Stored,
    new: bool,
    scratch: HostTier,
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
    return DeviceIndexedSlots(layout, fetch, stored, scratch, budget, memory)


__all__ = ["DeviceIdentitySlots", "DeviceIndexedSlots", "device_slots"]
