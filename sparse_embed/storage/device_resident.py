"""Resident rows in the memory of a GPU: the same two kinds as in `resident`, the same files.

DeviceIdentitySlots   the table fits: slot == row.  Flags lie on the device, one of them says that
                      the row was brought in; a batch is looked through there, and only the row
                      numbers that are missing come to the host
DeviceIndexedSlots    it does not: an index and a clock on the device (`device_index`)

No file mapping is ever registered with CUDA.  Rows are read from files, and written to the journal,
by the code that serves the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.device import DeviceMemory
from sparse_embed.device_scan import select_flagged, take
from sparse_embed.kernels.cuda import records as kernels
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.device_index import DeviceIndexedSlots
from sparse_embed.storage.device_slots import DeviceSlots
from sparse_embed.storage.host_tier import HostTier
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.resident import Fetch, Stored

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]


class DeviceIdentitySlots(DeviceSlots):
    """Slot == row, records and flags on the device."""

    def __init__(
        self,
        layout: Layout,
        fetch: Fetch,
        stored: Stored,
        new: bool,
        budget: Budget,
        memory: DeviceMemory,
    ) -> None:
        self._rows = layout.num_embeddings
        self._all_present = new
        held = self.bytes_needed(layout)
        super().__init__(layout, fetch, stored, budget, held, memory, self._rows)
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
    def complete(self) -> bool:  # type: ignore[override]
        return self._all_present

    def bring(self, rows: Any, padding_idx: int) -> Any:
        self._beside.join()
        if not self._all_present and rows.shape[0]:
            self._bring_beside(rows, padding_idx)
            self._memory.record(self._changed)
        return rows

    def _bring_beside(self, rows: Any, padding_idx: int) -> None:
        # Also beside: the batch in hand is here already, what it changes are other rows.
        memory, length = self._memory, int(rows.shape[0])
        marks = memory.work("marks", length, np.uint8)
        memory.each(kernels.missing_cuda(), length, self.flags, rows, padding_idx, marks)
        places = select_flagged(memory, marks, length, 1)
        if places.shape[0]:
            self._load(np.unique(memory.download(take(memory, rows, places))))

    def _load(self, missing: Int64) -> None:
        # The others are virgin, and the device's memory is zero there already.
        stored = missing[self._stored(missing)]
        if stored.size:

            def fetch(begin: int, end: int, out: Floats) -> None:
                self._fetch(stored[begin:end], out)

            self._moving.bring(self._memory.upload(stored), fetch)
        self._raise_flags(missing, kernels.PRESENT)  # last: an error before leaves them missing

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

    def reset(self) -> None:
        self._beside.join()
        self._memory.clear(self.records)
        self._memory.clear(self.flags)
        self._memory.record(self._changed)
        self._all_present = False
        self.busy = False


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
