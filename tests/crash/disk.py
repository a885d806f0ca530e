"""A disk that remembers every call, and what it may hold after the power is cut.

`RecordingCalls` does the calls and writes them down.  `Recording.image(cut, ...)` builds the
directory that a disk could show if the power had gone after event `cut`:

- bytes and sizes of a file are sure up to its last fsync or fdatasync that began after them
- names (made, renamed, removed) are sure up to the last fsync of the directory
- of everything later any part may be there: each call kept or not, a kept write whole or torn at
  512-byte sectors

An fsync of a file does not make its name sure, which is less than ext4 or XFS promise.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparse_embed.storage import files

SECTOR = 512


class Killed(BaseException):
    """The process died at this call."""


@dataclass(frozen=True)
class Event:
    """kind: write, size, grow (of a file) · make, rename, unlink (names) · sync, syncdir · mark."""

    kind: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    name: str = ""
    new: str = ""
    begun: int = 0  # for syncs: events before this one are covered
    said: Any = None


@dataclass
class Recording:
    """Events of one directory, in order, on top of what it held at the start."""

    base: dict[str, bytes] = field(default_factory=dict)  # name -> contents, all durable
    events: list[Event] = field(default_factory=list)
    next_file: int = 0

    def mark(self, said: Any) -> None:
        self.events.append(Event("mark", said=said))

    def image(self, cut: int, folder: Path, rng: np.random.Generator) -> None:
        """Write into the empty `folder` what the disk may hold when `events[:cut]` had happened."""
        names, contents = self._state(cut, rng)
        for name, file in names.items():
            (folder / name).write_bytes(b"")
            with (folder / name).open("r+b") as out:
                size = 0
                for offset, data in contents[file]:
                    if offset < 0:
                        size = -1 - offset
                        out.truncate(size)
                        continue
                    out.seek(offset)
                    out.write(data)
                    size = max(size, offset + len(data))
                    out.flush()
                out.truncate(size)

    def _state(self, cut: int, rng: np.random.Generator) -> tuple[dict[str, int], dict[int, Any]]:
        share = float(rng.choice([0.0, 0.1, 0.5, 0.9, 1.0]))  # of unsynced calls that got through
        torn = float(rng.choice([0.0, 0.3, 1.0]))  # of these, writes that did not get through whole
        synced: dict[int, int] = {}
        names_synced = 0
        for event in self.events[:cut]:
            if event.kind == "sync":
                synced[event.file] = max(synced.get(event.file, 0), event.begun)
            elif event.kind == "syncdir":
                names_synced = max(names_synced, event.begun)
        unsure = [
            at
            for at, event in enumerate(self.events[:cut])
            if at >= (names_synced if event.name else synced.get(event.file, 0))
            and event.kind not in ("sync", "syncdir", "mark")
        ]
        # Or: only what came before some moment got through, or only what came after it.
        moment = int(rng.choice(unsure)) if unsure and rng.random() < 0.4 else None
        before = bool(rng.random() < 0.6)

        def kept(at: int) -> bool:
            if moment is not None:
                return at < moment if before else at > moment
            return bool(rng.random() < share)

        names: dict[str, int] = {}
        contents: dict[int, list[tuple[int, bytes]]] = {}
        sizes: dict[int, int] = {}
        for i, (name, data) in enumerate(self.base.items()):
            names[name] = -1 - i
            contents[-1 - i] = [(0, data)]
            sizes[-1 - i] = len(data)
        for at, event in enumerate(self.events[:cut]):
            if event.kind in ("write", "size", "grow"):
                if at >= synced.get(event.file, 0) and not kept(at):
                    continue
                parts, size = contents[event.file], sizes[event.file]
                if event.kind == "size":
                    parts.append((-1 - event.offset, b""))
                    size = event.offset
                elif event.kind == "grow":
                    size = max(size, event.offset)
                    parts.append((-1 - size, b""))
                elif at < synced.get(event.file, 0) or rng.random() >= torn:
                    parts.append((event.offset, event.data))
                    size = max(size, event.offset + len(event.data))
                else:
                    lost = float(rng.choice([0.1, 0.5]))
                    for begin in range(0, len(event.data), SECTOR):
                        if rng.random() >= lost:
                            sector = event.data[begin : begin + SECTOR]
                            parts.append((event.offset + begin, sector))
                            size = max(size, event.offset + begin + len(sector))
                sizes[event.file] = size
            elif event.kind in ("make", "rename", "unlink"):
                contents.setdefault(event.file, [])
                sizes.setdefault(event.file, 0)
                if at >= names_synced and not kept(at):
                    continue
                if event.kind == "make":
                    names[event.name] = event.file
                elif event.kind == "unlink":
                    names.pop(event.name, None)
                else:
                    if names.get(event.name) == event.file:
                        del names[event.name]
                    names[event.new] = event.file
        return names, contents


class RecordingCalls(files.SystemCalls):
    """Does the calls, writes them down, and dies at a chosen one."""

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.recording = recording
        self.kill_in = -1  # calls until the process dies; -1: it lives
        self.dead = False
        self.syncs = True  # False: the planted bug "no sync"
        self._folder = folder
        self._lock = threading.RLock()
        self._files: dict[str, int] = {name: -1 - i for i, name in enumerate(recording.base)}
        self._by_inode: dict[int, int] = {}  # descriptors are closed, and used again, unseen

    def _live(self) -> None:
        if self.dead:
            raise Killed
        if self.kill_in >= 0:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.dead = True
                raise Killed

    def _ours(self, dir_fd: int) -> bool:
        return os.path.samestat(os.fstat(dir_fd), os.stat(self._folder))

    def _log(self, kind: str, **what: Any) -> None:
        self.recording.events.append(Event(kind, **what))

    def open(self, dir_fd: int, name: str, flags: int, mode: int = 0o666) -> int:
        with self._lock:
            if flags & os.O_CREAT:
                self._live()
            fd = super().open(dir_fd, name, flags, mode)
            if self._ours(dir_fd) and name != "lock":
                if name not in self._files:
                    self._files[name] = self.recording.next_file
                    self.recording.next_file += 1
                    self._log("make", file=self._files[name], name=name)
                if flags & os.O_TRUNC:
                    self._log("size", file=self._files[name])
                self._by_inode[os.fstat(fd).st_ino] = self._files[name]
            return fd

    def _file(self, fd: int) -> int | None:
        """The file of a descriptor; None for the scratch file, which nothing is promised of."""
        return self._by_inode.get(os.fstat(fd).st_ino)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        with self._lock:
            self._live()
            done = super().pwrite(fd, data, offset)
            if (file := self._file(fd)) is not None:
                self._log("write", file=file, offset=offset, data=bytes(data[:done]))
            return done

    def pwrite_records(self, fd: int, offsets: Any, data: Any) -> tuple[int, int]:
        with self._lock:
            if (file := self._file(fd)) is None:  # the scratch file
                return super().pwrite_records(fd, offsets, data)
            self._live()
            done = super().pwrite_records(fd, offsets, data)
            for offset, record in zip(offsets.tolist(), data, strict=True):
                self._log("write", file=file, offset=offset, data=record.tobytes())
            return done

    def allocate(self, fd: int, offset: int, length: int) -> None:
        with self._lock:
            self._live()
            super().allocate(fd, offset, length)
            if (file := self._file(fd)) is not None:
                self._log("grow", file=file, offset=offset + length)

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            self._live()
            super().truncate(fd, size)
            if (file := self._file(fd)) is not None:
                self._log("size", file=file, offset=size)

    def fsync(self, fd: int) -> None:
        """The real one is not called: the file's bytes are in the recording."""
        with self._lock:
            self._live()
            begun = len(self.recording.events)
            if self.syncs and (file := self._file(fd)) is not None:
                self._log("sync", file=file, begun=begun)

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def rename(self, dir_fd: int, old: str, new: str) -> None:
        with self._lock:
            self._live()
            super().rename(dir_fd, old, new)
            file = self._files[new] = self._files.pop(old)
            self._log("rename", file=file, name=old, new=new)

    def unlink(self, dir_fd: int, name: str) -> None:
        with self._lock:
            self._live()
            inode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino
            super().unlink(dir_fd, name)
            if name in self._files:
                self._log("unlink", file=self._files.pop(name), name=name)
                self._by_inode.pop(inode, None)

    def sync_dir(self, dir_fd: int) -> None:
        with self._lock:
            self._live()
            if self.syncs and self._ours(dir_fd):
                self._log("syncdir", begun=len(self.recording.events))
