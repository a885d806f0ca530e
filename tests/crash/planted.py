"""Bugs put into the store on purpose: the power-cut harness must catch every one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from sparse_embed.storage import checkpoint, files, frame, journal
from tests.crash.disk import RecordingCalls


class NoSync(RecordingCalls):
    """fsync, fdatasync and directory fsync say yes and do nothing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.syncs = False


class FoldSyncedTooLate(RecordingCalls):
    """store.json is renamed before the data files are synced."""

    _owed: tuple[int, ...] = ()

    def fsync(self, fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".npy"):
            self._live()
            self._owed = (*self._owed, os.fstat(fd).st_ino)
            return
        super().fsync(fd)

    def sync_dir(self, dir_fd: int) -> None:
        super().sync_dir(dir_fd)
        renamed = any(
            e.kind == "rename" and e.new == "store.json" for e in self.recording.events[-2:]
        )
        if renamed:
            for inode in self._owed:
                begun = len(self.recording.events)
                self._log("sync", file=self._by_inode[inode], begun=begun)
            self._owed = ()


class RenameNotSynced(RecordingCalls):
    """The directory is not synced after a rename."""

    def sync_dir(self, dir_fd: int) -> None:
        if self.recording.events[-1].kind != "rename":
            super().sync_dir(dir_fd)


class SpareHeaderNotSynced(RecordingCalls):
    """A folded segment's file gets its new name before its new header is durable."""

    def fdatasync(self, fd: int) -> None:
        if not os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2].startswith("spare-"):
            super().fdatasync(fd)


class SpareUsedTooEarly(RecordingCalls):
    """A folded segment's file is written to before its removal is durable."""

    def sync_dir(self, dir_fd: int) -> None:
        last = self.recording.events[-1]
        if not (last.kind == "rename" and last.new.startswith("spare-")):
            super().sync_dir(dir_fd)


@contextmanager
def segments_deleted_before_the_fold_is_synced() -> Iterator[None]:
    plain = checkpoint.write_rows

    def write_rows(source: Any, name: str, file: Any) -> Any:
        rows = plain(source, name, file)
        directory = os.open(os.path.dirname(os.readlink(f"/proc/self/fd/{file.fd}")), os.O_RDONLY)
        for number in sorted(source.fds)[:-1] if name == "users" else ():
            files.CALLS.unlink(directory, frame.segment_name(number))
        files.CALLS.sync_dir(directory)
        os.close(directory)
        return rows

    def delete(self: Any, numbers: list[int], keep: int = 0) -> None:
        for number in numbers:
            os.close(self.segments.pop(number).fd)
            if frame.segment_name(number) in self._dir.names():
                files.CALLS.unlink(self._dir.fd, frame.segment_name(number))
        self._close_append()

    with (
        mock.patch.object(checkpoint, "write_rows", write_rows),
        mock.patch.object(journal.Journal, "delete", delete),
    ):
        yield


@contextmanager
def checksum_without_the_records() -> Iterator[None]:
    def update(self: Any, data: Any, parallel: bool = True) -> None:
        if data.size:
            self._parts.append(np.zeros(1, np.uint64))

    def add(self: Any, digests: Any) -> None:
        self._parts.append(np.zeros_like(digests))

    with (
        mock.patch.object(frame.FrameDigest, "update", update),
        mock.patch.object(frame.FrameDigest, "add", add),
    ):
        yield


@contextmanager
def recovery_not_synced() -> Iterator[None]:
    with mock.patch.object(journal.Journal, "make_durable"):
        yield


@contextmanager
def an_empty_segment_cuts_the_journal() -> Iterator[None]:
    with mock.patch.object(journal.Journal, "_set_aside_empty", return_value=None):
        yield


@contextmanager
def a_replaced_segment_outlives_its_replacement() -> Iterator[None]:
    """The journal's bug that this harness found: of segments that were replaced together only the
    last one was removed with what had replaced them."""

    def older_than(self: Any, commit: int) -> list[int]:
        if self._later:
            return []
        numbers = sorted(self.segments)
        firsts = [self.segments[n].header.first_commit for n in numbers[1:]]
        lasts = [*(first - 1 for first in firsts), self.last_commit]
        old = [n for n, last in zip(numbers, lasts, strict=False) if last <= commit]
        return [n for n in old if self._sealed or n != self._number]

    with mock.patch.object(journal.Journal, "older_than", older_than):
        yield


@contextmanager
def segments_deleted_in_any_order() -> Iterator[None]:
    def delete(self: Any, numbers: list[int], keep: int = 0) -> None:
        for number in numbers:
            segment = self.segments.pop(number)
            if number == self._number:
                self._close_append()
            os.close(segment.fd)
            files.CALLS.unlink(self._dir.fd, frame.segment_name(number))
        if numbers:
            self._dir.sync()

    with mock.patch.object(journal.Journal, "delete", delete):
        yield


@contextmanager
def names_of_files_not_synced() -> Iterator[None]:
    """store.json may name a data file or an archive whose own name is not durable yet."""
    plain = files.Directory.sync

    def sync(self: Any) -> None:
        recording = getattr(files.CALLS, "recording", None)
        events = recording.events if recording else []
        last = next((e for e in reversed(events) if e.kind in ("make", "rename", "unlink")), None)
        named = last is not None and (last.new or last.name)
        if not str(named or "").endswith((".npy", ".npz")):
            plain(self)

    with mock.patch.object(files.Directory, "sync", sync):
        yield
