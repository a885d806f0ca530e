"""Every call that changes a store's files, in one place.

The crash tests replace `CALLS` with an object that records what is written and synced, so nothing
in this package may reach the file system for writing by another way.

A store directory may have been prepared by somebody else: files are opened relative to the
directory's descriptor, without following links and without blocking on FIFOs, and only regular
files are accepted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_embed.errors import CorruptStoreError, NotAStoreError, ReadOnlyError, StoreError
from sparse_embed.kernels.rowio import write_serial

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_FULLFSYNC = 51  # macOS: F_FULLFSYNC reaches the platter, fsync only the drive
_SEEK_DATA = getattr(os, "SEEK_DATA", None)
_SEEK_HOLE = getattr(os, "SEEK_HOLE", None)
PAGE = 4096


class SystemCalls:
    """The plain system calls.  Arguments are descriptors, names relative to a directory, bytes."""

    def open(self, dir_fd: int, name: str, flags: int, mode: int = 0o666) -> int:
        return os.open(name, flags | _SAFE, mode, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def pwrite_records(
        self, fd: int, offsets: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> tuple[int, int]:
        """Write data[i] at offsets[i] (ascending); returns (first failed or -1, errno)."""
        at, code = write_serial()(fd, offsets, data)
        return int(at), int(code)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve space, so that a full disk shows before anything is written."""
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(fd, offset, length)
        except OSError as error:
            # A file system that cannot reserve: then the write itself meets the full disk.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, _FULLFSYNC)
        else:
            os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        if sys.platform == "darwin":
            self.fsync(fd)
        else:
            os.fdatasync(fd)

    def rename(self, dir_fd: int, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def unlink(self, dir_fd: int, name: str) -> None:
        os.unlink(name, dir_fd=dir_fd)

    def sync_dir(self, dir_fd: int) -> None:
        os.fsync(dir_fd)


CALLS = SystemCalls()


class SyncError(StoreError):
    """A file or directory could not be synced: the kernel may have dropped what was to be written
    and call the next sync a success, so what is on disk is unknown."""


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what was being done; errno is kept."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        kind = ReadOnlyError if error.errno in (errno.EROFS, errno.EACCES) else StoreError
        raise kind(error.errno, f"{doing}: {os.strerror(error.errno or 0)}") from error


def sync(call: Callable[[int], None], fd: int, what: str) -> None:
    """Call fsync, fdatasync or sync_dir; raises SyncError."""
    try:
        call(fd)
    except OSError as error:
        text = f"cannot sync {what}: {os.strerror(error.errno or 0)}"
        raise SyncError(error.errno, text) from error


def raise_errno(code: int, doing: str) -> None:
    """Raise the StoreError for an errno that a kernel returned."""
    raise StoreError(code, f"{doing}: {os.strerror(code)}")


class Directory:
    """An open store directory: names in, descriptors out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotAStoreError(
                errno.ENOENT, f"path: no store at {str(path)!r} (nothing is there)"
            ) from None
        except NotADirectoryError:
            raise NotAStoreError(
                errno.ENOTDIR, f"path: {str(path)!r} is a file; a store is a directory"
            ) from None
        except OSError as error:  # no permission, a loop of links, a name that is too long
            raise StoreError(
                error.errno, f"path: cannot open {str(path)!r}: {os.strerror(error.errno or 0)}"
            ) from None

    def close(self) -> None:
        fd, self.fd = self.fd, -1  # first: an interrupt after the close must not close twice
        if fd >= 0:
            os.close(fd)

    def describe(self, name: str) -> str:
        return repr(str(self.path / name))

    def names(self) -> list[str]:
        return sorted(os.listdir(self.fd))

    def open_regular(self, name: str, writable: bool, create: bool = False) -> int:
        """A descriptor of a regular file.

        Raises CorruptStoreError when something else stands under that name, FileNotFoundError when
        nothing does.
        """
        flags = os.O_RDWR if writable else os.O_RDONLY
        if create:
            flags |= os.O_CREAT
        try:
            fd = CALLS.open(self.fd, name, flags)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EMLINK):
                raise CorruptStoreError(
                    error.errno,
                    f"{self.describe(name)} is a link, a directory or a device; "
                    "expected a regular file",
                ) from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptStoreError(
                errno.EINVAL, f"{self.describe(name)} is not a regular file"
            ) from None
        return fd

    def read_small(self, name: str, limit: int) -> bytes:
        """The whole file, refused above `limit` bytes before anything is allocated."""
        fd = self.open_regular(name, writable=False)
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                raise CorruptStoreError(
                    errno.EFBIG, f"{self.describe(name)} has {size} bytes, more than {limit}"
                )
            return read_exact(fd, size, 0, self.describe(name))
        finally:
            os.close(fd)

    def replace(self, name: str, data: bytes) -> None:
        """Write `name` whole and durably: temporary file, fsync, rename, directory fsync."""
        temporary = name + ".tmp"
        with explained(f"cannot write {self.describe(name)}"):
            fd = CALLS.open(self.fd, temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                write_all(fd, memoryview(data), 0)
                sync(CALLS.fsync, fd, self.describe(temporary))
            finally:
                CALLS.close(fd)
            CALLS.rename(self.fd, temporary, name)
            self.sync()

    def sync(self) -> None:
        """Make names durable: files made, renamed and removed."""
        sync(CALLS.sync_dir, self.fd, repr(str(self.path)))


def read_exact(fd: int, count: int, offset: int, what: str) -> bytes:
    """`count` bytes at `offset`; CorruptStoreError when the file ends early."""
    parts = []
    while count > 0:
        with explained(f"cannot read {what}"):
            part = os.pread(fd, min(count, 1 << 30), offset)
        if not part:
            raise CorruptStoreError(errno.EIO, f"{what} ends at byte {offset}; it was truncated")
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return b"".join(parts)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data`, however the kernel splits it."""
    while len(data):
        done = CALLS.pwrite(fd, data, offset)
        data = data[done:]
        offset += done


def extents(fd: int, begin: int, end: int) -> list[tuple[int, int]]:
    """The parts of [begin, end) that hold data; all of it where the file system cannot say."""
    if _SEEK_DATA is None or _SEEK_HOLE is None:
        return [(begin, end)]
    found = []
    at = begin
    while at < end:
        try:
            low = os.lseek(fd, at, _SEEK_DATA)
            high = min(os.lseek(fd, low, _SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                break
            return [(begin, end)]
        if low >= end:
            break
        found.append((low, high))
        at = high
    return found


def allocated_bytes(fd: int) -> int:
    """Disk space in use by the file, holes not counted."""
    return os.fstat(fd).st_blocks * 512
