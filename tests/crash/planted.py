"""Bugs put into the store on purpose: the power-cut harness must catch every one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from sparse_embed.storage import checkpoint, files, fold, frame, journal, rows, segments
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


@contextmanager
def parts_believed_without_their_frame() -> Iterator[None]:
    plain = segments.Segments._read_commit

    def read(self: Any, segment: Any, commit: int, chain: int, verify: bool) -> Any:
        found = plain(self, segment, commit, chain, verify)
        parts: tuple[Any, ...] = ()
        at = segment.end
        while found is None:
            header = frame.FrameHeader.decode(os.pread(segment.fd, frame.HEADER, at))
            part = header and header.part and (header.commit, header.chain) == (commit, chain)
            piece = self._read_frame(segment, at, header, verify) if part else None
            if piece is None:
                break
            parts = (*parts, piece)
            at, chain = piece.end, piece.digest
        return replace(parts[-1], parts=parts[:-1]) if parts else found

    with mock.patch.object(segments.Segments, "_read_commit", read):
        yield


@contextmanager
def a_frame_whose_chain_skips_a_part() -> Iterator[None]:
    """The second piece of a commit, and each one after it, follows what the first one did."""
    first: dict[tuple[int, int], int] = {}
    plain = frame.FrameHeader

    def header(commit: int, size: int, meta: int, chain: int, salt: int, part: bool) -> Any:
        return plain(commit, size, meta, first.setdefault((salt, commit), chain), salt, part)

    with mock.patch.object(journal, "FrameHeader", header):
        yield


@contextmanager
def flags_cleared_with_parts_given_up() -> Iterator[None]:
    with mock.patch.object(rows.RowStore, "settle_failed", rows.RowStore.settle):
        yield


@contextmanager
def parts_in_segments_of_version_1() -> Iterator[None]:
    plain = journal.Journal._begin_segment

    def begin(self: Any, size: int, parts: bool) -> None:
        plain(self, size, parts=False)

    with mock.patch.object(journal.Journal, "_begin_segment", begin):
        yield


@contextmanager
def parts_left_behind_in_a_full_segment() -> Iterator[None]:
    """Their frame goes to the next one, when a checkpoint has sealed theirs."""

    def seal(self: Any) -> None:
        self._sealed = True

    def choose(self: Any, size: int, part: bool) -> None:
        newest = self.segments.get(self._number)
        if self._sealed or (part and newest is not None and not newest.header.parts):
            self._begin_segment(size, parts=part)

    with (
        mock.patch.object(journal.Journal, "seal", seal),
        mock.patch.object(journal.Journal, "_choose_segment", choose),
        mock.patch.object(fold.ahead, "give_up"),
    ):
        yield
