"""The least that a commit can be: what changed, copied by a kernel in C, written, synced.

No journal, no checksum, no row numbers, no flags, and nobody could read it back.  Copy and writes
go by the same chunks as ours, to a file whose blocks are there already.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ceilings import Ceilings, best_distance
from benchmarks.harness import Disagreement
from sparse_embed.storage import files

CHUNK = 8 << 20
_WRITERS = 2
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def open_direct(path: Path) -> int:
    """A new file's descriptor, past the page cache where the file system has that."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:
        return os.open(path, flags)


class BareCommits:
    """Of `records` (rows, lanes), whose rows are a multiple of 32 bytes, on `threads` threads.

    The file has `size` bytes and is written over and over: as much as our journal has, or what
    caches a disk may sit behind it makes it look faster.
    """

    def __init__(self, path: Path, size: int, records: Floats, threads: int) -> None:
        self._size = size
        self._records = records
        self._ceilings = Ceilings(records.shape[1], threads)
        self._rows = CHUNK // (32 * records.shape[1] * 4) * 32  # of a chunk: a multiple of 4096 B
        self._ahead = 4
        self._at = 0
        self._writers = ThreadPoolExecutor(_WRITERS)
        self._finisher = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._fd = open_direct(path)
        os.posix_fallocate(self._fd, 0, self._size)

    def prepare(self, staging: NDArray[np.uint8]) -> None:
        """Find the best distance to look ahead at; write all of the file once."""
        some = np.linspace(0, len(self._records) - 1, self._rows).astype(np.int64)
        self._ahead = best_distance(lambda ahead: self._copy(some, staging, ahead))
        size = self._copy(some, staging, self._ahead)
        if not np.array_equal(staging[:size], self._records[some].view(np.uint8).reshape(-1)):
            raise Disagreement("durability: the copy of records in C differs")
        for at in range(0, self._size, CHUNK):
            os.pwrite(self._fd, staging[:CHUNK].data, at)
        os.fdatasync(self._fd)

    def commit(self, rows: Rows, staging: NDArray[np.uint8], wait: bool) -> None:
        """`staging`: page-aligned memory of at least `room(rows)` bytes, used until the next one or
        `settle`."""
        self.settle()
        writes = []
        for begin in range(0, rows.size, self._rows):
            part = rows[begin : begin + self._rows]
            buffer = staging[len(writes) * CHUNK :][:CHUNK]
            size = self._copy(part, buffer, self._ahead)
            size = -(-size // 4096) * 4096
            writes.append(self._writers.submit(self._write, buffer[:size], self._at))
            self._at = (self._at + CHUNK) % self._size
        self._running = self._finisher.submit(self._finish, writes)
        if wait:
            self.settle()

    def settle(self) -> None:
        """Wait for what is on its way."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def room(self, rows: int) -> int:
        return -(-rows // self._rows) * CHUNK

    def close(self) -> None:
        self.settle()
        self._writers.shutdown()
        self._finisher.shutdown()
        os.close(self._fd)

    def _copy(self, rows: Rows, out: NDArray[np.uint8], ahead: int) -> int:
        size = rows.size * self._records.shape[1] * 4
        to = out[:size].view(np.float32).reshape(rows.size, -1)
        self._ceilings.copy_records(self._records, rows, to, ahead)
        return size

    def _write(self, data: NDArray[np.uint8], at: int) -> None:
        files.write_all(self._fd, data.data, at)  # held back where ours is

    def _finish(self, writes: list[Future[None]]) -> None:
        for write in writes:
            write.result()
        os.fdatasync(self._fd)
