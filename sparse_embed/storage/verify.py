"""Checking a store against itself, from disk: nothing here changes it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.errors import CorruptStoreError
from sparse_embed.storage import checkpoint, files, manifest
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.fold import finish_fold
from sparse_embed.storage.journal import Journal
from sparse_embed.storage.manifest import file_name
from sparse_embed.storage.segments import Frame
from sparse_embed.storage.store import StoreCore

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to be read in all."""


def verify(core: StoreCore, progress: Progress | None = None) -> dict[str, Any]:
    """Check everything on disk again; CorruptStoreError names what is wrong.

    Data files carry no checksums, being plain .npy.  What can be held against them is held: sizes,
    headers, padding, and every row of a folded commit that the journal still has.
    """
    with core.using(write=False):
        if core.directory is None:
            return {"commits_in_journal": 0, "rows_in_data_files": {}, "rows_compared": {}}
        core.finish_flight(wait=True)
        finish_fold(core, wait=True)
        now = manifest.read(core.directory)  # for a reader it may be newer than at open
        data = {name: _open_data(core, name) for name in core.tables}
        journal = Journal(core.directory, core.manifest.uuid, writable=False)
        try:
            frames = _rescan(core, journal, now)
            checkpoint.read_arrays(core.directory, now.arrays)
            done = journal.bytes
            total = done + sum(files.allocated_bytes(file.fd) for file in data.values())
            rows, compared = {}, {}
            for name, file in data.items():
                rows[name] = 0
                for size, found in file.verify():
                    rows[name] += found
                    done += size
                    if progress is not None:
                        progress(min(done, total), total)
                compared[name] = _compare_folded(core, journal, now, frames, name, file)
        finally:
            journal.close()
            for file in data.values():
                file.close()
        return {
            "commits_in_journal": len(frames),
            "rows_in_data_files": rows,
            "rows_compared": compared,
        }


def _open_data(core: StoreCore, name: str) -> DataFile:
    assert core.directory is not None
    layout = core.tables[name].rows.layout
    return DataFile.open(core.directory, file_name(name), layout, writable=False)


def _rescan(core: StoreCore, journal: Journal, now: manifest.Manifest) -> list[Frame]:
    """Read and check every frame of the journal again, from disk."""
    frames = journal.scan(now.folded, core.settled_commit, folded_too=True)
    every = (*journal.folded_frames, *frames)
    for frame in (piece for commit in every for piece in commit.pieces):
        for name, section in frame.meta.tables.items():
            rows = journal.indices(frame, section)
            limit = core.manifest.tables[name].num_embeddings
            if rows.size and not (rows.min() >= 0 and rows.max() < limit):
                raise CorruptStoreError(
                    errno.EIO, f"commit {frame.commit} names rows outside table {name!r}"
                )
    last = frames[-1].commit if frames else now.folded
    if last < core.settled_commit:
        raise CorruptStoreError(
            errno.EIO,
            f"the journal in {str(core.path)!r} ends at commit {last}, not {core.settled_commit}: "
            + ("; ".join(journal.notes) or "its end is gone"),
        )
    return frames


def _compare_folded(
    core: StoreCore,
    journal: Journal,
    now: manifest.Manifest,
    frames: list[Frame],
    name: str,
    file: DataFile,
) -> int:
    """The folded commits that the journal still has are the newest ones, without a gap: a row that
    they name must lie in the data file as the last of them says.  Returns how many did."""
    source = checkpoint.Source.of(journal, journal.folded_frames)
    unsure: NDArray[np.int64] = np.empty(0, np.int64)
    if core.mode == "r" or now.folding > now.folded:
        # A fold that a writer is in, or died in, may have written newer versions already.
        unsure = checkpoint.Source.of(journal, frames).newest(name)[0]
    compared = 0
    for rows, said in checkpoint.versions(source, name, file.layout):
        found = np.empty_like(said)
        file.read(rows, found)
        wrong = (found.view(np.uint32) != said.view(np.uint32)).any(axis=1)
        wrong &= ~np.isin(rows, unsure)
        if wrong.any():
            raise CorruptStoreError(
                errno.EIO,
                f"{file.where}: row {rows[wrong][0]} is not what the journal says was folded up to "
                f"commit {now.folded}; it was changed by someone else or damaged",
            )
        compared += rows.size
    return compared
