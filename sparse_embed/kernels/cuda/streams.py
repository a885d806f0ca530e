"""Marks in streams that others wait for; nothing in the simulator, which does all at once."""

from __future__ import annotations

import ctypes
from typing import Any

from sparse_embed.kernels.cuda._shim import SIMULATED

_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING


def _driver() -> Any:
    from sparse_embed.kernels.cuda import _calls as calls

    return calls.driver()


class Mark:
    """A point in the work of a stream, which is given by its handle."""

    def __init__(self) -> None:
        self._event = ctypes.c_void_p()
        self._pending = False

    def record(self, stream: int) -> None:
        """Here: after all that the stream has been asked so far."""
        if SIMULATED:
            return
        if not self._event:
            _driver().cuEventCreate(ctypes.byref(self._event), _NO_TIMING)
        _driver().cuEventRecord(self._event, stream)
        self._pending = True

    def hold(self, stream: int) -> None:
        """What the stream is asked next comes after the mark."""
        if self._pending:
            _driver().cuStreamWaitEvent(stream, self._event, 0)

    def synchronize(self) -> None:
        """Wait here until the mark is reached."""
        if self._pending:
            _driver().cuEventSynchronize(self._event)
            self._pending = False
