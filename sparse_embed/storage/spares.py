"""Files of journal segments that were folded, kept for segments to come.

Writing over what was written before is up to twice as fast as writing to space that the file system
has just handed out, and takes no more room: the journal would grow to the same size again.
Measured on a virtual disk under ext4 with `discard`: 2.4 and 1.1 GB/s.  It is the disk's doing:
extents marked unwritten, on blocks that were written once, are as fast as written ones; blocks that
were freed went back to whoever lends them, and the first write to each asks for it again.

The order that makes this safe
- a folded segment becomes a spare by rename, and the directory is synced, before it is written to
- the header of the new segment is synced before the file is renamed to the segment's name
- nothing is written to a spare while a reader holds a lock: readers have descriptors of segments
  that were folded after they came.  One that is just opening finds the directory changed, and
  starts again.
- frames carry the salt of their segment, so what is left of older ones is never taken for one

A spare is nobody's: a writer that opens the store removes those that it finds.  So those that are
too many are removed by a thread: the file system may take 0.3 s for a GB, and training goes on.
"""

from __future__ import annotations

import logging
import re

from sparse_embed.storage import files
from sparse_embed.storage.background import Background

WORTH = 16 << 20  # smaller segments are removed

log = logging.getLogger("sparse_embed")
_NAME = re.compile(r"spare-(\d{6,18})\.wal", re.ASCII)


def is_spare_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


class Spares:
    """The spare files of one store: name -> size."""

    def __init__(self, directory: files.Directory) -> None:
        self._dir = directory
        self._sizes: dict[str, int] = {}
        self._leaving: list[str] = []
        self._removal: Background | None = None

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def rename(self, name: str, number: int) -> str:
        """Turn a segment's file into a spare one; `admit` it once the directory is synced."""
        spare = f"spare-{number:06d}.wal"
        files.CALLS.rename(self._dir.fd, name, spare)
        return spare

    def admit(self, spare: str, size: int) -> None:
        self._sizes[spare] = size

    def take(self, size: int) -> tuple[str, int] | None:
        """Name and size of the smallest spare of at least `size` bytes, else of the largest."""
        if not self._sizes:
            return None
        fitting = [name for name, room in self._sizes.items() if room >= size]
        chosen = min(fitting or self._sizes, key=lambda name: abs(self._sizes[name] - size))
        return chosen, self._sizes.pop(chosen)

    def reject(self, spare: str) -> None:
        """As `admit`, of one too many: it goes with the next `discard`."""
        self._leaving.append(spare)

    def discard(self) -> None:
        """Remove what was rejected, in a thread; while one is at it, the next one will."""
        if self._leaving and (self._removal is None or self._removal.done):
            self._removal = Background(self._leave)
            self._removal.start()

    def settle(self) -> bool:
        """Wait until the room of what was rejected is free; was there any?"""
        had = self._removal is not None or bool(self._leaving)
        if self._removal is not None:
            self._removal.wait()
        self._leave()  # what came too late for the thread
        self._removal = None
        return had

    def _leave(self) -> None:
        while self._leaving:
            self._unlink(self._leaving.pop())

    def _unlink(self, spare: str) -> None:
        try:
            files.CALLS.unlink(self._dir.fd, spare)
        except FileNotFoundError:
            pass
        except OSError as error:  # it holds nothing; who opens the store next tries again
            log.warning("cannot remove %s: %s", self._dir.describe(spare), error)

    def remove(self) -> bool:
        """Give the room of all back; was there any?"""
        had = self.settle() or bool(self._sizes)
        while self._sizes:
            self._unlink(self._sizes.popitem()[0])
        return had
