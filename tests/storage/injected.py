"""System calls that fail where a test wants it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from sparse_embed.storage import files

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))

NAMES = [
    "open",
    "close",
    "pwrite",
    "pwrite_records",
    "allocate",
    "truncate",
    "fsync",
    "fdatasync",
    "rename",
    "unlink",
    "sync_dir",
]


class InjectedCalls(files.SystemCalls):
    """Before each call `when(name, args)` may return an exception to raise instead.

    `log` lists the names of all calls so far.  After `stop()` nothing is injected any more.
    """

    def __init__(self, when: Callable[[str, tuple[Any, ...]], BaseException | None]) -> None:
        self.when: Callable[[str, tuple[Any, ...]], BaseException | None] = when
        self.log: list[str] = []

    def stop(self) -> None:
        self.when = lambda name, args: None


def _wrap(name: str) -> Callable[..., Any]:
    plain = getattr(files.SystemCalls, name)

    def call(self: InjectedCalls, *args: Any) -> Any:
        self.log.append(name)
        error = self.when(name, args)
        if error is None:
            return plain(self, *args)
        if name == "pwrite_records" and isinstance(error, OSError):
            return 0, error.errno
        raise type(error)(*error.args)  # a new one, without an old traceback

    return call


for _name in NAMES:
    setattr(InjectedCalls, _name, _wrap(_name))


def nth(number: int, error: BaseException, *names: str) -> Any:
    """Fail the call that is the `number`-th (from 1) of these names (all names when none given)."""
    seen = 0

    def when(name: str, args: tuple[Any, ...]) -> BaseException | None:
        nonlocal seen
        if names and name not in names:
            return None
        seen += 1
        return error if seen == number else None

    return when


def always(error: BaseException, *names: str) -> Any:
    return lambda name, args: error if name in names else None
