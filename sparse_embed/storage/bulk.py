"""Many records in few large transfers past the kernel's cache: the way of a checkpoint.

One by one a record costs two system calls and the kernel's copies of whole pages, some 8 us of a
core that training would like to have; and what goes through the cache pushes out what others need
there.  Where records lie densely enough, a window of the file is moved instead:

reading    neighbours and what lies between them at once, then the records out of that
writing    the window's pages are read (holes are zeros), the records put in, the pages written
           back.  Rows in between get the bytes that they have: a torn write changes nothing of
           them.  A hole between that no record touches stays one unless it is short.

Both do nothing where it would not pay or the file system cannot; the caller then moves records one
by one.
"""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels.records import move_records_serial
from sparse_embed.storage import files
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.frame import align
from sparse_embed.storage.journal import read_failed

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]
PAGE = files.PAGE
WINDOW = 8 << 20  # moved at a time
LEAST = 1 << 20  # bytes of records below which it does not pay (to read: a 16th)
_GAP = 64 << 10  # read over rather than begin anew
_READ_RATIO = 16  # at most so many bytes are read for each that is wanted
_FILL = 4  # pages of a hole at most that are written with their neighbours
_WRITE_RATIO = 4  # and so many pages between the first and the last for each that is touched


class Bulk:
    """Descriptors past the cache and an aligned buffer; `close` it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, WINDOW + 2 * PAGE)
        self._buffer = np.frombuffer(self._memory, np.uint8)
        self._words = self._buffer.view(np.float32)
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
        self, fd: int, offsets: Int64, out: Floats, what: str, places: Int64 | None = None
    ) -> bool:
        """out[places[i]] = the record at byte offsets[i]; False: nothing was done.

        places: where they go, 0, 1, ... unless given.
        """
        n, size = offsets.size, 4 * out.shape[1]
        if n * size < max(LEAST // 16, 1) or size > WINDOW:
            return False
        order = np.argsort(offsets, kind="stable")
        at = offsets[order]
        first, end = at // PAGE * PAGE, -(-(at + size) // PAGE) * PAGE
        ends = np.append(np.flatnonzero(at[1:] - at[:-1] > size + _GAP) + 1, n)
        begins = np.append(0, ends[:-1])
        if int((end[ends - 1] - first[begins]).sum()) > _READ_RATIO * n * size + 2 * PAGE:
            return False
        to = (order if places is None else places[order]) * out.shape[1]
        direct = self._direct(fd, os.O_RDONLY)
        if direct < 0:
            return False
        for begin, stop in zip(begins.tolist(), ends.tolist(), strict=True):
            while begin < stop:
                low = int(first[begin])
                last = int(np.searchsorted(end[begin:stop], low + WINDOW + PAGE, "right")) + begin
                try:
                    self._fetch(direct, low, int(end[last - 1]), int(at[last - 1]) + size, what)
                except OSError as error:
                    self._refuse(fd, error)
                    return False
                source = (at[begin:last] - low) // 4
                self._move(self._words, source, out.reshape(-1), to[begin:last], size // 4)
                begin = last
        return True

    def _fetch(self, fd: int, low: int, high: int, needed: int, what: str) -> None:
        """Bytes [low, high) of the file to the buffer, or up to its end behind `needed`."""
        at = low
        while at < needed:
            with files.explained(f"cannot read {what}"):
                got = os.preadv(fd, [self._buffer[at - low : high - low].data], at)
            if got == 0:
                read_failed(0, what)
            at += got

    def write(self, file: DataFile, rows: Int64, data: Floats) -> int:
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
            part = slice(begin, stop)
            try:
                self._window(fd, file, low, int(last[stop - 1]) + 1, rows[part], data[part])
            except OSError as error:
                self._refuse(file.fd, error)
                return begin
            begin = stop
        return n

    def _window(
        self, fd: int, file: DataFile, low: int, high: int, rows: Int64, data: Floats
    ) -> None:
        """Pages [low, high), which the records of `rows` begin and end."""
        size, base = file.layout.record_bytes, low * PAGE
        buffer = self._buffer[: (high - low) * PAGE]
        extents = files.extents(fd, base, high * PAGE)
        wanted = np.zeros(high - low, np.bool_)  # pages to be written
        if extents:
            self._fetch(fd, base, high * PAGE, high * PAGE, file.where)
            for begin, end in extents:
                wanted[(begin - base) // PAGE : -(-(end - base) // PAGE)] = True
        else:
            buffer.fill(0)
        offsets = file.offsets(rows) - base
        source = np.arange(rows.size) * (size // 4)
        self._move(data.reshape(-1), source, self._words, offsets // 4, size // 4)
        for step in range(align(size, PAGE) // PAGE + 1):
            wanted[np.minimum(offsets // PAGE + step, (offsets + (size - 1)) // PAGE)] = True
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
        wide = np.append(np.diff(edges)[1::2] > _FILL, True)  # the hole behind each run
        for begin, end in zip(
            edges[::2][np.append(True, wide[:-1])].tolist(), edges[1::2][wide].tolist(), strict=True
        ):
            with files.explained(f"cannot write rows to {file.where}"):
                view = buffer[begin * PAGE : end * PAGE].data
                files.write_all(fd, view, base + begin * PAGE)
