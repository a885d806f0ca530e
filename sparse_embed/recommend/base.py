"""What every factor model shares: two tables of one store, the epochs, ranking, save and load.

An objective (`bpr.py`) adds how a batch is drawn and what its gradients are.  Rows are looked up
and updated by the public table operations alone.

The store holds `users` (num_users, D) and `items` (num_items, D + 1): the last column of an item
row is its bias, so the score of user u and item i is `<users[u] ++ [1], items[i]>`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed._validate import as_integer
from sparse_embed.errors import ArgumentError, NotAStoreError, SparseEmbedError
from sparse_embed.initializers import Initializer
from sparse_embed.optim import Optimizer
from sparse_embed.recommend.model_store import create_store, read_description
from sparse_embed.recommend.ranking import Ranked, as_ids, contains, joined, rank, unit
from sparse_embed.recommend.sampling import Interactions, as_interactions
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable

__all__ = ["FactorModel", "FitProgress", "NotFittedError"]

_BLOCK = 1 << 16  # rows looked up at a time: 17 MB at D = 64


class NotFittedError(SparseEmbedError, ValueError):
    """The model has not been fitted yet."""


@dataclass(frozen=True)
class FitProgress:
    """Where `fit` stands; passed to its `progress` after every batch.

    epoch counts from 1; done and total are interactions of all epochs; loss is the mean over the
    epoch so far.
    """

    epoch: int
    epochs: int
    done: int
    total: int
    loss: float


class FactorModel(ABC):
    """Users and items as vectors; the score is their dot product plus the item's bias."""

    def __init__(
        self,
        *,
        embedding_dim: int,
        epochs: int,
        batch_size: int,
        init: Initializer,
        optimizer: Optimizer,
        seed: int,
        path: str | os.PathLike[str] | None,
        cache_bytes: int | None,
    ) -> None:
        self.embedding_dim = _integer("embedding_dim", embedding_dim, 1)
        self.epochs = _integer("epochs", epochs, 1)
        self.batch_size = _integer("batch_size", batch_size, 1)
        self.init = init
        self.optimizer = optimizer
        self.seed = _integer("seed", seed, 0)
        self.path = None if path is None else os.fspath(path)
        self.cache_bytes = cache_bytes
        self._store: Store | None = None
        self._wrote_path = False
        self._trained: dict[str, IndexArray] = {}
        self._mean_user: FloatArray | None = None

    # ---- what an objective brings ---------------------------------------------------------------

    @abstractmethod
    def _hyperparameters(self) -> dict[str, Any]:
        """The objective's own keyword arguments, as `load` passes them to the constructor."""

    @abstractmethod
    def _prepare(self, interactions: Interactions) -> None:
        """Called once by `fit`, before the first batch."""

    @abstractmethod
    def _train_batch(self, epoch: int, start: int, stop: int) -> float:
        """Update both tables by interactions start..stop-1 of the epoch; their summed loss."""

    # ---- training -------------------------------------------------------------------------------

    def fit(self, user_items: Any, progress: Callable[[FitProgress], None] | None = None) -> Self:
        """Learn from scratch who took what.

        Args:
            user_items: (users, items) SciPy CSR (other sparse formats are converted); a value
                above zero is an interaction, and its size is not used.
            progress: called after every batch.

        Returns:
            The model.

        Raises:
            ArgumentError: not a sparse matrix; negative, infinite or NaN values; no interactions;
                training diverged (the loss is no longer finite).
            StoreError: `path` exists already or cannot be written.

        Notes:
            A model with a `path` commits after every epoch.  If `fit` is interrupted the model
            goes back to the last of these commits and stays usable there.
        """
        interactions = Interactions.from_csr(user_items)
        self._create_store(*user_items.shape)
        self._prepare(interactions)
        number = len(interactions)
        try:
            for epoch in range(self.epochs):
                self._set_lr(epoch)
                loss = 0.0
                for start in range(0, number, self.batch_size):
                    stop = min(start + self.batch_size, number)
                    loss += self._train_batch(epoch, start, stop)
                    self._forget()  # `progress` may ask the model, and then train on
                    if progress is not None:
                        done = epoch * number + stop
                        total = self.epochs * number
                        mean = loss / stop
                        progress(FitProgress(epoch + 1, self.epochs, done, total, mean))
                if not np.isfinite(loss):
                    raise ArgumentError(
                        f"training diverged in epoch {epoch + 1} (loss {loss / number}): try a"
                        f" smaller learning rate than {self.optimizer.lr}"
                    )
                self.store.metadata["epochs_done"] = epoch + 1
                if self.path is not None:
                    self.store.commit()
        except BaseException:
            self._abandon()
            raise
        return self

    def _set_lr(self, epoch: int) -> None:
        """A straight line from the optimizer's lr in the first epoch to lr / epochs in the last."""
        for table in (self.users, self.items):
            table.lr = self.optimizer.lr * (1 - epoch / self.epochs)

    def _create_store(self, num_users: int, num_items: int) -> None:
        # A second fit replaces what the first one wrote, never what was there or was loaded.
        if self._wrote_path and self._store is not None:
            self._store.close(checkpoint=False)
            self._store = None
        store = create_store(
            self.path,
            (num_users, num_items),
            {
                "name": type(self).__name__,
                "embedding_dim": self.embedding_dim,
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "seed": self.seed,
                **self._hyperparameters(),
            },
            init=self.init,
            optimizer=self.optimizer,
            cache_bytes=self.cache_bytes,
            overwrite=self._wrote_path,
        )
        if self._store is not None:
            self._store.close(checkpoint=False)
        self._store = store
        self._wrote_path = self.path is not None
        self._forget()

    def _forget(self) -> None:
        """Drop what was found out about rows that have changed since."""
        self._trained = {}
        self._mean_user = None

    def _abandon(self) -> None:
        """After an interrupted epoch: back to the last commit, or to no model at all."""
        store = self.store
        self._forget()
        if self.path is not None:
            store.rollback()
            if store.metadata.get("epochs_done", 0) > 0:
                return
        store.close(checkpoint=False)
        self._store = None

    # ---- the fitted model -----------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store with the tables `users` and `items`.

        Raises:
            NotFittedError: before `fit`.
        """
        if self._store is None:
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        return self._store

    @property
    def users(self) -> EmbeddingTable:
        """User vectors, (num_users, D)."""
        return self.store.tables["users"]

    @property
    def items(self) -> EmbeddingTable:
        """Item vectors and biases, (num_items, D + 1)."""
        return self.store.tables["items"]

    def recommend(
        self,
        user_ids: npt.ArrayLike,
        user_items: Any = None,
        k: int = 10,
        *,
        filter_already_liked: bool = True,
    ) -> Ranked:
        """The best items of each user, best first.

        Args:
            user_ids: (Q,) integers, or one integer.
            user_items: (Q, items) SciPy CSR, row q for user_ids[q]: `user_items[user_ids]`.
                Only needed to leave out what a user already took.
            k: how many.
            filter_already_liked: leave out the items in `user_items`.

        Returns:
            item_ids (Q, k) int64 and scores (Q, k) float32, ties by smaller item id; (k,) each for
            one integer.  Where fewer than k items remain, the end is filled with -1 and -inf.

        Raises:
            NotFittedError: before `fit`.
            IndexRangeError: a user id outside 0..users-1.
            ArgumentError: ids that are not integers; `user_items` missing or of another shape; k
                below 1 or above the number of items.

        Notes:
            Items that nobody took in training are never recommended.  A user without interactions
            in training is ranked as the mean of all users.  Ranks in blocks of rows; memory is
            that of the answer.
        """
        ids, scalar = as_ids("user_ids", user_ids, self.users.num_embeddings)
        k = self._length(k, self.items)
        seen = self._seen(user_items, len(ids)) if filter_already_liked else None
        best: list[Ranked] = []
        for start in range(0, len(ids), _BLOCK):
            block = slice(start, start + _BLOCK)
            queries = np.ones((len(ids[block]), self.embedding_dim + 1), np.float32)
            queries[:, :-1] = self._user_vectors(ids[block])
            best.append(self._rank(queries, "items", k, None if seen is None else seen[block]))
        return joined(best, k, scalar)

    def similar_items(self, item_ids: npt.ArrayLike, k: int = 10) -> Ranked:
        """The items nearest to each item by the cosine of their vectors, the bias left out.

        Args:
            item_ids: (Q,) integers, or one integer.
            k: how many, the item itself included (it comes first).

        Returns:
            item_ids (Q, k) int64 and cosines (Q, k) float32, padded as `recommend` does.

        Raises:
            NotFittedError: before `fit`.
            IndexRangeError: an id outside the table.
            ArgumentError: an item that nobody took in training (it has no vector yet); a bad k.
        """
        return self._similar("items", "item_ids", item_ids, k)

    def similar_users(self, user_ids: npt.ArrayLike, k: int = 10) -> Ranked:
        """The users nearest to each user by cosine; as `similar_items`."""
        return self._similar("users", "user_ids", user_ids, k)

    def _similar(self, name: str, argument: str, ids: npt.ArrayLike, k: int) -> Ranked:
        table = self.store.tables[name]
        rows, scalar = as_ids(argument, ids, table.num_embeddings)
        k = self._length(k, table)
        unknown = rows[~contains(self._trained_rows(name), rows)]
        if len(unknown):
            raise ArgumentError(
                f"{argument}: {unknown[0]} has no interaction in training, so no vector yet"
            )
        best: list[Ranked] = []
        for start in range(0, len(rows), _BLOCK):
            vectors = table.lookup(rows[start : start + _BLOCK])[:, : self.embedding_dim]
            best.append(self._rank(unit(vectors), name, k, columns=self.embedding_dim))
        return joined(best, k, scalar)

    def _rank(
        self,
        queries: FloatArray,
        name: str,
        k: int,
        seen: scipy.sparse.csr_array | None = None,
        columns: int | None = None,
    ) -> Ranked:
        """The best k trained rows of a table; see `ranking.rank`."""
        return rank(self.store.tables[name], self._trained_rows(name), queries, k, seen, columns)

    def _trained_rows(self, name: str) -> IndexArray:
        """Row numbers that training wrote, ascending; found once a fitted model."""
        if name not in self._trained:
            self._trained[name] = self.store.tables[name].trained_indices()
        return self._trained[name]

    def _user_vectors(self, ids: IndexArray) -> FloatArray:
        """(Q, D); for a user without training the mean of all users that have some."""
        vectors = self.users.lookup(ids)
        trained = self._trained_rows("users")
        unknown = ~contains(trained, ids)
        if unknown.any():
            if self._mean_user is None:
                total = np.zeros(self.embedding_dim, np.float64)
                for start in range(0, len(trained), _BLOCK):
                    rows = self.users.lookup(trained[start : start + _BLOCK])
                    total += rows.sum(axis=0, dtype=np.float64)
                self._mean_user = (total / max(1, len(trained))).astype(np.float32)
            vectors[unknown] = self._mean_user
        return vectors

    def _seen(self, user_items: Any, queries: int) -> scipy.sparse.csr_array:
        if user_items is None:
            raise ArgumentError(
                "user_items: expected the users' rows, user_items[user_ids], to leave out what they"
                " took; pass filter_already_liked=False to do without"
            )
        expected = (queries, self.items.num_embeddings)
        seen = as_interactions(user_items)
        if seen.shape != expected:
            raise ArgumentError(
                f"user_items: expected shape {expected}, one row for each user id, got {seen.shape}"
            )
        return seen

    def _length(self, k: int, table: EmbeddingTable) -> int:
        k = _integer("k", k, 1)
        if k > table.num_embeddings:
            raise ArgumentError(f"k: expected at most {table.num_embeddings} (all rows), got {k}")
        return k

    # ---- on disk --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a new store, which `load` opens.

        A model that was fitted with a `path` is on disk already; this copies its last commit.
        Optimizer state is copied too.

        Raises:
            NotFittedError: before `fit`.
            StoreError: `path` exists or cannot be written.
        """
        self.store.snapshot(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        mode: str = "r",
        *,
        cache_bytes: int | None = None,
    ) -> Self:
        """Open a saved model.  Rows are read as they are asked for, so this takes milliseconds.

        Args:
            path: what `save` wrote, or the `path` of a fitted model.
            mode: "r" reads, next to other readers and a writer; "r+" is a writer.
            cache_bytes: memory for rows; None: what the process has.

        Raises:
            NotAStoreError: no store at `path`, or one of something else.
        """
        store = Store.open(path, mode=mode, cache_bytes=cache_bytes)
        try:
            arguments = read_description(store, cls.__name__)
            try:
                model = cls(**arguments, path=path, cache_bytes=cache_bytes)
            except (TypeError, ValueError) as error:
                raise NotAStoreError(
                    f"{store.path}: its metadata does not describe a {cls.__name__}: {error}"
                ) from error
        except BaseException:
            store.close(checkpoint=False)
            raise
        model._store = store
        return model

    def close(self) -> None:
        """Close the store.  A file-backed model can be loaded again; one in memory is gone."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "not fitted" if self._store is None else "fitted"
        return f"{type(self).__name__}(embedding_dim={self.embedding_dim}, {state})"


def _integer(name: str, value: Any, least: int) -> int:
    number = as_integer(name, value)
    if number < least:
        raise ArgumentError(f"{name}: expected at least {least}, got {number}")
    return number
