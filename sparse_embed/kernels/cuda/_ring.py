"""Small copies from host memory that may change at once.

The driver promises that for pinned memory only, and there not: it may read other memory after the
call has returned (CUDA's "API synchronization behavior": it *may* be synchronous).  So what is sent
is copied into pinned memory first, which is used again when its copy is over.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from sparse_embed.kernels.cuda._calls import driver, handle_from

RING = 4 << 20
LARGEST = RING >> 2  # of one copy
_MOST = 256  # copies under way
_ALIGNED = 256
_NO_TIMING = 2


class Ring:
    """Pinned memory of a card; `pinned(nbytes)` gives it."""

    def __init__(self, pinned: Any) -> None:
        self._pinned = pinned
        self._memory: Any = None
        self._head = 0
        self._sent: deque[tuple[int, int, int]] = deque()  # begin, end, event: oldest first
        self._events: list[int] = []
        self._lock = threading.Lock()

    def send(self, address: int, host: Any, stream: int) -> None:
        """Copy an array of at most LARGEST bytes to the card; it may change on return."""
        count = host.nbytes
        with self._lock:
            begin = self._room(count)
            part = self._memory[begin : begin + count]
            part[:] = host.reshape(-1).view(np.uint8)
            event = (
                self._events.pop()
                if self._events
                else handle_from(driver().cuEventCreate, _NO_TIMING)
            )
            driver().cuMemcpyHtoDAsync_v2(address, part.ctypes.data, count, stream)
            driver().cuEventRecord(event, stream)
            self._sent.append((begin, begin + count, event))

    def _room(self, count: int) -> int:
        """Where so many bytes are that no copy reads any more."""
        if self._memory is None:
            self._memory = self._pinned(RING)
        if self._head + count > RING:
            while self._sent and self._sent[0][0] >= self._head:  # of the round before
                self._wait()
            self._head = 0
        begin, end = self._head, self._head + count
        while self._sent and (
            len(self._sent) >= _MOST or (self._sent[0][0] < end and begin < self._sent[0][1])
        ):
            self._wait()
        self._head = -(-end // _ALIGNED) * _ALIGNED
        return begin

    def _wait(self) -> None:
        """Until the oldest copy is over."""
        event = self._sent[0][2]
        driver().cuEventSynchronize(event)
        self._sent.popleft()
        self._events.append(event)
