"""How much memory resident rows may take.

A table made with `cache_bytes=n` has a budget of its own.  All others draw on one budget of the
process: half of the memory that the machine, or the control group the process runs in, allows.
Files mapped or cached by the kernel do not count: it takes those pages back when it needs them.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

_FALLBACK = 4 << 30


class Budget:
    """A number of bytes that tables take from and give back to.  Thread-safe."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._lock = threading.Lock()

    def draw(self, amount: int) -> bool:
        """Take `amount` if that much is left."""
        with self._lock:
            if self.used + amount > self.total:
                return False
            self.used += amount
            return True

    def take(self, amount: int) -> None:
        """Take `amount` whatever is left: for what cannot be refused, as an index must grow."""
        with self._lock:
            self.used += amount

    def give(self, amount: int) -> None:
        with self._lock:
            self.used -= amount

    @property
    def excess(self) -> int:
        """Bytes taken beyond the total; resident rows make room for them."""
        return max(0, self.used - self.total)


def memory_limit() -> int:
    """Bytes that this process may use: the machine's memory, or its control group's if smaller."""
    try:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _FALLBACK
    for found in _cgroup_limits():
        limit = min(limit, found)
    return limit


def _cgroup_limits() -> list[int]:
    """The memory limits of this process's control groups (versions 1 and 2) and their parents."""
    limits = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:
                text = "max"
            if text.isdigit():
                limits.append(int(text))
            if folder == root:
                break
    return limits


_process: Budget | None = None


def process_budget() -> Budget:
    """The budget shared by all tables without `cache_bytes`."""
    global _process
    if _process is None:
        _process = Budget(memory_limit() // 2)
    return _process
