"""Store: several tables and arrays that commit together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from sparse_embed._typing import AnyArray
from sparse_embed.commit import Commit
from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Initializer
from sparse_embed.making import (
    check_cache,
    check_device,
    check_table_name,
    create_core,
    make_entry,
    open_core,
    table_info,
)
from sparse_embed.optim import Optimizer
from sparse_embed.storage import fold, inspect, opening
from sparse_embed.storage import verify as checking
from sparse_embed.storage.store import StoreCore
from sparse_embed.table import EmbeddingTable


class Arrays(MutableMapping[str, AnyArray]):
    """The small named arrays of a store: all of them go into each commit.

    Setting copies; what you get is the store's own array, and changing it in place counts.
    """

    def __init__(self, core: StoreCore) -> None:
        self._core = core

    def __getitem__(self, name: str) -> AnyArray:
        return self._core.arrays[name]

    def __setitem__(self, name: str, value: object) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= 255 or set(name) & {"/", "\0"}:
            raise ArgumentError(f"name: expected 1 to 255 characters without '/', got {name!r}")
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise ArgumentError(
                f"name: expected a Unicode string, got a lone surrogate in {name!r}"
            )
        try:
            array = np.array(value, order="C")
        except ValueError as error:  # ragged lists
            raise ArgumentError(f"arrays[{name!r}]: expected an array ({error})") from None
        if array.dtype.kind not in "biufcSUmM":
            raise ArgumentError(f"arrays[{name!r}]: expected numbers or strings, got {array.dtype}")
        with self._core.using(write=True):
            self._core.arrays[name] = array

    def __delitem__(self, name: str) -> None:
        with self._core.using(write=True):
            del self._core.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._core.arrays)

    def __len__(self) -> int:
        return len(self._core.arrays)


class Store:
    """A directory of tables and arrays with one journal and one commit for all of them.

    As a context manager it commits and closes on success; on an exception it rolls back and closes.
    """

    def __init__(self, core: StoreCore) -> None:
        """Used by create and open; not public."""
        self._core = core
        self._tables = {name: EmbeddingTable(core, name) for name in core.tables}
        self._arrays = Arrays(core)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        *,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Store:
        """A new, empty store; None for one in memory.  See EmbeddingTable.create."""
        return cls(create_core(path, metadata, overwrite))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: str = "r+",
        *,
        at_commit: int | None = None,
        cache_bytes: int | Mapping[str, int] | None = None,
        device: str = "cpu",
    ) -> Store:
        """Open a store; `cache_bytes` may be a dict by table, `device` is all tables'.  See
        EmbeddingTable.open."""
        if isinstance(cache_bytes, Mapping):
            cache: int | Mapping[str, int | None] | None = {
                name: check_cache(size) for name, size in cache_bytes.items()
            }
        else:
            cache = check_cache(cache_bytes)
        core = open_core(path, mode, at_commit, cache, check_device(device))
        try:
            return cls(core)
        except BaseException:
            core.release()
            raise

    def create_table(
        self,
        name: str,
        *,
        num_embeddings: int,
        embedding_dim: int,
        dtype: str = "float32",
        state_dtype: str = "float32",
        rounding: str | None = None,
        init: Initializer | None = None,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        cache_bytes: int | None = None,
        device: str = "cpu",
    ) -> EmbeddingTable:
        """Add a table.  It is on disk at once, empty; arguments as in EmbeddingTable.create."""
        check_table_name(name)
        if name in self._tables:
            raise ArgumentError(f"name: the store already has a table {name!r}")
        entry = make_entry(
            num_embeddings,
            embedding_dim,
            dtype,
            init,
            optimizer,
            seed,
            device,
            state_dtype,
            rounding,
        )
        lr = optimizer.lr if optimizer is not None else 0.0
        memory = check_device(device)
        self._core.add_table(name, entry, lr, check_cache(cache_bytes), memory)
        self._tables[name] = EmbeddingTable(self._core, name)
        return self._tables[name]

    @property
    def tables(self) -> Mapping[str, EmbeddingTable]:
        """The tables by name."""
        return MappingProxyType(self._tables)

    @property
    def arrays(self) -> Arrays:
        """The arrays by name; set them like a dict's entries."""
        return self._arrays

    @property
    def metadata(self) -> dict[str, Any]:
        """JSON values, committed with the store; change them in place."""
        return self._core.metadata

    @property
    def path(self) -> Path | None:
        """The directory; None in memory."""
        return self._core.path

    @property
    def last_commit(self) -> int:
        """The number of the newest durable commit; 0 before the first."""
        return self._core.last_commit

    def commit(self, wait: bool = True) -> int | Commit:
        """Make everything since the last commit durable.  See EmbeddingTable.commit."""
        number = self._core.commit(wait)
        return number if wait else Commit(self._core, number)

    def rollback(self) -> None:
        """Return to the last commit.  Not for a store in memory, which keeps none."""
        self._core.rollback()

    def checkpoint(self) -> None:
        """Fold all commits into the data files.

        The journal's files stay for the next commits, which are faster there, until `close`.
        """
        fold.fold_now(self._core)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Copy the last commit to a new store at `path`; the present state of one in memory."""
        inspect.snapshot(self._core, Path(path))

    def refresh(self) -> int:
        """For a reader: move on to the newest commit; returns its number."""
        number = opening.refresh(self._core)
        for name in self._core.tables:
            if name not in self._tables:
                self._tables[name] = EmbeddingTable(self._core, name)
        return number

    def close(self, checkpoint: bool = True) -> None:
        """Fold commits into the data files (unless checkpoint=False) and let go of everything."""
        self._core.close(checkpoint_first=checkpoint)

    def discard(self) -> None:
        """Remove a store that was just made and could not be completed: its files, and the
        directory if nothing else is in it."""
        if self._core.directory is not None:
            opening.destroy(self._core, self._core.tables)
        else:
            self._core.close(checkpoint_first=False)

    def info(self) -> dict[str, Any]:
        """Plain facts about the store and its tables."""
        facts = inspect.info(self._core)
        with self._core.using(write=False):
            facts["tables"] = {name: table_info(core) for name, core in self._core.tables.items()}
        return facts

    def verify(self, progress: checking.Progress | None = None) -> dict[str, Any]:
        """Check everything that can be checked, from disk: store.json, journal checksums, row
        numbers, headers and lengths of data files, padding of the records they hold, and that rows
        of folded commits which the journal still has lie in the data files as it says.

        Args:
            progress: called with the bytes read so far and the bytes to be read in all.

        Returns:
            what was checked, as counts.

        Raises:
            CorruptStoreError: names the file, the place and what was found.
        """
        return checking.verify(self._core, progress)

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else repr(str(self.path))
        return f"Store({where}, tables={sorted(self._tables)}, last_commit={self.last_commit})"

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._core.leave(kind is None)


__all__ = ["Arrays", "Store"]
