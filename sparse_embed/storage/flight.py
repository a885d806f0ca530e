"""A commit: one frame, one sync, and what the rows learn of it.

launch   the parts written ahead are whole, or given up; all that changed since then goes into a
         frame, which is written here (wait) or by a thread
marked   changes from now on belong to the next commit
finish   the frame is durable: the store is at this commit; or it failed: its rows are changed again
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.storage import ahead, fold
from sparse_embed.storage.frame import plan
from sparse_embed.storage.journal import Journal, PendingCommit
from sparse_embed.storage.manifest import CommitState, copy_metadata
from sparse_embed.storage.rows import TakenRows
from sparse_embed.storage.segments import Frame

if TYPE_CHECKING:  # the store calls this module; only its type is needed here
    from sparse_embed.storage.store import StoreCore

Int64 = NDArray[np.int64]


@dataclass
class Flight:
    """A commit between `commit(wait=False)` and its end."""

    pending: PendingCommit
    ahead: tuple[ahead.Part, ...]
    taken: dict[str, TakenRows]
    state: CommitState
    arrays: dict[str, NDArray[Any]]

    def notes(self) -> Iterator[tuple[Frame, str, Int64]]:
        """(piece of the frame, table, rows that it holds), in the order in which they count."""
        for part in self.ahead:
            yield from ((part.pending.frame, name, its.rows) for name, its in part.taken.items())
        yield from ((self.pending.frame, name, its.rows) for name, its in self.taken.items())


def commit(core: StoreCore, wait: bool) -> int:
    """Make everything since the last commit durable; returns the commit's number."""
    if core.directory is None:
        copy_metadata(core.metadata)
        core.settled_commit += 1
        return core.settled_commit
    journal = core.journal
    assert journal is not None
    finish(core, wait=True)
    for table in core.tables.values():
        assert table.rows.file is not None
        table.rows.file.check()
    try:
        flight = _launch(core, journal, wait)
    except OSError as error:
        if error.errno != errno.ENOSPC or core.running_fold is None:
            raise
        fold.finish_fold(core, wait=True)  # it gives the room of what it folds back
        journal.remove_spares()
        flight = _launch(core, journal, wait)
    # Interrupted from here on, memory and flags may disagree: only rollback helps then.
    core.failed = "a commit was interrupted"
    for name, taken in flight.taken.items():
        core.tables[name].rows.mark_written(taken)
    core.flight = flight
    core.window = ahead.next_window(core, flight.pending, wait)
    core.failed = None
    number = flight.pending.frame.commit
    if wait:
        finish(core, wait=True)
    return number


def _launch(core: StoreCore, journal: Journal, wait: bool) -> Flight:
    written = ahead.join(core)
    taken = {name: table.rows.take() for name, table in core.tables.items()}
    state = CommitState(
        {name: (table.step, table.lr) for name, table in core.tables.items()},
        copy_metadata(core.metadata),
    )
    arrays = {name: np.array(array, order="C") for name, array in core.arrays.items()}
    sizes = {
        name: (table.step, table.lr, taken[name].rows.size, table.rows.layout.record_bytes)
        for name, table in core.tables.items()
    }
    meta, encoded, frame_bytes = plan(sizes, arrays, state.metadata)

    def fill(writer: Any) -> None:
        for array in arrays.values():
            writer.put(array.reshape(-1).view(np.uint8) if array.size else b"")
            writer.pad(64)
        for name, rows in taken.items():
            core.tables[name].rows.fill(writer, rows)

    pending = journal.append(meta, encoded, frame_bytes, fill, wait, ahead.staging_limit())
    return Flight(pending, written, taken, state, arrays)


def finish(core: StoreCore, wait: bool) -> None:
    """Take over the outcome of a commit in flight; raises its error."""
    flight = core.flight
    if flight is None or not (wait or flight.pending.done):
        return
    journal = core.journal
    assert journal is not None
    flight.pending.wait()
    # Interrupted from here on, it stays failed; rollback then does all of this once more.
    interrupted, core.failed = core.failed, "a commit was interrupted"
    error = flight.pending.error
    if error is not None:
        journal.abandon(flight.pending)
        for name in flight.taken:
            core.tables[name].rows.settle_failed()
        core.flight = None
        core.failed = interrupted
        raise error
    frame = flight.pending.frame
    journal.settle(flight.pending)
    for name in flight.taken:
        core.tables[name].rows.settle()
    for piece, name, rows in flight.notes():
        core.tables[name].rows.note_frame(piece, piece.meta.tables[name], rows)
    if frame not in core.frames[-1:]:
        core.frames.append(frame)
    core.settled_commit = frame.commit
    core.committed = flight.state
    core.committed_arrays = flight.arrays
    core.flight = None
    core.failed = interrupted
    fold.fold_in_background(core)
