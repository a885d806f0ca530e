"""A block device's contents as a file that writes down all that reaches it (FUSE).

    python tests/crash/logged_disk.py MOUNTPOINT BACKING LOG

MOUNTPOINT then holds two files.  `disk` shows BACKING; every write to it and every flush is
appended to LOG before it is answered.  What is written to `marks` is appended too, so that the
moments at which a program was told "durable" stand in the same order as the disk's writes.  A loop
device on `disk` with a file system on it is a disk whose power can be cut: see real_ext4.py.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mfusepy

WRITE, FLUSH, MARK = 0, 1, 2
_HEADER = struct.Struct("<BQI")  # kind, offset, length of the bytes that follow


def read_log(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(kind, offset, data) of every entry, in order."""
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            kind, offset, length = _HEADER.unpack(header)
            yield kind, offset, file.read(length)


class LoggedDisk(mfusepy.Operations):  # type: ignore[misc]
    """One thread serves it, so the log's order is the order in which calls were answered."""

    use_ns = True

    def __init__(self, backing: str, log: str) -> None:
        self._disk = os.open(backing, os.O_RDWR)
        self._log = open(log, "ab", buffering=0)  # noqa: SIM115 - open as long as the process

    def _append(self, kind: int, offset: int = 0, data: bytes = b"") -> None:
        self._log.write(_HEADER.pack(kind, offset, len(data)) + data)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path not in ("/disk", "/marks"):
            raise mfusepy.FuseOSError(errno.ENOENT)
        size = os.fstat(self._disk).st_size if path == "/disk" else 0
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", "disk", "marks"]

    def open(self, path: str, flags: int) -> int:
        return 0 if path == "/disk" else 1

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(self._disk, size, offset) if path == "/disk" else b""

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if path == "/marks":
            self._append(MARK, 0, data)
        else:
            os.pwrite(self._disk, data, offset)
            self._append(WRITE, offset, data)
        return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        if path == "/disk":
            self._append(FLUSH)
        return 0


if __name__ == "__main__":
    mountpoint, backing, log = sys.argv[1:]
    mfusepy.FUSE(
        LoggedDisk(backing, log), mountpoint, foreground=True, nothreads=True, direct_io=False
    )
