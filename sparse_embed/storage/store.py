"""A store: tables and arrays that commit together.  The protocol of DESIGN lives here.

open       store.json, then every valid frame of the journal; no row is read
commit     one frame, one fdatasync (journal.py); rows stay in memory, now clean
checkpoint fold the journal into the data files (checkpoint.py)
rollback   forget what memory holds; the next read finds the last commit

One Python thread at a time: every public call holds `lock`.  A step that is interrupted leaves
`failed` set; then only rollback and close are possible.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.errors import (
    ArgumentError,
    CorruptStoreError,
    NotAStoreError,
    ReadOnlyError,
    StoreClosedError,
    StoreError,
    StoreFailedError,
)
from sparse_embed.storage import checkpoint as folding
from sparse_embed.storage import files, lock, manifest
from sparse_embed.storage.budget import process_budget
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.frame import plan, segment_number
from sparse_embed.storage.journal import Frame, Journal, PendingCommit
from sparse_embed.storage.manifest import CommitState, Manifest, TableEntry, file_name
from sparse_embed.storage.rows import RowStore, TakenRows

log = logging.getLogger("sparse_embed")
_LOCK = "lock"
_STAGING = 64 << 20  # a commit that does not wait stages at least this much
_JOURNAL_BUDGET = 256 << 20  # the journal may at least be this large before it is folded


@dataclass
class TableCore:
    """A table as storage sees it."""

    entry: TableEntry
    rows: RowStore
    step: int = 0
    lr: float = 0.0


@dataclass
class _Flight:
    """A commit between `commit(wait=False)` and its end."""

    pending: PendingCommit
    taken: dict[str, TakenRows]
    state: CommitState
    arrays: dict[str, NDArray[Any]]


class StoreCore:
    """An open store.  Made by `create`, `open` and `in_memory`."""

    def __init__(self, path: Path | None, mode: str) -> None:
        self.path = path
        self.mode = mode
        self.lock = threading.RLock()
        self.tables: dict[str, TableCore] = {}
        self.arrays: dict[str, NDArray[Any]] = {}
        self.metadata: dict[str, Any] = {}
        self.failed: str | None = None
        self.notes: list[str] = []
        self._last_commit = 0
        self._closed: str | None = None
        self._read_only: str | None = None if mode == "r+" else 'it was opened with mode="r"'
        self._committed = CommitState()
        self._committed_arrays: dict[str, NDArray[Any]] = {}
        self._frames: list[Frame] = []
        self._flight: _Flight | None = None
        self._fold: folding.Fold | None = None
        self._directory: files.Directory | None = None
        self._journal: Journal | None = None
        self._manifest = Manifest(secrets.token_bytes(16))
        self._lock_fd = -1
        self._opened_by = os.getpid()
        self._cache: int | Mapping[str, int | None] | None = None
        _LIVE.add(self)

    # ---- making and opening ---------------------------------------------------------------------

    @classmethod
    def in_memory(cls, metadata: dict[str, Any]) -> StoreCore:
        """No files: commits number states but keep nothing, and there is no rollback."""
        core = cls(None, "r+")
        core.metadata = metadata
        return core

    @classmethod
    def create(cls, path: Path, metadata: dict[str, Any], overwrite: bool) -> StoreCore:
        """A new, empty store in a new or empty directory.

        Raises StoreError (EEXIST) when something is there; with overwrite=True a valid store is
        removed first, and nothing else ever is.
        """
        _refuse_platform()
        with files.explained(f"cannot create a store at {str(path)!r}"):
            path.mkdir(parents=True, exist_ok=True)
        core = cls(path, "r+")
        core._directory = files.Directory(path)
        try:
            with files.explained(f"cannot create a store at {str(path)!r}"):
                core._claim_directory(overwrite)
                core._manifest = Manifest(
                    secrets.token_bytes(16), state=CommitState({}, dict(metadata))
                )
                manifest.write(core._directory, core._manifest)
                _sync_parent(path)
            core.metadata = metadata
            core._committed = CommitState({}, _copy(metadata))
            core._journal = Journal(core._directory, core._manifest.uuid, writable=True)
        except BaseException:
            core.abandon()
            raise
        return core

    def _claim_directory(self, overwrite: bool) -> None:
        assert self._directory is not None
        names = [name for name in self._directory.names() if name != _LOCK]
        if manifest.NAME in names:
            if not overwrite:
                raise StoreError(
                    errno.EEXIST,
                    f"path: there is already a store at {str(self.path)!r}; open it, or pass "
                    "overwrite=True to remove it",
                )
            old = manifest.read(self._directory)
            self._take_writer_lock()
            _remove_store(self._directory, old)
            names = [name for name in self._directory.names() if name != _LOCK]
        if names:
            raise StoreError(
                errno.ENOTEMPTY,
                f"path: {str(self.path)!r} is not empty (it holds {names[0]!r}) and is not a store",
            )
        if self._lock_fd < 0:
            self._take_writer_lock()

    def _take_writer_lock(self) -> None:
        assert self._directory is not None
        fd = self._directory.open_regular(_LOCK, writable=True, create=True)
        try:
            lock.lock_writer(fd, repr(str(self.path)))
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd

    @classmethod
    def open(cls, path: Path, mode: str, at_commit: int | None) -> StoreCore:
        """Open a store for writing ("r+") or reading ("r"), at its last commit or an earlier one."""
        _refuse_platform()
        directory = files.Directory(path)
        core = cls(path, mode)
        core._directory = directory
        try:
            with files.explained(f"cannot open the store at {str(path)!r}"):
                manifest.read(directory)  # is it a store at all, before a lock file is made
                if mode == "r+":
                    core._take_writer_lock()
                    core._load(at_commit)
                    core._remove_strays()
                else:
                    core._load_as_reader(at_commit)
        except BaseException:
            core.abandon()
            raise
        return core

    def _load(self, at_commit: int | None) -> None:
        """Read store.json and the journal.  No rows."""
        assert self._directory is not None
        self._manifest = found = manifest.read(self._directory)
        self._journal = journal = Journal(self._directory, found.uuid, self.mode == "r+")
        self._frames = journal.scan(found.folded, at_commit)
        last = self._frames[-1].commit if self._frames else found.folded
        if last < found.folding:
            raise CorruptStoreError(
                errno.EIO,
                f"the journal in {str(self.path)!r} ends at commit {last}, but commit "
                f"{found.folding} was being folded: a segment was lost"
                if at_commit is None
                else f"at_commit: commit {at_commit} is gone; the oldest is {found.folding}",
            )
        if at_commit is not None and last != at_commit:
            raise ArgumentError(
                f"at_commit: commit {at_commit} is not in the store; it has "
                f"{found.folding} to {last}"
            )
        journal.prepare_writing(last)
        self._last_commit = last
        self.notes = journal.notes
        if self._frames:
            self._committed = folding.state_of(self._frames[-1].meta)
            self._committed_arrays = journal.arrays(self._frames[-1])
        else:
            self._committed = found.state
            self._committed_arrays = folding.read_arrays(self._directory, found.arrays)

    def _load_as_reader(self, at_commit: int | None) -> None:
        """As _load, and hold the commit: the writer folds nothing newer while we stand at it."""
        assert self._directory is not None
        try:
            self._lock_fd = self._directory.open_regular(_LOCK, writable=False)
        except FileNotFoundError:
            try:
                self._lock_fd = self._directory.open_regular(_LOCK, writable=True, create=True)
            except OSError:
                self._lock_fd = -1  # read-only media: there is no writer to keep off
        for _ in range(100):
            try:
                self._load(at_commit)
            except (FileNotFoundError, CorruptStoreError):
                # A checkpoint may have replaced files under our eyes; damage stays damage.
                if self._journal is not None:
                    self._journal.close()
                if manifest.read(self._directory) == self._manifest:
                    raise
                continue
            if self._lock_fd < 0:
                return
            lock.lock_reader(self._lock_fd, self._last_commit)
            now = manifest.read(self._directory)
            if now.folding <= self._last_commit and now.folded == self._manifest.folded:
                return
            lock.unlock_reader(self._lock_fd, self._last_commit)
            assert self._journal is not None
            self._journal.close()
        raise StoreError(errno.EAGAIN, f"{str(self.path)!r} is checkpointed faster than it is read")

    def _remove_strays(self) -> None:
        """What a crash left behind and nothing refers to."""
        assert self._directory is not None and self._journal is not None
        self._journal.delete_strays()
        self._journal.delete(self._journal.older_than(self._manifest.folded))
        keep = self._manifest.arrays.file if self._manifest.arrays else None
        for name in self._directory.names():
            if name == manifest.NAME + ".tmp" or (manifest.is_arrays_name(name) and name != keep):
                files.CALLS.unlink(self._directory.fd, name)

    def add_table(self, name: str, entry: TableEntry, lr: float, cache: int | None) -> TableCore:
        """A new table.  It is there at once, whatever becomes of the next commit."""
        layout = entry.layout()
        file = None
        with self.using(write=True):
            self._finish_fold(wait=True)
            if self._directory is not None:
                with files.explained(f"cannot create table {name!r}"):
                    file = DataFile.create(self._directory, file_name(name), layout)
                    state = replace(
                        self._manifest.state,
                        tables={**self._manifest.state.tables, name: (0, lr)},
                    )
                    new = replace(
                        self._manifest,
                        tables={**self._manifest.tables, name: entry},
                        state=state,
                    )
                    manifest.write(self._directory, new)
                self._manifest = new
                if name not in self._committed.tables:
                    self._committed.tables[name] = (0, lr)
            rows = RowStore(layout, file, self._journal, self.path, cache, new=True)
            self.tables[name] = TableCore(entry, rows, 0, lr)
            return self.tables[name]

    def attach_tables(self, cache: int | Mapping[str, int | None] | None) -> None:
        """After `open`: one RowStore a table, and the journal's rows noted in it."""
        assert self._directory is not None and self._journal is not None
        self._cache = cache
        for name, entry in self._manifest.tables.items():
            layout = entry.layout()
            file = DataFile.open(self._directory, file_name(name), layout, self.mode == "r+")
            size = cache.get(name) if isinstance(cache, Mapping) else cache
            rows = RowStore(layout, file, self._journal, self.path, size, new=False)
            self.tables[name] = TableCore(entry, rows)
        for frame in self._frames:
            for name, section in frame.meta.tables.items():
                core = self.tables.get(name)
                if core is None or section.record_bytes != core.rows.layout.record_bytes:
                    raise CorruptStoreError(
                        errno.EIO, f"commit {frame.commit} names table {name!r} wrongly"
                    )
                core.rows.note_frame(frame, section, self._journal.indices(frame, section))
        self._restore_state()

    def _restore_state(self) -> None:
        for name, core in self.tables.items():
            core.step, core.lr = self._committed.tables.get(
                name, self._manifest.state.tables.get(name, (0, 0.0))
            )
        self.metadata = _copy(self._committed.metadata)
        self.arrays = {name: array.copy() for name, array in self._committed_arrays.items()}

    # ---- the guard ------------------------------------------------------------------------------

    @contextmanager
    def using(self, write: bool, rescue: bool = False) -> Iterator[None]:
        """Held during every public call.

        Raises StoreClosedError, StoreFailedError (unless `rescue`), ReadOnlyError, and the error of
        an earlier commit that was not waited for.
        """
        with self.lock:
            if self._closed is not None:
                raise StoreClosedError(self._closed)
            if not rescue:
                if self.failed is None and any(core.rows.busy for core in self.tables.values()):
                    self.failed = "it was interrupted while rows were moved"
                if self.failed is not None:
                    raise StoreFailedError(
                        f"the store is unusable: {self.failed}; call rollback() to return to "
                        f"commit {self._last_commit}, or close()"
                    )
                self._finish_flight(wait=False)
                self._finish_fold(wait=False)
            if write and self._read_only is not None:
                raise ReadOnlyError(errno.EROFS, f"the store cannot be changed: {self._read_only}")
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a change of rows: all of it happens, or the store is failed."""
        self.failed = "an update was interrupted"
        try:
            yield
        except BaseException as error:
            self.failed = f"an update was interrupted by {type(error).__name__}: {error}"
            raise
        self.failed = None

    @property
    def last_commit(self) -> int:
        """The newest commit that is surely on disk."""
        with self.lock:
            flight = self._flight
            if flight is not None and flight.pending.done and flight.pending.error is None:
                return flight.pending.frame.commit
            return self._last_commit

    # ---- commit ---------------------------------------------------------------------------------

    def commit(self, wait: bool) -> int:
        """Make everything since the last commit durable; returns the commit's number."""
        with self.using(write=True):
            if self._directory is None:
                self._last_commit += 1
                return self._last_commit
            journal = self._journal
            assert journal is not None
            self._finish_flight(wait=True)
            for core in self.tables.values():
                assert core.rows.file is not None
                core.rows.file.check()
            flight = self._launch(journal, wait)
            # Interrupted from here on, memory and flags may disagree: only rollback helps then.
            self.failed = "a commit was interrupted"
            for name, taken in flight.taken.items():
                self.tables[name].rows.mark_written(taken)
            self._flight = flight
            self.failed = None
            number = flight.pending.frame.commit
            if wait:
                self._finish_flight(wait=True)
            return number

    def _launch(self, journal: Journal, wait: bool) -> _Flight:
        taken = {name: core.rows.take() for name, core in self.tables.items()}
        state = CommitState(
            {name: (core.step, core.lr) for name, core in self.tables.items()},
            _copy(self.metadata),
        )
        arrays = {name: np.array(array, order="C") for name, array in self.arrays.items()}
        sizes = {
            name: (core.step, core.lr, taken[name].rows.size, core.rows.layout.record_bytes)
            for name, core in self.tables.items()
        }
        meta, encoded, frame_bytes = plan(sizes, arrays, state.metadata)

        def fill(writer: Any) -> None:
            for array in arrays.values():
                writer.put(array.reshape(-1).view(np.uint8) if array.size else b"")
                writer.pad(64)
            for name, rows in taken.items():
                self.tables[name].rows.fill(writer, rows)

        staging = max(_STAGING, process_budget().total // 16)
        pending = journal.append(meta, encoded, frame_bytes, fill, wait, staging)
        return _Flight(pending, taken, state, arrays)

    def _finish_flight(self, wait: bool) -> None:
        """Take over the outcome of a commit in flight; raises its error."""
        flight = self._flight
        if flight is None or not (wait or flight.pending.done):
            return
        journal = self._journal
        assert journal is not None
        flight.pending.wait()
        interrupted, self.failed = self.failed, "a commit was interrupted"
        try:
            journal.settle(flight.pending)
        except BaseException:
            for name, taken in flight.taken.items():
                self.tables[name].rows.settle(taken, None, None)
            self._flight = None
            self.failed = interrupted
            raise
        frame = flight.pending.frame
        for name, taken in flight.taken.items():
            self.tables[name].rows.settle(taken, frame, frame.meta.tables[name])
        self._frames.append(frame)
        self._last_commit = frame.commit
        self._committed = flight.state
        self._committed_arrays = flight.arrays
        self._flight = None
        self.failed = interrupted
        self._fold_in_background()

    def flight_state(self, number: int) -> str:
        """ "durable", "pending" or "failed" for a commit number that `commit` returned."""
        if number <= self.last_commit:
            return "durable"
        flight = self._flight
        if flight is not None and flight.pending.frame.commit == number:
            return "failed" if flight.pending.done else "pending"
        return "failed"

    def wait_for(self, number: int) -> None:
        """Block until that commit is durable; raises its error."""
        with self.lock:
            if self._flight is not None and self._flight.pending.frame.commit == number:
                self._finish_flight(wait=True)
            if number > self._last_commit:
                raise StoreError(errno.EIO, f"commit {number} was not written; see its error")

    def has_changes(self) -> bool:
        """Would a commit write anything new?"""
        with self.lock:
            if self._flight is not None:
                return True
            now = {name: (core.step, core.lr) for name, core in self.tables.items()}
            then = {name: self._committed.tables.get(name) for name in self.tables}
            if now != then or self.metadata != self._committed.metadata:
                return True
            if set(self.arrays) != set(self._committed_arrays):
                return True
            if any(not _same(self.arrays[n], self._committed_arrays[n]) for n in self.arrays):
                return True
            return any(core.rows.take().rows.size for core in self.tables.values())

    def rollback(self) -> None:
        """Return to the last commit."""
        with self.using(write=False, rescue=True):
            if self._directory is None:
                raise StoreError(
                    errno.ENOTSUP, "a store in memory (path=None) keeps no commit to return to"
                )
            try:
                self._finish_flight(wait=True)
            except Exception as error:  # the commit failed: that is what rollback is for
                log.warning("commit abandoned: %s", error)
            self.failed = "a rollback was interrupted"
            for core in self.tables.values():
                core.rows.rollback()
            self._restore_state()
            self.failed = None

    # ---- checkpoint -----------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Fold all commits into the data files, as far as readers allow."""
        with self.using(write=True, rescue=True):
            if self._directory is None:
                return
            self._finish_flight(wait=True)
            self._finish_fold(wait=True)
            fold = self._prepare_fold(self._last_commit)
            if fold is not None:
                fold.run()
                self._fold = fold
                self._finish_fold(wait=True)

    def _fold_in_background(self) -> None:
        """Start a fold when the journal has outgrown its budget; two commits stay behind."""
        journal = self._journal
        if self._fold is not None or journal is None or len(self._frames) < 4:
            return
        data = [core.rows.file for core in self.tables.values()]
        allocated = sum(files.allocated_bytes(file.fd) for file in data if file is not None)
        if journal.bytes <= max(_JOURNAL_BUDGET, allocated):
            return
        fold = self._prepare_fold(self._last_commit - 2)
        if fold is not None:
            fold.start()
            self._fold = fold

    def _prepare_fold(self, upto: int) -> folding.Fold | None:
        """Publish the intention, and make sure that no reader needs what the fold overwrites."""
        directory, journal = self._directory, self._journal
        assert directory is not None and journal is not None
        while upto > self._manifest.folded:
            reader = lock.oldest_reader(self._lock_fd, upto)
            if reader is not None:
                pids = lock.processes_holding(str(directory.path / _LOCK))
                log.warning(
                    "checkpoint up to commit %d only: a reader stands there (processes %s)",
                    reader,
                    [pid for pid in pids if pid != os.getpid()] or "of this process",
                )
                upto = reader
                continue
            if self._manifest.folding < upto:
                new = replace(self._manifest, folding=upto)
                manifest.write(directory, new)
                self._manifest = new
                continue  # ask again: a reader that did not see this yet holds its lock by now
            frames = [frame for frame in self._frames if frame.commit <= upto]
            journal.seal()
            arrays = journal.arrays(frames[-1])
            source = folding.Source.of(journal, frames)
            data = {n: core.rows.file for n, core in self.tables.items() if core.rows.file}
            return folding.Fold(directory, self._manifest, source, data, arrays)
        return None

    def _finish_fold(self, wait: bool) -> None:
        fold = self._fold
        if fold is None or not (wait or fold.done):
            return
        fold.wait()
        self._fold = None
        if isinstance(fold.error, folding.FoldSyncError):
            self._read_only = f"{fold.error}; the journal is kept, open the store again to fold it"
            raise StoreError(errno.EIO, self._read_only)
        if fold.error is not None:
            raise fold.error
        directory, journal = self._directory, self._journal
        assert directory is not None and journal is not None
        old_arrays, self._manifest = self._manifest.arrays, fold.new
        for name, rows in fold.rows.items():
            core = self.tables[name].rows
            assert core.file is not None
            core.file.pages.mark(core.file.offsets(rows), core.layout.record_bytes)
        gone = journal.older_than(fold.upto)
        for core_ in self.tables.values():
            core_.rows.drop_segments(gone)
        self._frames = [frame for frame in self._frames if frame.commit > fold.upto]
        journal.delete(gone)
        if old_arrays is not None and old_arrays != fold.new.arrays:
            files.CALLS.unlink(directory.fd, old_arrays.file)

    def snapshot(self, path: Path) -> None:
        """A copy of the last commit as a store of its own, folded, without a journal."""
        with self.using(write=False):
            if self._directory is None or self._journal is None:
                raise StoreError(errno.ENOTSUP, "a store in memory (path=None) has no files to copy")
            self._finish_flight(wait=True)
            self._finish_fold(wait=True)
            target = StoreCore.create(path, _copy(self._committed.metadata), overwrite=False)
            try:
                self._copy_into(target)
            except BaseException:
                target.destroy()
                raise
            target.close(checkpoint_first=False)

    def _copy_into(self, target: StoreCore) -> None:
        assert self._journal is not None and target._directory is not None
        source = folding.Source.of(self._journal, self._frames)
        for name, core in self.tables.items():
            assert core.rows.file is not None
            where = target._directory.describe(file_name(name))
            with files.explained(f"cannot write {where}"):
                file = DataFile.create(target._directory, file_name(name), core.rows.layout)
                try:
                    core.rows.file.copy_to(file)
                    folding.write_rows(source, name, file)
                    files.CALLS.fsync(file.fd)
                finally:
                    file.close()
        arrays = folding.write_arrays(
            target._directory, self._last_commit, self._committed_arrays
        )
        state = self._committed
        target._manifest = replace(
            target._manifest,
            tables=dict(self._manifest.tables),
            folded=self._last_commit,
            folding=self._last_commit,
            state=state,
            arrays=arrays,
        )
        manifest.write(target._directory, target._manifest)

    # ---- looking --------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Plain facts about the store, for people and for `--json`."""
        with self.using(write=False):
            facts: dict[str, Any] = {
                "path": None if self.path is None else str(self.path),
                "mode": self.mode,
                "last_commit": self._last_commit,
                "metadata": _copy(self.metadata),
                "arrays": {
                    name: {"dtype": str(array.dtype), "shape": list(array.shape)}
                    for name, array in self.arrays.items()
                },
                "notes": list(self.notes),
            }
            if self._journal is not None:
                facts |= {
                    "format_version": manifest.VERSION,
                    "uuid": self._manifest.uuid.hex(),
                    "folded_commit": self._manifest.folded,
                    "journal_bytes": self._journal.bytes,
                    "journal_segments": len(self._journal.segments),
                    "commits_in_journal": [frame.commit for frame in self._frames],
                    "readers": self._reader_pids(),
                }
            return facts

    def _reader_pids(self) -> list[int]:
        if self._directory is None:
            return []
        pids = lock.processes_holding(str(self._directory.path / _LOCK))
        return [pid for pid in pids if pid != os.getpid()]

    def journal_frames(self) -> list[Frame]:
        return list(self._frames)

    def rescan(self) -> list[Frame]:
        """Read and check every frame of the journal again, from disk."""
        assert self._directory is not None
        journal = Journal(self._directory, self._manifest.uuid, writable=False)
        try:
            frames = journal.scan(self._manifest.folded, self._last_commit)
            for frame in frames:
                for name, section in frame.meta.tables.items():
                    rows = journal.indices(frame, section)
                    limit = self._manifest.tables[name].num_embeddings
                    if rows.size and not (0 <= rows.min() and rows.max() < limit):
                        raise CorruptStoreError(
                            errno.EIO, f"commit {frame.commit} names rows outside table {name!r}"
                        )
        finally:
            journal.close()
        if frames and frames[-1].commit < self._last_commit:
            raise CorruptStoreError(
                errno.EIO, f"the journal ends at commit {frames[-1].commit}, not {self._last_commit}"
            )
        return frames

    def verify(self) -> dict[str, Any]:
        """Check everything on disk again; CorruptStoreError names what is wrong."""
        with self.using(write=False):
            if self._directory is None:
                return {"commits_in_journal": 0, "rows": {}}
            self._finish_flight(wait=True)
            self._finish_fold(wait=True)
            manifest.read(self._directory)
            frames = self.rescan()
            folding.read_arrays(self._directory, self._manifest.arrays)
            rows = {}
            for name, core in self.tables.items():
                file = DataFile.open(
                    self._directory, file_name(name), core.rows.layout, writable=False
                )
                try:
                    rows[name] = file.verify()
                finally:
                    file.close()
            return {"commits_in_journal": len(frames), "rows_in_data_files": rows}

    def refresh(self) -> int:
        """A reader moves on to the newest commit; returns its number."""
        with self.using(write=False):
            if self.mode != "r":
                raise ArgumentError('refresh: only a store opened with mode="r" has news to see')
            assert self._journal is not None
            old, was_at = self._journal, self._last_commit
            self._load_as_reader(None)
            if self._last_commit != was_at and self._lock_fd >= 0:
                lock.unlock_reader(self._lock_fd, was_at)
            for core in self.tables.values():
                core.rows.close()
            self.tables.clear()
            old.close()
            self.attach_tables(self._cache)
            return self._last_commit

    # ---- the end --------------------------------------------------------------------------------

    def close(self, checkpoint_first: bool = True) -> None:
        """Fold (unless told not to) and let go of everything.  Closing twice is allowed.

        What was not committed is gone.  An error of a commit in flight or of the fold is raised
        after everything is closed.
        """
        with self.lock:
            if self._closed is not None:
                return
            problem: BaseException | None = None
            try:
                self._finish_flight(wait=True)
                if checkpoint_first and self.mode == "r+" and self._read_only is None:
                    if self.path is not None and self.failed is None and self.has_changes():
                        log.warning(
                            "%s closed with changes after commit %d; they are gone",
                            self.path,
                            self._last_commit,
                        )
                    self.checkpoint()
                else:
                    self._finish_fold(wait=True)
            except BaseException as error:
                problem = error
            self._release()
            if problem is not None:
                raise problem

    def leave(self, success: bool) -> None:
        """The end of a `with` block: commit or roll back, then close."""
        if self._closed is not None:
            return
        try:
            if success and self.mode == "r+" and self.has_changes():
                self.commit(wait=True)
        finally:
            # What was not committed goes with the memory that holds it: that is the rollback.
            self.close(checkpoint_first=success)

    def _release(self) -> None:
        self._closed = f"the store {str(self.path)!r} is closed" if self.path else "closed"
        for core in self.tables.values():
            core.rows.close()
        if self._journal is not None:
            self._journal.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)  # the lock goes with its last descriptor
            self._lock_fd = -1
        if self._directory is not None:
            self._directory.close()

    def abandon(self) -> None:
        """Let go of everything after a failed open or create."""
        self._release()

    def destroy(self) -> None:
        """Remove a store that this process has just made."""
        assert self._directory is not None and self.path is not None
        _remove_store(self._directory, self._manifest)
        files.CALLS.unlink(self._directory.fd, _LOCK)
        self.abandon()
        self.path.rmdir()

    def disown(self) -> None:
        """In a forked child: close the descriptors without a word to the lock."""
        self._closed = (
            f"the store {str(self.path)!r} belongs to process {self._opened_by}, which forked this "
            "one; open it again here (mode='r'), or start processes with \"spawn\""
        )
        if self.path is None:
            self._closed = None  # memory is copied on write: the child has a table of its own
            return
        fds = [self._lock_fd, *([self._directory.fd] if self._directory else [])]
        fds += [core.rows.file.fd for core in self.tables.values() if core.rows.file is not None]
        if self._journal is not None:
            self._journal.forget()
        for fd in fds:
            try:
                if fd >= 0:
                    os.close(fd)
            except OSError:
                continue
        self._lock_fd = -1


def _refuse_platform() -> None:
    if sys.platform == "win32":
        raise StoreError(
            errno.ENOTSUP,
            "path: stores on disk are not supported on Windows yet; use path=None (in memory)",
        )


def _remove_store(directory: files.Directory, old: Manifest) -> None:
    """Remove the files that are ours, store.json last; anything else stays."""
    ours = {file_name(name) for name in old.tables} | {manifest.NAME + ".tmp"}
    for name in directory.names():
        if name in ours or segment_number(name) is not None or manifest.is_arrays_name(name):
            files.CALLS.unlink(directory.fd, name)
    files.CALLS.unlink(directory.fd, manifest.NAME)
    files.CALLS.sync_dir(directory.fd)


def _sync_parent(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        files.CALLS.sync_dir(fd)
    finally:
        os.close(fd)


def _copy(metadata: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of plain JSON data; ArgumentError when it is something else."""
    import json

    try:
        copied = json.loads(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"metadata: expected what JSON can hold (strings, numbers, lists, dicts), {error}"
        ) from None
    if not isinstance(copied, dict):
        raise ArgumentError(f"metadata: expected a dict, got {type(metadata).__name__}")
    return copied


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


_LIVE: weakref.WeakSet[StoreCore] = weakref.WeakSet()


def _after_fork() -> None:
    for core in list(_LIVE):
        if core._closed is None:
            core.lock = threading.RLock()  # another thread of the parent may have held it
            core.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

__all__ = ["NotAStoreError", "StoreCore", "TableCore"]
