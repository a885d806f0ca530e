"""Looking at a store, checking it, copying it: nothing here changes it."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparse_embed.errors import CorruptStoreError
from sparse_embed.storage import checkpoint, files, lock, manifest
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.fold import finish_fold
from sparse_embed.storage.journal import Frame, Journal
from sparse_embed.storage.manifest import file_name
from sparse_embed.storage.opening import create_store, destroy
from sparse_embed.storage.store import StoreCore, copy_metadata

_ROWS = 1 << 10  # copied at a time; every table can hold that many in memory


def info(core: StoreCore) -> dict[str, Any]:
    """Plain facts about the store, for people and for `--json`."""
    with core.using(write=False):
        facts: dict[str, Any] = {
            "path": None if core.path is None else str(core.path),
            "mode": core.mode,
            "last_commit": core.settled_commit,
            "metadata": copy_metadata(core.metadata),
            "arrays": {
                name: {"dtype": str(array.dtype), "shape": list(array.shape)}
                for name, array in core.arrays.items()
            },
            "notes": list(core.notes),
        }
        if core.journal is not None:
            facts |= {
                "format_version": manifest.VERSION,
                "uuid": core.manifest.uuid.hex(),
                "folded_commit": core.manifest.folded,
                "journal_bytes": core.journal.bytes,
                "journal_segments": len(core.journal.segments),
                "commits_in_journal": [frame.commit for frame in core.frames],
                "readers": _reader_pids(core),
            }
        return facts


def _reader_pids(core: StoreCore) -> list[int]:
    if core.directory is None:
        return []
    pids = lock.processes_holding(str(core.directory.path / lock.NAME))
    return [pid for pid in pids if pid != os.getpid()]


def verify(core: StoreCore) -> dict[str, Any]:
    """Check everything on disk again; CorruptStoreError names what is wrong."""
    with core.using(write=False):
        if core.directory is None:
            return {"commits_in_journal": 0, "rows": {}}
        core.finish_flight(wait=True)
        finish_fold(core, wait=True)
        now = manifest.read(core.directory)  # for a reader it may be newer than at open
        frames = _rescan(core, now)
        checkpoint.read_arrays(core.directory, now.arrays)
        rows = {}
        for name, table in core.tables.items():
            file = DataFile.open(core.directory, file_name(name), table.rows.layout, writable=False)
            try:
                rows[name] = file.verify()
            finally:
                file.close()
        return {"commits_in_journal": len(frames), "rows_in_data_files": rows}


def _rescan(core: StoreCore, now: manifest.Manifest) -> list[Frame]:
    """Read and check every frame of the journal again, from disk."""
    assert core.directory is not None
    journal = Journal(core.directory, core.manifest.uuid, writable=False)
    try:
        frames = journal.scan(now.folded, core.settled_commit)
        for frame in frames:
            for name, section in frame.meta.tables.items():
                rows = journal.indices(frame, section)
                limit = core.manifest.tables[name].num_embeddings
                if rows.size and not (rows.min() >= 0 and rows.max() < limit):
                    raise CorruptStoreError(
                        errno.EIO, f"commit {frame.commit} names rows outside table {name!r}"
                    )
    finally:
        journal.close()
    last = frames[-1].commit if frames else now.folded
    if last < core.settled_commit:
        raise CorruptStoreError(
            errno.EIO,
            f"the journal in {str(core.path)!r} ends at commit {last}, not {core.settled_commit}: "
            + ("; ".join(journal.notes) or "its end is gone"),
        )
    return frames


def snapshot(core: StoreCore, path: Path) -> None:
    """A copy of the last commit as a store of its own, folded, without a journal.

    Of a store in memory, which keeps no commits, the present state, as commit 1.
    """
    with core.using(write=False):
        core.finish_flight(wait=True)
        finish_fold(core, wait=True)
        on_disk = core.directory is not None
        facts = core.committed.metadata if on_disk else core.metadata
        target = create_store(path, copy_metadata(facts), overwrite=False)
        try:
            if on_disk:
                _copy_files(core, target)
            else:
                _copy_memory(core, target)
        except BaseException:
            destroy(target, core.manifest.tables)
            raise
        target.close(checkpoint_first=not on_disk)


def _copy_memory(core: StoreCore, target: StoreCore) -> None:
    for name, table in core.tables.items():
        copy = target.add_table(name, table.entry, table.lr, None)
        copy.step = table.step
        written = table.rows.written()
        for begin in range(0, written.size, _ROWS):
            part = written[begin : begin + _ROWS]
            copy.rows.write(part, table.rows.read(part))
    target.arrays = {name: array.copy() for name, array in core.arrays.items()}
    target.commit(wait=True)


def _copy_files(core: StoreCore, target: StoreCore) -> None:
    assert core.journal is not None and target.directory is not None
    source = checkpoint.Source.of(core.journal, core.frames)
    for name, table in core.tables.items():
        assert table.rows.file is not None
        where = target.directory.describe(file_name(name))
        with files.explained(f"cannot write {where}"):
            file = DataFile.create(target.directory, file_name(name), table.rows.layout)
            try:
                table.rows.file.copy_to(file)
                checkpoint.write_rows(source, name, file)
                files.CALLS.fsync(file.fd)
            finally:
                file.close()
    arrays = checkpoint.write_arrays(target.directory, core.settled_commit, core.committed_arrays)
    state = core.committed
    target.manifest = replace(
        target.manifest,
        tables=dict(core.manifest.tables),
        folded=core.settled_commit,
        folding=core.settled_commit,
        state=state,
        arrays=arrays,
    )
    manifest.write(target.directory, target.manifest)
