"""What both kinds of resident rows on a GPU share: records and flags there, and their order.

Records come and go through pinned staging (`device_records`).  `prefetch` works on a stream beside
the one in use: it waits for the mark `_changed`, which stands where flags and index were last as
the host knows them, and whatever comes after waits for what was done beside (`Beside.join`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.device import DeviceMemory
from sparse_embed.device_scan import select_flagged
from sparse_embed.kernels.cuda import records as kernels
from sparse_embed.kernels.cuda.streams import Mark
from sparse_embed.kernels.records import DIRTY, INFLIGHT
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.device_records import Beside, DeviceRecords
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.resident import Fetch, Slots, Stored

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]

_NONE = np.uint8(0)


class DeviceSlots(Slots):
    """Slots on a GPU."""

    records: Any
    flags: Any
    view: Any = None  # what kernels are given of them, kept by those who start kernels
    complete = False  # whether every row of the table is here

    def __init__(
        self,
        layout: Layout,
        fetch: Fetch,
        stored: Stored,
        budget: Budget,
        held: int,
        memory: DeviceMemory,
        slots: int,
    ) -> None:
        """held: bytes that were drawn from the budget, given back by `release`."""
        super().__init__(layout, fetch)
        self._stored = stored
        self._budget, self._held = budget, held
        self._memory = memory
        self._moving = DeviceRecords(memory, slots, layout.lanes, "resident rows")
        self.records = self._moving.array
        self.flags = memory.zeros(slots, np.uint8, "the flags of resident rows")
        self._beside = Beside(memory)
        self._changed = Mark()

    # ---- bringing rows in -----------------------------------------------------------------------

    def bring(self, rows: Any, padding_idx: int) -> Any:
        """The slots of the rows of a batch (repeats allowed), both on the device and all brought
        in; None when they do not fit together.  The slots are valid until the next call."""
        raise NotImplementedError

    def prefetch(self, rows: Any, padding_idx: int, ready: Mark | None = None) -> None:
        """Bring in rows for the next batch on the side stream, as far as they fit.

        rows: on the device, or of the host; ready: a mark that they wait for.
        """
        if self.complete or rows.shape[0] == 0:
            return
        with self._beside.work(self._changed, *([] if ready is None else [ready])):
            if isinstance(rows, np.ndarray):
                rows = self._memory.put("rows", rows)
            self._bring_beside(rows, padding_idx)

    def _bring_beside(self, rows: Any, padding_idx: int) -> None:
        raise NotImplementedError

    # ---- records and flags ----------------------------------------------------------------------

    @property
    def in_blocks(self) -> bool:
        return False

    def gather(self, slots: Int64, out: Floats) -> None:
        self._beside.join()
        self._moving.gather(slots, out)

    def scatter(self, slots: Int64, data: Floats) -> None:
        self._beside.join()
        self._moving.scatter(slots, data)

    def put(self, slots: Int64, data: Floats) -> None:
        self.scatter(slots, data)
        self._raise_flags(slots, DIRTY)
        self._memory.record(self._changed)

    def _raise_flags(self, slots: Int64, put: np.uint8) -> None:
        """flags |= put at distinct slots."""
        memory = self._memory
        places = memory.put("places", slots)
        memory.each(kernels.raise_flags_cuda(), slots.size, self.flags, places, put)

    def flagged(self, want: np.uint8 = DIRTY) -> Int64:
        self._beside.join()
        found = select_flagged(self._memory, self.flags, self.limit, int(want))
        return np.asarray(self._memory.download(found))

    def mark_written(self) -> None:
        self._turn_flags(DIRTY, INFLIGHT)

    def settle(self, durable: bool) -> None:
        self._turn_flags(INFLIGHT, _NONE if durable else DIRTY)

    def _turn_flags(self, want: np.uint8, put: np.uint8) -> None:
        self._beside.join()
        memory, limit = self._memory, self.limit
        memory.each(kernels.turn_flags_cuda(), limit, self.flags, limit, want, put)
        memory.record(self._changed)

    def release(self) -> None:
        self._beside.join()
        self._budget.give(self._held)
        self.records = self.flags = self.view = None
        del self._moving


__all__ = ["DeviceSlots"]
