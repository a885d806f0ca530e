"""One writer, many readers: byte-range locks on the file `lock` of a store.

Byte 0           held exclusively by the writer
Byte 1 + n       held shared by every reader that stands at commit n

The locks belong to the open file description (F_OFD_SETLK): the kernel frees them when the process
dies however it dies, two stores of one process exclude each other, and closing another descriptor
of the file frees nothing.  The writer asks with F_OFD_GETLK which commit the oldest reader needs,
and folds nothing newer into the data files.

The writer leaves its pid and start time in the file, for the error message of a second writer.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import time
from typing import Any

from sparse_embed.errors import LockedError

try:
    import fcntl
except ImportError:  # Windows: file stores are refused before a lock is asked for
    fcntl = None  # type: ignore[assignment]

NAME = "lock"
_DARWIN = sys.platform == "darwin"
_SET = getattr(fcntl, "F_OFD_SETLK", 90 if _DARWIN else 37)
_GET = getattr(fcntl, "F_OFD_GETLK", 92 if _DARWIN else 36)


def _flock(kind: int, start: int, length: int) -> bytes:
    if _DARWIN:
        return struct.pack("@qqihh", start, length, 0, kind, os.SEEK_SET)
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def _parse(answer: bytes) -> tuple[int, int]:
    """(type, start) of the lock that stands in the way."""
    if _DARWIN:
        start, _, _, kind, _ = struct.unpack("@qqihh", answer)
    else:
        kind, _, start, _, _ = struct.unpack("@hhqqi4x", answer)
    return kind, start


def _try(fd: int, kind: int, start: int) -> bool:
    try:
        fcntl.fcntl(fd, _SET, _flock(kind, start, 1))
    except (BlockingIOError, PermissionError):
        return False
    return True


def holder(fd: int) -> dict[str, Any]:
    """What the last writer said of itself; empty when it said nothing readable."""
    try:
        said = json.loads(os.pread(fd, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def lock_writer(fd: int, where: str) -> None:
    """Become the writer, or raise LockedError naming the one there is."""
    if not _try(fd, fcntl.F_WRLCK, 0):
        said = holder(fd)
        raise LockedError(
            11,
            f"path: {where} is already open for writing by process {said.get('pid', 'unknown')}, "
            f"since {said.get('started', 'an unknown time')}; one writer at a time "
            '(open with mode="r" to read)',
        )
    text = json.dumps({"pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")})
    data = text.encode().ljust(256, b" ")
    with contextlib.suppress(OSError):  # advice for people: a full disk is no reason not to open
        os.pwrite(fd, data, 0)


def writer_is_active(fd: int) -> bool:
    """Is some other open file description the writer?"""
    kind, _ = _parse(fcntl.fcntl(fd, _GET, _flock(fcntl.F_WRLCK, 0, 1)))
    return kind != fcntl.F_UNLCK


def lock_reader(fd: int, commit: int) -> None:
    """Stand at `commit`: its rows stay readable until unlock_reader or the end of the process."""
    if not _try(fd, fcntl.F_RDLCK, 1 + commit):
        raise LockedError(11, f"cannot take a shared lock for commit {commit}")


def unlock_reader(fd: int, commit: int) -> None:
    fcntl.fcntl(fd, _SET, _flock(fcntl.F_UNLCK, 1 + commit, 1))


def oldest_reader(fd: int, below: int) -> int | None:
    """The smallest commit under `below` that a reader stands at, or None."""
    found = None
    while below > 0:
        answer = fcntl.fcntl(fd, _GET, _flock(fcntl.F_WRLCK, 1, below))
        kind, start = _parse(answer)
        if kind == fcntl.F_UNLCK:
            break
        found = below = max(start - 1, 0)
    return found


def no_readers(fd: int) -> bool:
    """Does no reader stand anywhere?"""
    answer = fcntl.fcntl(fd, _GET, _flock(fcntl.F_WRLCK, 1, 0))  # a length of 0: without end
    return _parse(answer)[0] == fcntl.F_UNLCK


def processes_holding(path: str) -> list[int]:
    """Pids of this machine's processes that have `path` open (Linux, those we may see)."""
    pids = []
    try:
        candidates = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        wanted = os.stat(path)
    except OSError:
        return []
    for pid in candidates:
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                seen = os.stat(f"/proc/{pid}/fd/{name}")
                if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                    pids.append(pid)
                    break
        except OSError:
            continue
    return sorted(pids)
