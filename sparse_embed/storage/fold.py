"""When to fold the journal, how far, and what to do when a fold is done."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from sparse_embed.errors import StoreError
from sparse_embed.storage import ahead, checkpoint, files, lock, manifest

if TYPE_CHECKING:  # the store calls this module; only its type is needed here
    from sparse_embed.storage.store import StoreCore

log = logging.getLogger("sparse_embed")
_JOURNAL_BUDGET = 256 << 20  # the journal may at least be this large before it is folded
_PER_DATA = 2  # and so many times what the data files take: a fold reads and rewrites all of that
_SPARSE = 2 << 30  # and so large while they are mostly holes: a row by itself costs them a page
_PER_ROOM = 0.25  # but no more than this part of what the disk has left, the journal included
_HURRY = 1.5  # at so many budgets a fold no longer gives way to commits
_LIMIT = 2.0  # and at so many they wait for it, where the journal is a danger to the disk's room


def fold_now(core: StoreCore) -> None:
    """Fold all commits into the data files, as far as readers allow."""
    with core.using(write=True, rescue=True):
        if core.directory is None:
            return
        core.finish_flight(wait=True)
        ahead.give_up(core)
        finish_fold(core, wait=True)
        fold = _prepare_fold(core, core.settled_commit)
        if fold is not None:
            core.running_fold = fold  # first: an interrupt must not leave it without an owner
            fold.run()
            finish_fold(core, wait=True)


def fold_in_background(core: StoreCore) -> None:
    """Start a fold when the journal has outgrown its budget; two commits stay behind."""
    journal = core.journal
    if journal is None or len(core.frames) < 3:
        return
    budget = _budget(core)
    limit = max(_LIMIT * budget, _share_of_room(core))
    if len(core.frames) < 4 and journal.used <= limit / 2:
        return  # one commit by itself is folded only where the next ones would have to wait for it
    if core.running_fold is not None and journal.used > limit:
        finish_fold(core, wait=True)
    if core.running_fold is not None:
        if journal.used > _HURRY * budget:
            core.running_fold.hurry()
        return
    if journal.used <= budget:
        return
    try:
        fold = _prepare_fold(core, core.settled_commit - 2, checkpoint.Courtesy(journal))
    except OSError as error:  # the commit that brought us here is safe; try again after the next
        log.warning("cannot begin a checkpoint in the background: %s", error)
        return
    if fold is not None:
        core.running_fold = fold
        fold.start()


def _budget(core: StoreCore) -> int:
    """How many bytes the journal may have before it is folded."""
    data = [table.rows.file for table in core.tables.values() if table.rows.file is not None]
    allocated = sum(files.allocated_bytes(file.fd) for file in data)
    apparent = sum(file.layout.file_bytes for file in data)
    wanted = max(_PER_DATA * allocated, min(_SPARSE, _PER_DATA * apparent))
    return max(_JOURNAL_BUDGET, min(wanted, _share_of_room(core)))


def _share_of_room(core: StoreCore) -> int:
    """The part of the disk that the journal may take, of what others have left."""
    assert core.directory is not None and core.journal is not None
    disk = os.fstatvfs(core.directory.fd)
    return int(_PER_ROOM * (disk.f_bavail * disk.f_frsize + core.journal.bytes))


def _prepare_fold(
    core: StoreCore, upto: int, courtesy: checkpoint.Courtesy | None = None
) -> checkpoint.Fold | None:
    """Publish the intention, and make sure that no reader needs what the fold overwrites."""
    directory, journal = core.directory, core.journal
    assert directory is not None and journal is not None
    while upto > core.manifest.folded:
        reader = lock.oldest_reader(core.lock_fd, upto)
        if reader is not None:
            pids = lock.processes_holding(str(directory.path / lock.NAME))
            log.warning(
                "checkpoint up to commit %d only: a reader stands there (processes %s)",
                reader,
                [pid for pid in pids if pid != os.getpid()] or "of this process",
            )
            upto = reader
            continue
        if core.manifest.folding < upto:
            new = replace(core.manifest, folding=upto)
            try:
                manifest.write(directory, new)
            except files.SyncError as error:
                raise _give_up(core, error) from error
            core.manifest = new
            continue  # ask again: a reader that did not see this yet holds its lock by now
        frames = [frame for frame in core.frames if frame.commit <= upto]
        journal.seal()
        arrays = journal.arrays(frames[-1])
        source = replace(checkpoint.Source.of(journal, frames), courtesy=courtesy)
        data = {n: t.rows.file for n, t in core.tables.items() if t.rows.file is not None}
        return checkpoint.Fold(directory, core.manifest, source, data, arrays)
    return None


def _give_up(core: StoreCore, error: BaseException) -> StoreError:
    """After a failed sync nobody knows what is on disk, and asking again may bring a false yes."""
    core.read_only = f"{error}; the journal is kept, open the store again to fold it"
    return StoreError(errno.EIO, core.read_only)


def finish_fold(core: StoreCore, wait: bool) -> None:
    """Take over the outcome of a running fold.

    A failed one changed nothing that counts: the journal still has every commit.  It is raised to
    whoever asked for the checkpoint, and logged when nobody did.
    """
    fold = core.running_fold
    if fold is None or not (wait or fold.done):
        return
    fold.wait()
    if not fold.finished:
        core.running_fold = None
        if isinstance(fold.error, files.SyncError):
            raise _give_up(core, fold.error)
        if fold.error is not None:
            core.make_room(fold.error)
        if fold.error is not None and not fold.in_thread:
            raise fold.error
        log.warning("a checkpoint in the background failed, the journal is kept: %s", fold.error)
        return
    # An interrupt in what follows is no harm: it is all done again, and nothing twice matters.
    directory, journal = core.directory, core.journal
    assert directory is not None and journal is not None
    old_arrays, core.manifest = core.manifest.arrays, fold.new
    for name, rows in fold.rows.items():
        file = core.tables[name].rows.file
        assert file is not None
        file.pages.mark(file.offsets(rows), file.layout.record_bytes)
    gone = journal.older_than(fold.upto)
    for table in core.tables.values():
        table.rows.drop_segments(gone)
    core.frames = [frame for frame in core.frames if frame.commit > fold.upto]
    try:
        journal.delete(gone, keep=_budget(core))
        if old_arrays is not None and old_arrays != fold.new.arrays:
            files.CALLS.unlink(directory.fd, old_arrays.file)
    except OSError as error:
        log.warning("cannot remove what a checkpoint made superfluous: %s", error)
    core.running_fold = None
