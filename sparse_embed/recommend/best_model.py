"""The best model so far of a fit that stops early: a commit of its store, or a copy in memory."""

from __future__ import annotations

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.recommend.progress import EarlyStopping
from sparse_embed.store import Store


class BestModel:
    """Keeps the state of the epoch that `stopping` calls the best."""

    def __init__(self, store: Store, stopping: EarlyStopping) -> None:
        self._store = store
        self._stopping = stopping
        self._epoch = 0
        self._last = 0
        self._rows: dict[str, tuple[IndexArray, FloatArray]] = {}

    def consider(self, epoch: int) -> None:
        """After an epoch and its measurement: keep it, if it is the best."""
        self._last = epoch
        if self._stopping.best_epoch != epoch:
            return
        self._epoch = epoch
        self._store.metadata["best_epoch"] = epoch
        if self._store.path is not None:
            self._store.commit()
            return
        for name, table in self._store.tables.items():
            rows = table.trained_indices()
            self._rows[name] = rows, table.lookup(rows)

    def restore(self) -> bool:
        """Go back to the kept state; whether there is one."""
        if self._epoch == 0:
            return False
        if self._epoch == self._last:
            return True
        if self._store.path is not None:
            self._store.rollback()
            return True
        for name, (rows, values) in self._rows.items():
            table = self._store.tables[name]
            table.assign(rows, values)
            later = table.trained_indices()
            if len(later) > len(rows):
                kept = set(rows.tolist())
                table.reset([row for row in later.tolist() if row not in kept])
        return True
