"""Looking at a store and copying it: nothing here changes it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparse_embed.storage import checkpoint, files, lock, manifest
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.fold import finish_fold
from sparse_embed.storage.frame import segment_name
from sparse_embed.storage.manifest import copy_metadata, file_name
from sparse_embed.storage.opening import create_store, destroy
from sparse_embed.storage.store import StoreCore

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
                "spare_bytes": core.journal.spare_bytes,
                "written_ahead_bytes": core.journal.ahead_bytes,
                "journal_segments": {
                    segment_name(number): segment.size
                    for number, segment in sorted(core.journal.segments.items())
                },
                "commits_in_journal": [frame.commit for frame in core.frames],
                "readers": _reader_pids(core),
                "recovery": _recovery(core),
            }
        return facts


def _recovery(core: StoreCore) -> dict[str, Any]:
    """What the next opening for writing would find to do, were the writer killed now."""
    said = core.manifest
    return {
        "opens_at_commit": core.settled_commit,
        "commits_to_index": len(core.frames),
        "rows_to_index": sum(
            section.rows
            for frame in core.frames
            for piece in frame.pieces
            for section in piece.meta.tables.values()
        ),
        "bytes_to_check": sum(frame.nbytes for frame in core.frames),
        # A fold that was interrupted is done again by the next checkpoint, from the journal.
        "interrupted_fold_to_commit": (said.folding if said.folding > said.folded else None),
        "ignores": list(core.notes),
    }


def _reader_pids(core: StoreCore) -> list[int]:
    if core.directory is None:
        return []
    pids = lock.processes_holding(str(core.directory.path / lock.NAME))
    return [pid for pid in pids if pid != os.getpid()]


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
