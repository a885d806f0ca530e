"""A slower disk than there is: the engine's writes are held back to a rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sparse_embed.storage import files


class _HeldBack(files.SystemCalls):
    """Writes return when a disk of so many bytes a second would be done with all so far."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._busy_until = 0.0

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        with self._lock:
            begin = max(time.perf_counter(), self._busy_until)
            self._busy_until = until = begin + len(data) / self._rate
        written = super().pwrite(fd, data, offset)
        time.sleep(max(0.0, until - time.perf_counter()))
        return written


@contextmanager
def held_to(rate: float) -> Iterator[None]:
    """Commits in here are written at `rate` bytes a second at most."""
    usual, files.CALLS = files.CALLS, _HeldBack(rate)
    try:
        yield
    finally:
        files.CALLS = usual
