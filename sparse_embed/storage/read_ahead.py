"""Read-ahead: a thread asks the kernel for the pages of records that the next batch will read.

Nothing of the table changes: the pages come into the kernel's cache, where the reads of the next
batch find them, or wait for the rest of the way.  The thread has descriptors of its own, so tables
may be closed and journals dropped meanwhile.
"""

from __future__ import annotations

import os
import sys

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels.rowio import advise_serial
from sparse_embed.storage.background import Background

Int64 = NDArray[np.int64]
HAS_ADVICE = sys.platform.startswith("linux")


def read_ahead(places: list[tuple[int, Int64]], record_bytes: int) -> Background:
    """Start asking for records at (descriptor, byte offsets); returns at once."""
    own: list[tuple[int, Int64]] = []

    def ask() -> None:
        while own:
            fd, offsets = own.pop()
            try:
                advise_serial()(fd, offsets, record_bytes)
            finally:
                os.close(fd)

    thread = Background(ask)
    try:
        for fd, offsets in places:
            offsets = np.sort(offsets)
            own.append((os.dup(fd), offsets))
        thread.start()
    except BaseException:
        if thread.done:  # it never began
            while own:
                os.close(own.pop()[0])
        raise
    return thread
