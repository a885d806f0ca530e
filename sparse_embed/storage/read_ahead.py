"""Read-ahead: a thread asks the kernel for the pages of records that the next batch will read.

Nothing of the table changes: the pages come into the kernel's cache, where the reads of the next
batch find them, or wait for the rest of the way.  The thread has descriptors of its own, so tables
may be closed and journals dropped meanwhile.
"""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels.rowio import advise_serial

Int64 = NDArray[np.int64]
HAS_ADVICE = sys.platform.startswith("linux")


def read_ahead(places: list[tuple[int, Int64]], record_bytes: int) -> threading.Thread:
    """Start asking for records at (descriptor, byte offsets); returns at once."""
    own = [(os.dup(fd), np.sort(offsets)) for fd, offsets in places]

    def ask() -> None:
        for fd, offsets in own:
            try:
                advise_serial()(fd, offsets, record_bytes)
            finally:
                os.close(fd)

    thread = threading.Thread(target=ask, name="sparse_embed read-ahead", daemon=True)
    thread.start()
    return thread
