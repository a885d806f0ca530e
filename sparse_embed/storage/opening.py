"""Making a store, finding one, and reading what it says of itself.  No rows are read here."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from sparse_embed.errors import (
    ArgumentError,
    CorruptStoreError,
    StoreError,
)
from sparse_embed.kernels._jit import guard_fork
from sparse_embed.storage import checkpoint, files, lock, manifest
from sparse_embed.storage.frame import segment_number
from sparse_embed.storage.journal import Journal
from sparse_embed.storage.manifest import CommitState, Manifest, copy_metadata, file_name
from sparse_embed.storage.spares import is_spare_name
from sparse_embed.storage.store import StoreCore


def in_memory(metadata: dict[str, Any]) -> StoreCore:
    """No files: commits number states but keep nothing, and there is no rollback."""
    core = StoreCore(None, "r+")
    core.metadata = metadata
    return core


def create_store(path: Path, metadata: dict[str, Any], overwrite: bool) -> StoreCore:
    """A new, empty store in a new or empty directory.

    Raises StoreError (EEXIST) when something is there; with overwrite=True a valid store is
    removed first, and nothing else ever is.
    """
    _refuse_platform()
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    with files.explained(f"cannot create a store at {str(path)!r}"):
        path.mkdir(parents=True, exist_ok=True)
    core = StoreCore(path, "r+")
    core.directory = files.Directory(path)
    claimed = False
    try:
        with files.explained(f"cannot create a store at {str(path)!r}"):
            for folder in absent:
                _sync_folder(folder.parent)
            _claim_directory(core, overwrite)
            claimed = True
            core.manifest = Manifest(secrets.token_bytes(16), state=CommitState({}, dict(metadata)))
            manifest.write(core.directory, core.manifest)
        core.metadata = metadata
        core.committed = CommitState({}, copy_metadata(metadata))
        core.journal = Journal(core.directory, core.manifest.uuid, writable=True)
        core.journal.may_reuse = partial(lock.no_readers, core.lock_fd)
    except BaseException:
        if claimed:  # it may have got as far as the rename
            with contextlib.suppress(OSError):
                files.CALLS.unlink(core.directory.fd, manifest.NAME)
        core.release()
        raise
    return core


def _claim_directory(core: StoreCore, overwrite: bool) -> None:
    assert core.directory is not None
    ours = (lock.NAME, manifest.NAME + ".tmp")  # all that a create cut short leaves behind
    names = [name for name in core.directory.names() if name not in ours]
    if manifest.NAME in names:
        if not overwrite:
            raise StoreError(
                errno.EEXIST,
                f"path: there is already a store at {str(core.path)!r}; open it, or pass "
                "overwrite=True to remove it",
            )
        old = manifest.read(core.directory)
        _take_writer_lock(core)
        _remove_store(core.directory, old.tables)
        names = [name for name in core.directory.names() if name not in ours]
    if names:
        raise StoreError(
            errno.ENOTEMPTY,
            f"path: {str(core.path)!r} is not empty (it holds {names[0]!r}) and is not a store",
        )
    if core.lock_fd < 0:
        _take_writer_lock(core)


def _take_writer_lock(core: StoreCore) -> None:
    assert core.directory is not None
    fd = core.directory.open_regular(lock.NAME, writable=True, create=True)
    try:
        lock.lock_writer(fd, repr(str(core.path)))
    except BaseException:
        os.close(fd)
        raise
    core.lock_fd = fd


def open_store(path: Path, mode: str, at_commit: int | None) -> StoreCore:
    """Open a store for writing ("r+") or reading ("r"), at its last commit or an earlier one."""
    _refuse_platform()
    directory = files.Directory(path)
    core = StoreCore(path, mode)
    core.directory = directory
    try:
        with files.explained(f"cannot open the store at {str(path)!r}"):
            manifest.read(directory)  # is it a store at all, before a lock file is made
            if mode == "r+":
                _take_writer_lock(core)
                guard_fork()  # the kernels take the journal's digests
                _load(core, at_commit)
                assert core.journal is not None
                core.journal.make_durable()
                core.journal.may_reuse = partial(lock.no_readers, core.lock_fd)
                _remove_strays(core)
            else:
                guard_fork()
                _load_as_reader(core, at_commit)
    except BaseException:
        core.release()
        raise
    return core


def _load(core: StoreCore, at_commit: int | None) -> None:
    """Read store.json and the journal.  No rows."""
    assert core.directory is not None
    core.manifest = found = manifest.read(core.directory)
    if at_commit is not None and at_commit < found.folding:
        raise ArgumentError(
            f"at_commit: commit {at_commit} is gone; the oldest there is is {found.folding}"
        )
    core.journal = journal = Journal(core.directory, found.uuid, core.mode == "r+")
    core.frames = journal.scan(found.folded, at_commit)
    last = core.frames[-1].commit if core.frames else found.folded
    if last < found.folding:
        raise CorruptStoreError(
            errno.EIO,
            f"the journal in {str(core.path)!r} ends at commit {last}, but commit "
            f"{found.folding} was being folded: a segment was lost",
        )
    if at_commit is not None and last != at_commit:
        raise ArgumentError(
            f"at_commit: commit {at_commit} is not in the store; it has {found.folding} to {last}"
        )
    journal.prepare_writing(last)
    core.settled_commit = last
    core.notes = journal.notes
    if core.frames:
        core.committed = checkpoint.state_of(core.frames[-1].meta)
        core.committed_arrays = journal.arrays(core.frames[-1])
    else:
        core.committed = found.state
        core.committed_arrays = checkpoint.read_arrays(core.directory, found.arrays)


def _load_as_reader(core: StoreCore, at_commit: int | None) -> None:
    """As _load, and hold the commit: the writer folds nothing newer while we stand at it."""
    assert core.directory is not None
    try:
        core.lock_fd = core.directory.open_regular(lock.NAME, writable=False)
    except FileNotFoundError:
        try:
            core.lock_fd = core.directory.open_regular(lock.NAME, writable=True, create=True)
        except OSError:
            core.lock_fd = -1  # read-only media: there is no writer to keep off
    for _ in range(100):
        names = _segment_names(core.directory)
        try:
            _load(core, at_commit)
        except (FileNotFoundError, CorruptStoreError) as error:
            # A checkpoint may have replaced files under our eyes, removed a segment between the
            # list of names and its opening, or reused its file; damage stays damage.
            if core.journal is not None:
                core.journal.close()
            same = manifest.read(core.directory) == core.manifest
            same = same and _segment_names(core.directory) == names
            if same and isinstance(error, CorruptStoreError):
                raise
            continue
        if core.lock_fd < 0:
            return
        lock.lock_reader(core.lock_fd, core.settled_commit)
        now = manifest.read(core.directory)
        if now.folding <= core.settled_commit and now.folded == core.manifest.folded:
            return
        lock.unlock_reader(core.lock_fd, core.settled_commit)
        assert core.journal is not None
        core.journal.close()
    raise StoreError(errno.EAGAIN, f"{str(core.path)!r} is checkpointed faster than it is read")


def _segment_names(directory: files.Directory) -> list[str]:
    return [name for name in directory.names() if segment_number(name) is not None]


def _remove_strays(core: StoreCore) -> None:
    """What a crash left behind and nothing refers to."""
    assert core.directory is not None and core.journal is not None
    core.journal.delete_strays()
    core.journal.delete(core.journal.older_than(core.manifest.folded))
    keep = core.manifest.arrays.file if core.manifest.arrays else None
    for name in core.directory.names():
        if name != keep and (manifest.is_stray_name(name) or is_spare_name(name)):
            files.CALLS.unlink(core.directory.fd, name)


def refresh(core: StoreCore) -> int:
    """A reader moves on to the newest commit; returns its number."""
    with core.using(write=False):
        if core.mode != "r" or core.path is None:
            raise ArgumentError('refresh: only a store opened with mode="r" has news to see')
        fresh = open_store(core.path, "r", None)
        if fresh.manifest.uuid != core.manifest.uuid:
            fresh.release()
            raise StoreError(
                errno.ESTALE,
                f"another store has taken the place of {str(core.path)!r}; open it again",
            )
        core.release()  # first, so that the new tables find the budget that the old ones leave
        try:
            fresh.attach_tables(core.cache, core.memory)
        except BaseException:
            fresh.release()
            raise
        core.adopt(fresh)
        return core.settled_commit


def destroy(core: StoreCore, tables: Iterable[str] = ()) -> None:
    """Remove a store that this process has just made, and data files that it came to make."""
    assert core.directory is not None and core.path is not None
    _remove_store(core.directory, {*manifest.read(core.directory).tables, *tables})
    files.CALLS.unlink(core.directory.fd, lock.NAME)
    core.release()
    with contextlib.suppress(OSError):
        core.path.rmdir()


def _refuse_platform() -> None:
    if sys.platform == "win32":
        raise StoreError(
            errno.ENOTSUP,
            "path: stores on disk are not supported on Windows yet; use path=None (in memory)",
        )


def _remove_store(directory: files.Directory, tables: Iterable[str]) -> None:
    """Remove the files that are ours, store.json last; anything else stays."""
    ours = {file_name(name) for name in tables}
    for name in directory.names():
        journal = segment_number(name) is not None or is_spare_name(name)
        if name in ours or journal or manifest.is_stray_name(name):
            files.CALLS.unlink(directory.fd, name)
    directory.sync()
    files.CALLS.unlink(directory.fd, manifest.NAME)
    directory.sync()


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        files.sync(files.CALLS.sync_dir, fd, repr(str(path)))
    finally:
        os.close(fd)
