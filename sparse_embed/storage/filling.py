"""A store of one table whose rows are all known: written once, whole, without a journal.

store.json names the table last: cut short, there is an empty store, and no half of a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparse_embed.storage import files, manifest
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.manifest import CommitState, TableEntry, copy_metadata, file_name
from sparse_embed.storage.opening import destroy
from sparse_embed.storage.store import StoreCore

Blocks = Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]
_ROWS = 1 << 10  # put at a time; every table can hold that many in memory


def fill(core: StoreCore, name: str, entry: TableEntry, blocks: Blocks, cache: int | None) -> None:
    """Give a new, empty store this table; `blocks` are (rows ascending, their records).

    A store on disk is complete then, as commit 1, and closed; one in memory stays open.  On an
    error nothing stays.
    """
    try:
        if core.directory is None:
            table = core.add_table(name, entry, 0.0, cache)
            for rows, records in blocks:
                for begin in range(0, len(rows), _ROWS):
                    part = slice(begin, begin + _ROWS)
                    table.rows.write(rows[part], records[part])
            core.commit(wait=True)
            return
        _write(core, name, entry, blocks)
    except BaseException:
        if core.directory is None:
            core.close(checkpoint_first=False)
        else:
            destroy(core, {name: entry})
        raise
    core.close(checkpoint_first=False)


def _write(core: StoreCore, name: str, entry: TableEntry, blocks: Blocks) -> None:
    assert core.directory is not None
    where = core.directory.describe(file_name(name))
    with files.explained(f"cannot write {where}"):
        file = DataFile.create(core.directory, file_name(name), entry.layout())
        try:
            for rows, records in blocks:
                failed, code = files.CALLS.pwrite_records(
                    file.fd, file.offsets(rows), records.view(np.uint8)
                )
                if failed >= 0:
                    files.raise_errno(int(code), f"cannot write rows to {where}")
            files.sync(files.CALLS.fsync, file.fd, where)
        finally:
            file.close()
    core.manifest = replace(
        core.manifest,
        tables={name: entry},
        folded=1,
        folding=1,
        state=CommitState({name: (0, 0.0)}, copy_metadata(core.metadata)),
    )
    manifest.write(core.directory, core.manifest)
