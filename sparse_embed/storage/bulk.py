"""Many records in few large transfers past the kernel's cache: the way of a checkpoint.

One by one a record costs two system calls and the kernel's copies of whole pages, some 8 us of a
core that training would like to have; and what goes through the cache pushes out what others need
there.  Where records lie densely enough, a window of the file is moved instead:

reading    neighbours and what lies between them at once, then the records out of that
writing    the window's pages are read (holes are zeros), the records put in by the caller, which
           may `read` them to there from elsewhere, and the pages written back.  Rows in between get
           the bytes that they have: a torn write changes nothing of them.  A hole between that no
           record touches stays one unless it is short.

Both do nothing where it would not pay or the file system cannot; the caller then moves records one
by one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels.records import move_records_serial
from sparse_embed.storage import files
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.frame import align
from sparse_embed.storage.fresh_memory import fresh_memory
from sparse_embed.storage.segments import read_failed

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]
# put(part, words, places): record i of a part of some rows to words[places[i]:] (f4).
Put = Callable[[slice, Floats, Int64], None]
PAGE = files.PAGE
WINDOW = 8 << 20  # moved at a time
HUGE = 2 << 20
LEAST = 1 << 20  # bytes of records below which it does not pay (to read: a 16th)
_GAP = 64 << 10  # read over rather than begin anew
_READ_RATIO = 16  # at most so many bytes are read for each that is wanted
_FILL = 4  # pages of a hole at most that are written with their neighbours
_WRITE_RATIO = 4  # and so many pages between the first and the last for each that is touched


class Bulk:
    """Descriptors past the cache and two aligned buffers; `close` it."""

    def __init__(self) -> None:
        # Huge pages: each page of a transfer has to be found and held by the kernel.
        self._memory = [fresh_memory(align(WINDOW + 2 * PAGE, HUGE)) for _ in range(2)]
        self._read, self._write = (np.frombuffer(one, np.uint8) for one in self._memory)
        self._move = move_records_serial()
        self._fds: dict[int, int] = {}

    def close(self) -> None:
        while self._fds:
            _, fd = self._fds.popitem()
            if fd >= 0:
                files.CALLS.close(fd)

    def _direct(self, fd: int, flags: int) -> int:
        """Another descriptor of the file that `fd` is open on; -1 where there is no such thing."""
        if fd not in self._fds:
            direct = getattr(os, "O_DIRECT", 0)
            self._fds[fd] = -1
            if direct:
                try:
                    self._fds[fd] = os.open(f"/proc/self/fd/{fd}", flags | direct | os.O_CLOEXEC)
                except OSError:  # no /proc, or a file system without it
                    return -1
        return self._fds[fd]

    def _refuse(self, fd: int, error: OSError) -> None:
        """A file system may refuse what it let us open; anything else is an error."""
        if error.errno != errno.EINVAL:
            raise error
        files.CALLS.close(self._fds[fd])
        self._fds[fd] = -1

    def read(
        self, fd: int, offsets: Int64, size: int, words: Floats, places: Int64, what: str
    ) -> bool:
        """The record of `size` bytes at byte offsets[i] to words[places[i]:]; False: nothing was
        done."""
        n = offsets.size
        if n * size < max(LEAST // 16, 1) or size > WINDOW:
            return False
        if (offsets[1:] < offsets[:-1]).any():
            order = np.argsort(offsets, kind="stable")
            offsets, places = offsets[order], places[order]
        first, end = offsets // PAGE * PAGE, -(-(offsets + size) // PAGE) * PAGE
        ends = np.append(np.flatnonzero(offsets[1:] - offsets[:-1] > size + _GAP) + 1, n)
        begins = np.append(0, ends[:-1])
        if int((end[ends - 1] - first[begins]).sum()) > _READ_RATIO * n * size + 2 * PAGE:
            return False
        direct = self._direct(fd, os.O_RDONLY)
        if direct < 0:
            return False
        source = self._read.view(np.float32)
        for begin, stop in zip(begins.tolist(), ends.tolist(), strict=True):
            while begin < stop:
                low = int(first[begin])
                last = int(np.searchsorted(end[begin:stop], low + WINDOW + PAGE, "right")) + begin
                needed = int(offsets[last - 1]) + size - low
                try:
                    self._fetch(direct, self._read[: int(end[last - 1]) - low], low, needed, what)
                except OSError as error:
                    self._refuse(fd, error)
                    return False
                at = (offsets[begin:last] - low) // 4
                self._move(source, at, words, places[begin:last], size // 4)
                begin = last
        return True

    def _fetch(self, fd: int, out: NDArray[np.uint8], low: int, needed: int, what: str) -> None:
        """Bytes of the file from `low` on; at least the first `needed`, if the file ends there."""
        at = 0
        while at < needed:
            with files.explained(f"cannot read {what}"):
                got = os.preadv(fd, [out[at:].data], low + at)
            if got == 0:
                read_failed(0, what)
            at += got

    def write(self, file: DataFile, rows: Int64, put: Put) -> int:
        """Write the records of ascending `rows`; how many of them, from the first on, it did."""
        size = file.layout.record_bytes
        offsets = file.offsets(rows)
        first, last = offsets // PAGE, (offsets + (size - 1)) // PAGE
        # A page across the end of the file cannot be written past the cache.
        n = int(np.searchsorted(last, file.layout.file_bytes // PAGE))
        if n * size < max(LEAST, 1) or size > WINDOW:
            return 0
        touched = int((last[:n] - first[:n] + 1).sum() - (first[1:n] == last[: n - 1]).sum())
        if int(last[n - 1] - first[0]) >= _WRITE_RATIO * touched:
            return 0
        fd = self._direct(file.fd, os.O_RDWR)
        if fd < 0:
            return 0
        begin = 0
        while begin < n:
            low = int(first[begin])
            stop = int(np.searchsorted(last[begin:n], low + WINDOW // PAGE, "right")) + begin
            part, pages = slice(begin, stop), int(last[stop - 1]) + 1 - low
            at = offsets[part] - low * PAGE
            try:
                wanted = self._open_window(fd, file, low, pages)
                put(part, self._write.view(np.float32), at // 4)
                wanted[first[part] - low] = True
                for step in range(1, align(size, PAGE) // PAGE + 1):
                    wanted[np.minimum(first[part] + step, last[part]) - low] = True
                self._write_window(fd, file, low, wanted)
            except OSError as error:
                self._refuse(file.fd, error)
                return begin
            begin = stop
        return n

    def _open_window(self, fd: int, file: DataFile, low: int, pages: int) -> NDArray[np.bool_]:
        """So many pages from page `low` on to the buffer; those that hold data now."""
        base, buffer = low * PAGE, self._write[: pages * PAGE]
        there = np.zeros(pages, np.bool_)
        extents = files.extents(fd, base, base + buffer.size)
        if extents:
            self._fetch(fd, buffer, base, buffer.size, file.where)
            for begin, end in extents:
                there[(begin - base) // PAGE : -(-(end - base) // PAGE)] = True
        else:
            buffer.fill(0)
        return there

    def _write_window(self, fd: int, file: DataFile, low: int, wanted: NDArray[np.bool_]) -> None:
        """The pages of the buffer that are wanted, in runs with the short holes between."""
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
        wide = np.append(np.diff(edges)[1::2] > _FILL, True)  # the hole behind each run
        for begin, end in zip(
            edges[::2][np.append(True, wide[:-1])].tolist(), edges[1::2][wide].tolist(), strict=True
        ):
            with files.explained(f"cannot write rows to {file.where}"):
                view = self._write[begin * PAGE : end * PAGE].data
                files.write_all(fd, view, (low + begin) * PAGE)
