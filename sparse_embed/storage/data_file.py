"""A table's data file: the records of the last checkpoint, as a plain `.npy` (see layout.py).

Never mapped: rows are read and written with pread and pwrite, so neither a full disk nor a file
truncated by someone else can kill the process.  Reads of holes are avoided by a bitmap of the
file's allocated pages, asked from the file system (SEEK_DATA) for 64 MiB at a time when first
needed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparse_embed.errors import CorruptStoreError, StoreError
from sparse_embed.kernels.rowio import read_records
from sparse_embed.storage import files
from sparse_embed.storage.layout import DATA_START, NPY_PREFIX, Layout
from sparse_embed.storage.segments import read_failed

Int64 = NDArray[np.int64]
_REGION_PAGES = 1 << 14  # 64 MiB of file
_REGION = _REGION_PAGES * files.PAGE
_COPY = 8 << 20


class PageMap:
    """Which 4-KiB pages of a file may hold data; a cleared bit is surely a hole."""

    def __init__(self, fd: int, size: int, new: bool) -> None:
        self._fd = fd
        self._size = size
        regions = -(-size // _REGION)
        self._known = np.full(regions, new, np.bool_)
        # One bit a page: 23 MB for a file of 768 GB, in use only where rows are looked for.
        self._bits = np.zeros(regions * (_REGION_PAGES // 8), np.uint8)

    def maybe_data(self, offsets: Int64, length: int) -> NDArray[np.bool_]:
        """For each record of `length` bytes at `offsets`: may any of its pages hold data?"""
        found = np.zeros(offsets.shape[0], np.bool_)
        for pages in _pages_of(offsets, length):
            self._learn(np.unique(pages // _REGION_PAGES))
            found |= (self._bits[pages >> 3] >> (pages & 7).astype(np.uint8)) & 1 != 0
        return found

    def _learn(self, regions: Int64) -> None:
        for region in regions[~self._known[regions]].tolist():
            begin, end = region * _REGION, min((region + 1) * _REGION, self._size)
            data = np.zeros(_REGION_PAGES, np.bool_)
            for low, high in files.extents(self._fd, begin, end):
                data[(low - begin) // files.PAGE : -(-(high - begin) // files.PAGE)] = True
            at = region * (_REGION_PAGES // 8)
            self._bits[at : at + _REGION_PAGES // 8] |= np.packbits(data, bitorder="little")
            self._known[region] = True

    def mark(self, offsets: Int64, length: int) -> None:
        """Records were written at `offsets`."""
        for pages in _pages_of(offsets, length):
            np.bitwise_or.at(self._bits, pages >> 3, np.uint8(1) << (pages & 7).astype(np.uint8))


def _pages_of(offsets: Int64, length: int) -> Iterator[Int64]:
    """The pages that records lie on: first pages, then second ones, and so on."""
    first, last = offsets // files.PAGE, (offsets + (length - 1)) // files.PAGE
    yield first
    for page in range(1, (length - 2) // files.PAGE + 2):
        yield np.minimum(first + page, last)


class DataFile:
    """An open data file."""

    def __init__(self, fd: int, layout: Layout, where: str, new: bool) -> None:
        self.fd = fd
        self.layout = layout
        self.where = where
        self.pages = PageMap(fd, layout.file_bytes, new)
        if hasattr(os, "posix_fadvise"):
            # Without it a cold row drags megabytes of read-ahead behind it.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    @staticmethod
    def create(directory: files.Directory, name: str, layout: Layout) -> DataFile:
        """A new file, all holes, durable with its name."""
        where = directory.describe(name)
        fd = directory.open_regular(name, writable=True, create=True)
        if not _may_replace(fd):
            os.close(fd)
            raise StoreError(
                errno.EEXIST, f"{where} is in the way: no table's data file; move it elsewhere"
            )
        try:
            try:
                files.CALLS.truncate(fd, 0)
                files.CALLS.truncate(fd, layout.file_bytes)
            except (OSError, OverflowError) as error:
                code = getattr(error, "errno", errno.EFBIG)
                if code in (errno.EFBIG, errno.EINVAL):
                    raise StoreError(
                        errno.EFBIG,
                        f"num_embeddings: {where} would be {layout.file_bytes} bytes long (mostly "
                        "holes), more than this file system allows in one file; use fewer rows or "
                        "a smaller embedding_dim, split the table, or use a file system like XFS",
                    ) from None
                raise
            files.write_all(fd, memoryview(layout.npy_header()), 0)
            files.sync(files.CALLS.fsync, fd, where)
            directory.sync()  # before store.json names it
        except BaseException:
            files.CALLS.close(fd)
            files.CALLS.unlink(directory.fd, name)
            raise
        return DataFile(fd, layout, where, new=True)

    @staticmethod
    def open(directory: files.Directory, name: str, layout: Layout, writable: bool) -> DataFile:
        """Raises CorruptStoreError when the file is not the one that store.json describes."""
        where = directory.describe(name)
        try:
            fd = directory.open_regular(name, writable)
        except FileNotFoundError:
            raise CorruptStoreError(errno.ENOENT, f"{where} is missing") from None
        try:
            check_size(fd, layout, where)
            if files.read_exact(fd, DATA_START, 0, where) != layout.npy_header():
                raise CorruptStoreError(
                    errno.EINVAL, f"{where} has a header other than store.json describes (offset 0)"
                )
        except BaseException:
            os.close(fd)
            raise
        return DataFile(fd, layout, where, new=False)

    def offsets(self, rows: Int64) -> Int64:
        return DATA_START + rows * self.layout.record_bytes

    def maybe_stored(self, rows: Int64) -> NDArray[np.bool_]:
        """False where a row surely lies in a hole."""
        return self.pages.maybe_data(self.offsets(rows), self.layout.record_bytes)

    def read(self, rows: Int64, out: NDArray[np.float32]) -> None:
        """out[i] = the record of rows[i]; rows in holes come back as zeros without being read."""
        offsets = self.offsets(rows)
        there = np.flatnonzero(self.maybe_stored(rows))
        if there.size == rows.size:
            self._read(offsets, out)
            return
        out.fill(0.0)
        if there.size:
            some = np.empty((there.size, out.shape[1]), np.float32)
            self._read(offsets[there], some)
            out[there] = some

    def _read(self, offsets: Int64, out: NDArray[np.float32]) -> None:
        at, code = read_records(self.fd, offsets, out.view(np.uint8))
        if at >= 0:
            read_failed(code, self.where)

    def check(self) -> None:
        """The file still has its size (someone else may have truncated it)."""
        check_size(self.fd, self.layout, self.where)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(first row, records as bytes (n, record_bytes)) of all rows that begin in pages with
        data, ascending; holes between may come along as zeros."""
        size = self.layout.record_bytes
        at = 0  # the next row to report
        for low, high in files.extents(self.fd, DATA_START, self.layout.file_bytes):
            first = max(at, -(-(low - DATA_START) // size))
            at = max(first, -(-(high - DATA_START) // size))
            step = max(1, _COPY // size)
            for begin in range(first, at, step):
                rows = min(step, at - begin)
                offset = DATA_START + begin * size
                data = files.read_exact(self.fd, rows * size, offset, self.where)
                yield begin, np.frombuffer(data, np.uint8).reshape(rows, size)

    def written(self) -> Int64:
        """Rows that are not virgin here, ascending."""
        found = [begin + np.flatnonzero(self.layout.written(data)) for begin, data in self.blocks()]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def verify(self) -> Iterator[tuple[int, int]]:
        """Read every record, (bytes, rows found) at a time; CorruptStoreError when padding lanes
        are not zero."""
        unused = self.layout.padding()
        for begin, data in self.blocks():
            bad = np.flatnonzero(data[:, unused].any(axis=1))
            if bad.size:
                raise CorruptStoreError(
                    errno.EIO, f"{self.where}: row {begin + bad[0]} has bytes in its padding"
                )
            yield data.size, int(np.count_nonzero(self.layout.written(data)))

    def copy_to(self, other: DataFile) -> None:
        """Copy every page that holds data to a new file of the same layout.  No fsync."""
        for low, high in files.extents(self.fd, DATA_START, self.layout.file_bytes):
            for at in range(low, high, _COPY):
                n = min(_COPY, high - at)
                data = files.read_exact(self.fd, n, at, self.where)
                files.write_all(other.fd, memoryview(data), at)

    def close(self) -> None:
        files.CALLS.close(self.fd)


def _may_replace(fd: int) -> bool:
    """Is the file empty, or a data file that no store.json came to name?"""
    head = os.pread(fd, DATA_START, 0)
    return not head.strip(b"\0") or head[:10] == NPY_PREFIX


def check_size(fd: int, layout: Layout, where: str) -> None:
    size = os.fstat(fd).st_size
    if size != layout.file_bytes:
        raise CorruptStoreError(
            errno.EINVAL,
            f"{where} has {size} bytes, expected {layout.file_bytes}: it was truncated, extended "
            "or replaced by someone else",
        )
