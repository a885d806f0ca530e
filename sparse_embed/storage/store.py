"""A store: tables and arrays that commit together.  The protocol of DESIGN lives here.

open       store.json, then every valid frame of the journal; no row is read
commit     one frame, one fdatasync (flight.py, journal.py); rows stay in memory, now clean
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
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.device import DeviceMemory
from sparse_embed.errors import (
    ArgumentError,
    CorruptStoreError,
    DeviceError,
    ReadOnlyError,
    StoreClosedError,
    StoreError,
    StoreFailedError,
)
from sparse_embed.kernels._jit import guard_fork
from sparse_embed.storage import ahead, files, flight, fold, manifest
from sparse_embed.storage.checkpoint import Fold
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.journal import Journal
from sparse_embed.storage.manifest import (
    CommitState,
    Manifest,
    TableEntry,
    copy_metadata,
    file_name,
)
from sparse_embed.storage.rows import RowStore
from sparse_embed.storage.segments import Frame

log = logging.getLogger("sparse_embed")
Int64 = NDArray[np.int64]


@dataclass
class TableCore:
    """A table as storage sees it."""

    entry: TableEntry
    rows: RowStore
    step: int = 0
    lr: float = 0.0


class StoreCore:
    """An open store.  Made by opening.create_store, open_store and in_memory."""

    def __init__(self, path: Path | None, mode: str) -> None:
        self.path = path
        self.mode = mode
        self.lock = threading.RLock()
        self.tables: dict[str, TableCore] = {}
        self.arrays: dict[str, NDArray[Any]] = {}
        self.metadata: dict[str, Any] = {}
        self.failed: str | None = None
        self.notes: list[str] = []
        self.settled_commit = 0
        self.closed: str | None = None
        self.read_only: str | None = None if mode == "r+" else 'it was opened with mode="r"'
        self.committed = CommitState()
        self.committed_arrays: dict[str, NDArray[Any]] = {}
        self.frames: list[Frame] = []
        self.flight: flight.Flight | None = None
        self.window = ahead.Window()
        self.running_fold: Fold | None = None
        self.directory: files.Directory | None = None
        self.journal: Journal | None = None
        self.manifest = Manifest(secrets.token_bytes(16))
        self.lock_fd = -1
        self.opened_by = os.getpid()
        self.cache: int | Mapping[str, int | None] | None = None
        self.memory: DeviceMemory | None = None
        _LIVE.add(self)

    # ---- tables ---------------------------------------------------------------------------------

    def add_table(
        self,
        name: str,
        entry: TableEntry,
        lr: float,
        cache: int | None,
        memory: DeviceMemory | None = None,
    ) -> TableCore:
        """A new table.  It is there at once, whatever becomes of the next commit.

        `memory`: of the GPU that its resident rows lie on, of which `cache` then speaks.
        """
        layout = entry.layout()
        file = None
        with self.using(write=True):
            fold.finish_fold(self, wait=True)
            if self.directory is not None:
                state = replace(
                    self.manifest.state, tables={**self.manifest.state.tables, name: (0, lr)}
                )
                new = replace(
                    self.manifest, tables={**self.manifest.tables, name: entry}, state=state
                )
                with files.explained(f"cannot create table {name!r}"):
                    file = DataFile.create(self.directory, file_name(name), layout)
                    try:
                        manifest.write(self.directory, new)
                    except BaseException:
                        file.close()
                        # It may have got as far as the rename: a file that is named must stay.
                        if name not in manifest.read(self.directory).tables:
                            files.CALLS.unlink(self.directory.fd, file_name(name))
                        raise
                self.manifest = new
                if name not in self.committed.tables:
                    self.committed.tables[name] = (0, lr)
            rows = RowStore(layout, file, self.journal, self.path, cache, True, memory)
            self.tables[name] = TableCore(entry, rows, 0, lr)
            return self.tables[name]

    def attach_tables(
        self,
        cache: int | Mapping[str, int | None] | None,
        memory: DeviceMemory | None = None,
    ) -> None:
        """After `open`: one RowStore a table, and the journal's rows noted in it."""
        assert self.directory is not None and self.journal is not None
        self.cache, self.memory = cache, memory
        for name, entry in self.manifest.tables.items():
            layout = entry.layout()
            file = DataFile.open(self.directory, file_name(name), layout, self.mode == "r+")
            size = cache.get(name) if isinstance(cache, Mapping) else cache
            rows = RowStore(layout, file, self.journal, self.path, size, False, memory)
            self.tables[name] = TableCore(entry, rows)
        for frame in self.frames:
            for piece in frame.pieces:
                self._note(self.journal, piece)
        self._restore_state()

    def _note(self, journal: Journal, frame: Frame) -> None:
        for name, section in frame.meta.tables.items():
            core = self.tables.get(name)
            if core is None or section.record_bytes != core.rows.layout.record_bytes:
                raise CorruptStoreError(
                    errno.EIO, f"commit {frame.commit} names table {name!r} wrongly"
                )
            core.rows.note_frame(frame, section, journal.indices(frame, section))

    def _restore_state(self) -> None:
        for name, core in self.tables.items():
            core.step, core.lr = self.committed.tables.get(
                name, self.manifest.state.tables.get(name, (0, 0.0))
            )
        self.metadata = copy_metadata(self.committed.metadata)
        self.arrays = {name: array.copy() for name, array in self.committed_arrays.items()}

    # ---- the guard ------------------------------------------------------------------------------

    @contextmanager
    def using(self, write: bool, rescue: bool = False) -> Iterator[None]:
        """Held during every public call.

        Raises StoreClosedError, StoreFailedError (unless `rescue`), ReadOnlyError, and the error of
        an earlier commit that was not waited for.
        """
        with self.lock:
            if self.closed is not None:
                raise StoreClosedError(self.closed)
            guard_fork()
            if not rescue:
                if self.failed is None and any(core.rows.busy for core in self.tables.values()):
                    self.failed = "it was interrupted while rows were moved"
                if self.failed is not None:
                    raise StoreFailedError(
                        f"the store is unusable: {self.failed}; call rollback() to return to "
                        f"commit {self.settled_commit}, or close()"
                    )
                self.finish_flight(wait=False)
                fold.finish_fold(self, wait=False)
                ahead.look(self)
                for core in self.tables.values():
                    core.rows.prepare()
            if write and self.read_only is not None:
                raise ReadOnlyError(errno.EROFS, f"the store cannot be changed: {self.read_only}")
            try:
                yield
            except DeviceError as error:
                self._lose_device(error)
                raise

    def _lose_device(self, error: DeviceError) -> None:
        """The memory that held the rows is gone: nothing but the last commit is left."""
        with suppress(Exception):
            self.finish_flight(wait=True)
        with suppress(Exception):
            self.release()
        self.closed = (
            f"the store was closed at commit {self.settled_commit}, because a GPU failed ({error});"
            " start a new process and open it again"
        )

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a change of rows: all of it happens, or the store is failed."""
        ahead.before_step(self)
        self.failed = "an update was interrupted"
        try:
            yield
        except BaseException as error:
            self.failed = f"an update was interrupted by {type(error).__name__}: {error}"
            self.make_room(error)
            raise
        self.failed = None

    def make_room(self, error: BaseException) -> None:
        """On a full disk nothing of ours may only lie about."""
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and self.journal is not None:
            with suppress(OSError):
                self.journal.remove_spares()

    @property
    def last_commit(self) -> int:
        """The newest commit that is surely on disk."""
        with self.lock:
            flight = self.flight
            if flight is not None and flight.pending.done and flight.pending.error is None:
                return flight.pending.frame.commit
            return self.settled_commit

    # ---- commit ---------------------------------------------------------------------------------

    def commit(self, wait: bool) -> int:
        """Make everything since the last commit durable; returns the commit's number."""
        with self.using(write=True):
            return flight.commit(self, wait)

    def finish_flight(self, wait: bool) -> None:
        """Take over the outcome of a commit in flight; raises its error."""
        flight.finish(self, wait)

    def flight_state(self, number: int) -> str:
        """ "durable", "pending" or "failed" for a commit number that `commit` returned."""
        if number <= self.settled_commit:
            return "durable"
        flight = self.flight
        if flight is not None and flight.pending.frame.commit == number:
            return "failed" if flight.pending.done else "pending"
        return "failed"

    def wait_for(self, number: int) -> None:
        """Block until that commit is durable; raises its error."""
        with self.lock:
            if self.flight is not None and self.flight.pending.frame.commit == number:
                self.finish_flight(wait=True)
            if number > self.settled_commit and self.closed is not None:
                raise StoreClosedError(self.closed)
            if number > self.settled_commit:
                raise StoreError(errno.EIO, f"commit {number} was not written; see its error")

    def has_changes(self) -> bool:
        """Would a commit write anything new?"""
        with self.lock:
            if self.failed is not None or any(core.rows.busy for core in self.tables.values()):
                return True  # and what was interrupted must not be looked at
            if self.flight is not None or self.window.parts:
                return True
            now = {name: (core.step, core.lr) for name, core in self.tables.items()}
            then = {name: self.committed.tables.get(name) for name in self.tables}
            if now != then or self.metadata != self.committed.metadata:
                return True
            if set(self.arrays) != set(self.committed_arrays):
                return True
            if any(not _same(self.arrays[n], self.committed_arrays[n]) for n in self.arrays):
                return True
            return any(core.rows.take().rows.size for core in self.tables.values())

    def rollback(self) -> None:
        """Return to the last commit."""
        with self.using(write=False, rescue=True):
            if self.directory is None:
                raise StoreError(
                    errno.ENOTSUP, "a store in memory (path=None) keeps no commit to return to"
                )
            try:
                self.finish_flight(wait=True)
            except Exception as error:  # the commit failed: that is what rollback is for
                log.warning("commit abandoned: %s", error)
            if self.journal is not None:
                self.journal.abandon_unowned()
            self.failed = "a rollback was interrupted"
            ahead.begin_again(self)
            for core in self.tables.values():
                core.rows.rollback()
            self._restore_state()
            self.failed = None

    # ---- the end --------------------------------------------------------------------------------

    def close(self, checkpoint_first: bool = True) -> None:
        """Fold (unless told not to) and let go of everything.  Closing twice is allowed.

        What was not committed is gone.  An error of a commit in flight or of the fold is raised
        after everything is closed.
        """
        with self.lock:
            if self.closed is not None:
                return
            problem: BaseException | None = None
            try:
                self.finish_flight(wait=True)
                ahead.give_up(self)
                if checkpoint_first and self.mode == "r+" and self.read_only is None:
                    if self.path is not None and self.failed is None and self.has_changes():
                        log.warning(
                            "%s closed with changes after commit %d; they are gone",
                            self.path,
                            self.settled_commit,
                        )
                    fold.fold_now(self)
                else:
                    fold.finish_fold(self, wait=True)
                if self.journal is not None:
                    self.journal.remove_spares()
            except BaseException as error:
                problem = error
            self.release()
            if problem is not None:
                raise problem

    def leave(self, success: bool) -> None:
        """The end of a `with` block: commit or roll back, then close."""
        if self.closed is not None:
            return
        try:
            if success and self.mode == "r+" and self.has_changes():
                self._commit_last()
        finally:
            # What was not committed goes with the memory that holds it: that is the rollback.
            self.close(checkpoint_first=success)

    def _commit_last(self) -> None:
        """Commit; metadata that cannot be written is raised, but takes no rows with it."""
        try:
            self.commit(wait=True)
        except ArgumentError:
            self.metadata = copy_metadata(self.committed.metadata)
            self.commit(wait=True)
            raise

    def release(self) -> None:
        """Let go of every file and all memory."""
        self.closed = f"the store {str(self.path)!r} is closed" if self.path else "closed"
        if self.running_fold is not None:
            self.running_fold.wait()  # its thread writes to the descriptors that go now
        for core in self.tables.values():
            core.rows.close()
        if self.journal is not None:
            self.journal.close()
        fd, self.lock_fd = self.lock_fd, -1
        if fd >= 0:
            os.close(fd)  # the lock goes with its last descriptor
        if self.directory is not None:
            self.directory.close()

    def adopt(self, fresh: StoreCore) -> None:
        """Become what `fresh` is; it is not used again."""
        keep = self.lock
        self.__dict__.update(fresh.__dict__)
        self.lock = keep
        fresh.closed = "adopted"
        _LIVE.discard(fresh)

    def __del__(self) -> None:
        """A store that nobody holds any more lets go of its files and its lock, as close() does
        without a checkpoint."""
        if getattr(self, "closed", "never opened") is None:
            try:  # not `suppress`: at the end of the interpreter this module's names are gone
                self.release()
            except Exception:
                return

    def disown(self) -> None:
        """In a forked child: close the descriptors without a word to the lock."""
        self.closed = (
            f"the store {str(self.path)!r} belongs to process {self.opened_by}, which forked this "
            "one; open it again here (mode='r'), or start processes with \"spawn\""
        )
        if self.path is None:
            self.closed = None  # memory is copied on write: the child has a table of its own
            return
        self.flight = self.running_fold = None  # their threads live in the parent
        self.window = ahead.Window()
        fds = [self.lock_fd, *([self.directory.fd] if self.directory else [])]
        fds += [core.rows.file.fd for core in self.tables.values() if core.rows.file is not None]
        if self.journal is not None:
            self.journal.forget()
        for fd in fds:
            try:
                if fd >= 0:
                    os.close(fd)
            except OSError:
                continue
        self.lock_fd = -1


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


_LIVE: weakref.WeakSet[StoreCore] = weakref.WeakSet()


def _after_fork() -> None:
    for core in list(_LIVE):
        if core.closed is None:
            core.lock = threading.RLock()  # another thread of the parent may have held it
            core.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
