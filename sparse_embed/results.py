"""Memory of large results, used again once nobody holds them.

Fresh memory is zeroed by the system, page by page, when it is written first: for a result of 32 MB,
which the C library returns at once, that took as long as the lookup.  So the last two are kept; at
most 128 MB lie idle.
"""

from __future__ import annotations

import sys
import threading

import numpy as np

from sparse_embed._typing import FloatArray

LEAST, MOST = 4 << 20, 64 << 20  # bytes; smaller ones the C library keeps itself
_KEPT = 2
_UNUSED = 3  # references to a buffer that nobody holds: `_buffers`, a variable and an argument
_buffers: list[FloatArray] = []
_lock = threading.Lock()


def empty(rows: int, dim: int) -> FloatArray:
    """(rows, dim) float32, uninitialised: as `np.empty`."""
    count = rows * dim
    if not LEAST <= 4 * count <= MOST:
        return np.empty((rows, dim), np.float32)
    with _lock:
        for i in range(len(_buffers)):
            buffer = _buffers[i]
            if count <= buffer.size <= 2 * count and sys.getrefcount(buffer) == _UNUSED:
                return buffer[:count].reshape(rows, dim)
        buffer = np.empty(count, np.float32)
        _buffers.append(buffer)
        del _buffers[:-_KEPT]
        return buffer[:count].reshape(rows, dim)
