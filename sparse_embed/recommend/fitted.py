"""A fitted model: ranking, similarity, scores, vectors, save and load.

The store holds `users` and `items`, each (rows, D + 1): the last column is the bias.  The score of
user u and item i is `<p_u, q_i> + b_u + b_i` (b_u only where the objective has one), or, where the
objective compares directions, the cosine of p_u and q_i.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed._validate import as_integer
from sparse_embed.errors import ArgumentError, NotAStoreError, SparseEmbedError
from sparse_embed.recommend.model_store import read_description
from sparse_embed.recommend.ranking import Ranked, as_ids, contains, joined, rank, unit
from sparse_embed.recommend.sampling import as_interactions
from sparse_embed.recommend.side import Side
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable

__all__ = ["FittedModel", "NotFittedError", "not_negative", "positive"]

_BLOCK = 1 << 16  # rows looked up at a time: 17 MB at D = 64


class NotFittedError(SparseEmbedError, ValueError):
    """The model has not been fitted yet."""


class FittedModel:
    """What a model can be asked once it has tables, whatever it was trained with."""

    has_user_bias: ClassVar[bool] = False
    cosine: bool = False  # the score is a cosine; no biases
    embedding_dim: int
    users_as: str
    _store: Store | None = None
    _sides: tuple[Side, Side] | None = None  # users, items
    _mean: tuple[FloatArray, float] | None = None

    # ---- what it consists of --------------------------------------------------------------------

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
        """User rows, (rows, D + 1), the bias last; rows of features or items behind them."""
        return self.store.tables["users"]

    @property
    def items(self) -> EmbeddingTable:
        """Item rows, (rows, D + 1), the bias last; rows of features behind them."""
        return self.store.tables["items"]

    def _side(self, name: str) -> Side:
        if self._store is None or self._sides is None:
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        return self._sides[0 if name == "users" else 1]

    def _attach(
        self,
        store: Store,
        user_features: scipy.sparse.csr_array | None,
        item_features: scipy.sparse.csr_array | None,
    ) -> None:
        """Take a store with its tables as the model."""
        users, items = store.metadata["shape"]
        mean = self.users_as == "items"
        self._store = store
        self._sides = (
            Side(store.tables["users"], users, user_features, mean),
            Side(store.tables["items"], items, item_features),
        )
        self._forget()

    def _forget(self) -> None:
        """Drop what was found out about rows that have changed since."""
        self._mean = None
        for side in self._sides or ():
            side.forget()

    # ---- ranking --------------------------------------------------------------------------------

    def recommend(
        self,
        user_ids: npt.ArrayLike | None,
        user_items: Any = None,
        k: int = 10,
        *,
        filter_already_liked: bool = True,
        filter_items: npt.ArrayLike | None = None,
        items: npt.ArrayLike | None = None,
        recalculate_user: bool = False,
    ) -> Ranked:
        """The best items of each user, best first.

        Args:
            user_ids: (Q,) integers, or one integer; None: new users, one for each row of
                `user_items`, see Notes.
            user_items: (Q, items) SciPy CSR, row q for user_ids[q]: `user_items[user_ids]`.
                Needed to leave out what a user already took, and for new users.
            k: how many.
            filter_already_liked: leave out the items in `user_items`.
            filter_items: item ids that nobody gets.
            items: item ids to choose from; None: all.
            recalculate_user: take the users for new ones: their vectors come from `user_items`.

        Returns:
            item_ids (Q, k) int64 and scores (Q, k) float32, ties by smaller item id; (k,) each for
            one integer.  Where fewer than k items remain, the end is filled with -1 and -inf.

        Raises:
            NotFittedError: before `fit`.
            IndexRangeError: a user or item id out of range.
            ArgumentError: ids that are not integers; `user_items` missing or of another shape; k
                below 1 or above the number of items.

        Notes:
            An item without a vector (never taken in training, and no trained feature) is never
            recommended.  A new user's vector is the mean of the vectors of their items, as long as
            a user's vector is on average (models with `users="items"`: just their mean).  A user
            without anything to go by is ranked as the mean of all users.
            Ranks in blocks of rows; memory is that of the answer, never users x items.
        """
        side = self._side("items")
        k = self._length(k, side)
        strangers = recalculate_user or user_ids is None
        if user_ids is None:
            if user_items is None:
                raise ArgumentError("user_items: expected the items of new users (user_ids=None)")
            ids, scalar = np.arange(user_items.shape[0], dtype=np.int64), False
        else:
            ids, scalar = as_ids("user_ids", user_ids, self._side("users").number)
        taken = None
        if filter_already_liked or strangers:
            taken = self._seen(user_items, len(ids))
        candidates = self._candidates(items, filter_items)
        best: list[Ranked] = []
        for start in range(0, len(ids), _BLOCK):
            block = slice(start, start + _BLOCK)
            if strangers:
                assert taken is not None
                vectors = self._from_items(taken[block])
            else:
                vectors = self._user_vectors(ids[block])
            seen = taken[block] if filter_already_liked and taken is not None else None
            best.append(rank(self._item_rows, candidates, self._queries(vectors), k, seen))
        return joined(best, k, scalar)

    def _candidates(
        self, items: npt.ArrayLike | None, filter_items: npt.ArrayLike | None
    ) -> IndexArray:
        side = self._side("items")
        candidates = side.known()
        if items is not None:
            chosen, _ = as_ids("items", items, side.number)
            candidates = np.intersect1d(candidates, chosen)
        if filter_items is not None:
            left_out, _ = as_ids("filter_items", filter_items, side.number)
            candidates = np.setdiff1d(candidates, left_out)
        return candidates

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
        side = self._side(name)
        rows, scalar = as_ids(argument, ids, side.number)
        k = self._length(k, side)
        unknown = rows[~contains(side.known(), rows)]
        if len(unknown):
            raise ArgumentError(
                f"{argument}: {unknown[0]} has no interaction in training, so no vector yet"
            )

        def directions(ids: IndexArray) -> FloatArray:
            return unit(side.vectors(ids)[:, : self.embedding_dim])

        best: list[Ranked] = []
        for start in range(0, len(rows), _BLOCK):
            queries = directions(rows[start : start + _BLOCK])
            best.append(rank(directions, side.known(), queries, k))
        return joined(best, k, scalar)

    def score(self, user_ids: npt.ArrayLike, item_ids: npt.ArrayLike) -> FloatArray:
        """The scores of pairs: (n,) float32, NaN for an item without a vector.

        Args:
            user_ids, item_ids: (n,) integers each.

        Raises:
            NotFittedError, IndexRangeError; ArgumentError: different lengths.
        """
        users, _ = as_ids("user_ids", user_ids, self._side("users").number)
        items, _ = as_ids("item_ids", item_ids, self._side("items").number)
        if len(users) != len(items):
            raise ArgumentError(
                f"item_ids: expected as many as user_ids, {len(users)}, got {len(items)}"
            )
        scores = np.empty(len(users), np.float32)
        for start in range(0, len(users), _BLOCK):
            block = slice(start, start + _BLOCK)
            vectors = self._user_vectors(users[block])
            rows = self._item_rows(items[block])
            scores[block] = np.einsum("nd,nd->n", self._queries(vectors), rows)
            if self.has_user_bias:
                scores[block] += vectors[:, -1]
        scores[~contains(self._side("items").known(), items)] = np.nan
        return scores

    # ---- vectors --------------------------------------------------------------------------------

    def item_vectors(self) -> tuple[IndexArray, FloatArray]:
        """All items for an index of inner products (hnswlib, usearch, faiss).

        Returns:
            item_ids (n,) int64, ascending: items that have a vector; and their vectors,
            C-contiguous float32: (n, D + 1), the bias last, or unit vectors (n, D) where the score
            is a cosine.  `<query, vector>` is what `recommend` ranks by, for `query_vectors`.

        Raises:
            NotFittedError: before `fit`.
        """
        ids = self._side("items").known()
        blocks = [self._item_rows(ids[at : at + _BLOCK]) for at in range(0, len(ids), _BLOCK)]
        width = self.embedding_dim + (0 if self.cosine else 1)
        return ids, np.concatenate(blocks) if blocks else np.empty((0, width), np.float32)

    def query_vectors(self, user_ids: npt.ArrayLike) -> FloatArray:
        """Users for an index over `item_vectors`: (n, D + 1), the last column 1, or (n, D)."""
        ids, _ = as_ids("user_ids", user_ids, self._side("users").number)
        return self._queries(self._user_vectors(ids))

    def _item_rows(self, ids: IndexArray) -> FloatArray:
        """What queries are multiplied with."""
        rows = self._side("items").vectors(ids)
        return unit(rows[:, : self.embedding_dim]) if self.cosine else rows

    def _queries(self, vectors: FloatArray) -> FloatArray:
        """From (Q, D + 1) users: what item rows are multiplied with."""
        if self.cosine:
            return unit(vectors[:, : self.embedding_dim])
        queries = vectors.copy()
        queries[:, -1] = 1
        return queries

    def _user_vectors(self, ids: IndexArray) -> FloatArray:
        """(Q, D + 1); for a user without a vector the mean of all users that have one."""
        side = self._side("users")
        vectors = side.vectors(ids)
        unknown = ~contains(side.known(), ids)
        if unknown.any():
            vectors[unknown] = self._mean_user()[0]
        return vectors

    def _from_items(self, taken: scipy.sparse.csr_array) -> FloatArray:
        """(Q, D + 1) vectors of new users from what they took."""
        mean, length = self._mean_user()
        if self.users_as == "items":
            vectors = self._side("users").vectors_of(taken)
        else:
            side = self._side("items")
            items, place = np.unique(taken.indices, return_inverse=True)
            rows = np.zeros((len(items), self.embedding_dim + 1), np.float32)
            known = contains(side.known(), items)
            rows[known] = side.vectors(items[known].astype(np.int64))
            rows[:, -1] = 0
            ones = (np.ones(taken.nnz, np.float32), place, taken.indptr)
            chosen = scipy.sparse.csr_array(ones, shape=(taken.shape[0], len(items)))
            vectors = np.asarray(chosen @ rows, np.float32)
            vectors[:, :-1] = unit(vectors[:, :-1]) * np.float32(length)
        vectors[~vectors.any(axis=1)] = mean
        return vectors

    def _mean_user(self) -> tuple[FloatArray, float]:
        """The mean vector of all users that have one, and the mean length of those vectors."""
        if self._mean is None:
            side = self._side("users")
            known = side.known()
            total, lengths = np.zeros(self.embedding_dim + 1, np.float64), 0.0
            for start in range(0, len(known), _BLOCK):
                rows = side.vectors(known[start : start + _BLOCK])
                total += rows.sum(axis=0, dtype=np.float64)
                lengths += float(np.linalg.norm(rows[:, :-1], axis=1).sum(dtype=np.float64))
            number = max(1, len(known))
            self._mean = (total / number).astype(np.float32), lengths / number
        return self._mean

    def _seen(self, user_items: Any, queries: int) -> scipy.sparse.csr_array:
        if user_items is None:
            raise ArgumentError(
                "user_items: expected the users' rows, user_items[user_ids], to leave out what they"
                " took; pass filter_already_liked=False to do without"
            )
        expected = (queries, self._side("items").number)
        seen = as_interactions(user_items)
        if seen.shape != expected:
            raise ArgumentError(
                f"user_items: expected shape {expected}, one row for each user id, got {seen.shape}"
            )
        return seen

    def _length(self, k: int, side: Side) -> int:
        k = positive("k", k)
        if k > side.number:
            raise ArgumentError(f"k: expected at most {side.number} (all rows), got {k}")
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
        device: str = "cpu",
    ) -> Self:
        """Open a saved model.  Rows are read as they are asked for, so this takes milliseconds.

        Args:
            path: what `save` wrote, or the `path` of a fitted model.
            mode: "r" reads, next to other readers and a writer; "r+" is a writer, for
                `partial_fit` and `fit(..., resume=True)`.
            cache_bytes: memory for rows; None: what the process has.
            device: "cpu", "cuda" or "cuda:N", wherever the model was trained.

        Raises:
            NotAStoreError: no store at `path`, or one of something else.
        """
        store = Store.open(path, mode=mode, cache_bytes=cache_bytes, device=device)
        try:
            arguments = read_description(store, cls.__name__)
            try:
                model: Self = _class(cls)(
                    **arguments, path=path, cache_bytes=cache_bytes, device=device
                )  # fmt: skip
            except (TypeError, ValueError) as error:
                raise NotAStoreError(
                    f"{store.path}: its metadata does not describe a {cls.__name__}: {error}"
                ) from error
            model._attach_opened(store)
        except BaseException:
            store.close(checkpoint=False)
            raise
        return model

    def _attach_opened(self, store: Store) -> None:
        """Attach a store that was opened: its features lie in its arrays."""
        users, items = store.metadata["shape"]
        width = items if self.users_as == "items" else store.tables["users"].num_embeddings - users
        self._attach(
            store,
            Side.read(store, "users", users, width),
            Side.read(store, "items", items, store.tables["items"].num_embeddings - items),
        )

    def close(self) -> None:
        """Close the store.  A file-backed model can be loaded again; one in memory is gone."""
        if self._store is not None:
            self._store.close()
            self._store = self._sides = None

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


def _class(cls: Any) -> Any:
    """The class of a model, whose constructor only its objective knows."""
    return cls


def positive(name: str, value: Any, least: int = 1) -> int:
    """An integer of at least `least`.

    Raises:
        ArgumentError: anything else.
    """
    number = as_integer(name, value)
    if number < least:
        raise ArgumentError(f"{name}: expected at least {least}, got {number}")
    return number


def not_negative(name: str, value: Any, below: float = np.inf) -> float:
    """A number in [0, below).

    Raises:
        ArgumentError: anything else.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 <= value < below:
        limit = "a finite number >= 0" if below == np.inf else f"0 <= x < {below:g}"
        raise ArgumentError(f"{name}: expected {limit}, got {value!r}")
    return float(value)
