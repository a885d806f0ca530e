"""What stands for a user or an item: a row of its own, rows of its features, or rows of its items.

    own       x = W[e]
    features  x = W[e] + sum_f v_ef W[E + f]       LightFM's sum; an untrained W[e] counts as zero
    mean      x = sum_f W[f] / |f|                 a user as the mean of what it took

All of them are bags of rows of one table, looked up and updated by its public operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.recommend.ranking import contains
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable

_PARTS = ("indptr", "indices", "values")
Bags = tuple[IndexArray, IndexArray, FloatArray | None]


class Side:
    """Users or items of a model.

    Args:
        table: rows.
        number: entities, E.
        features: None, or CSR (E, F).
        mean: the entity is the mean of the rows of its features, and has none of its own.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        number: int,
        features: scipy.sparse.csr_array | None = None,
        mean: bool = False,
    ) -> None:
        self.table = table
        self.number = number
        self.features = features
        self.mean = mean
        self._rows = None if features is None else _bag_rows(features, number, mean)
        self._written: IndexArray | None = None
        self._known: IndexArray | None = None
        self._served: scipy.sparse.csr_array | None = None
        self._last: tuple[IndexArray, Bags] | None = None

    @staticmethod
    def rows_needed(number: int, features: scipy.sparse.csr_array | None, mean: bool) -> int:
        """Rows of the table for `number` entities."""
        if features is None:
            return number
        return int(features.shape[1]) + (0 if mean else number)

    # ---- training -------------------------------------------------------------------------------

    def lookup(
        self,
        ids: IndexArray,
        weights: FloatArray | None = None,
        without: IndexArray | None = None,
    ) -> FloatArray:
        """(B, D+1) vectors of entities.

        Args:
            ids: (B,), or (B, G) for the sum of G entities.
            weights: (B, G) of that sum.
            without: (B,) one feature to leave out of each bag (with `mean`).
        """
        if self._rows is None:
            if ids.ndim == 1:
                return self.table.lookup(ids)
            return self.table.lookup(ids, mode="sum", per_sample_weights=weights)
        bags = self._bags(self._rows, ids, weights, without)
        self._last = (ids, bags)
        return self._pool(bags)

    def update(self, grad: FloatArray, ids: IndexArray, weights: FloatArray | None = None) -> None:
        """One optimizer step from the gradient of the last `lookup` of these ids."""
        if self._rows is None:
            if ids.ndim == 1:
                self.table.update(grad, ids)
            else:
                self.table.update(grad, ids, mode="sum", per_sample_weights=weights)
            return
        assert self._last is not None
        last_ids, (rows, offsets, values) = self._last
        assert last_ids is ids
        mode = "mean" if self.mean else "sum"
        self.table.update(grad, rows, offsets, mode=mode, per_sample_weights=values)

    def apply(self, grad: FloatArray, ids: IndexArray) -> None:
        """As `update`, for ids that are distinct and ascending."""
        if self._rows is None:
            table = self.table
            table.apply(SparseGrad.owning(ids, grad, table.num_embeddings))
        else:
            self.update(grad, ids)

    def _pool(self, bags: Bags) -> FloatArray:
        rows, offsets, values = bags
        mode = "mean" if self.mean else "sum"
        return self.table.lookup(rows, offsets, mode=mode, per_sample_weights=values)

    def _bags(
        self,
        matrix: scipy.sparse.csr_array,
        ids: IndexArray,
        weights: FloatArray | None,
        without: IndexArray | None,
    ) -> Bags:
        flat = ids.reshape(-1)
        places, ends = ranges(matrix.indptr, flat)
        rows = matrix.indices[places].astype(np.int64)
        group = 1 if ids.ndim == 1 else ids.shape[1]
        offsets = np.concatenate([[0], ends])[::group].astype(np.int64)
        if self.mean:
            if without is not None:
                bag = np.repeat(np.arange(len(ids)), np.diff(offsets))
                keep = rows != without[bag]
                lengths = np.bincount(bag[keep], minlength=len(ids))
                offsets = np.concatenate([[0], np.cumsum(lengths)])
                rows = rows[keep]
            return rows, offsets.astype(np.int64), None
        values = matrix.data[places]
        if weights is not None:
            values = values * np.repeat(weights.reshape(-1), np.diff(ends, prepend=0))
        return rows, offsets, values.astype(np.float32)

    # ---- serving --------------------------------------------------------------------------------

    def forget(self) -> None:
        """Rows have changed: what was found out about them is void."""
        self._written = self._known = self._served = None

    def written(self) -> IndexArray:
        """Rows of the table that training wrote, ascending."""
        if self._written is None:
            self._written = self.table.trained_indices()
        return self._written

    def known(self) -> IndexArray:
        """Entities that have a vector: one trained row at least, their own or a feature's."""
        if self._rows is None:
            return self.written()
        if self._known is None:
            counts = np.add.reduceat(
                np.append(self._trained_rows().data != 0, False).astype(np.int64),
                self._rows.indptr[:-1],
            ) * (np.diff(self._rows.indptr) > 0)
            self._known = np.flatnonzero(counts).astype(np.int64)
        return self._known

    def vectors(self, ids: IndexArray) -> FloatArray:
        """(n, D+1) of known entities: rows that training never wrote count as zero."""
        if self._rows is None:
            return self.table.lookup(ids)
        return self._pool(self._bags(self._trained_rows(), ids, None, None))

    def vectors_of(self, features: scipy.sparse.csr_array) -> FloatArray:
        """(n, D+1) of entities that are not in the table, from their rows of features.

        A feature that training never saw counts as zero (of a mean: it is left out).
        """
        shift = 0 if self.mean else self.number
        rows = features.indices.astype(np.int64) + shift
        keep = contains(self.written(), rows)
        bag = np.repeat(np.arange(features.shape[0]), np.diff(features.indptr))[keep]
        offsets = np.zeros(features.shape[0] + 1, np.int64)
        np.cumsum(np.bincount(bag, minlength=features.shape[0]), out=offsets[1:])
        values = None if self.mean else features.data[keep].astype(np.float32)
        return self._pool((rows[keep], offsets, values))

    def _trained_rows(self) -> scipy.sparse.csr_array:
        """As `_rows`, without (zero for) those that training never wrote."""
        assert self._rows is not None
        if self._served is None:
            trained = contains(self.written(), self._rows.indices)
            values = self._rows.data * trained
            served = scipy.sparse.csr_array(
                (values, self._rows.indices, self._rows.indptr), shape=self._rows.shape
            )
            if self.mean:
                served = served.copy()
                served.eliminate_zeros()
            self._served = served
        return self._served

    # ---- on disk --------------------------------------------------------------------------------

    def save(self, store: Store, name: str) -> None:
        """Put the features into the store's arrays; the caller commits."""
        if self.features is None:
            return
        matrix = self.features
        for part, array in zip(_PARTS, (matrix.indptr, matrix.indices, matrix.data), strict=True):
            kind = np.float32 if part == "values" else np.int64
            store.arrays[f"{name}.features.{part}"] = np.asarray(array, kind)

    @staticmethod
    def read(store: Store, name: str, number: int, width: int) -> scipy.sparse.csr_array | None:
        """The features that `save` wrote: CSR (number, width)."""
        if f"{name}.features.indptr" not in store.arrays:
            return None
        indptr, indices, values = (store.arrays[f"{name}.features.{part}"] for part in _PARTS)
        return scipy.sparse.csr_array((values, indices, indptr), shape=(number, width))


def as_features(name: str, features: Any, number: int | None) -> scipy.sparse.csr_array:
    """A CSR of finite numbers with `number` rows.

    Raises:
        ArgumentError: anything else.
    """
    if not scipy.sparse.issparse(features) or features.ndim != 2:
        raise ArgumentError(
            f"{name}: expected a scipy.sparse matrix (entities, features), got"
            f" {type(features).__name__}"
        )
    if number is not None and features.shape[0] != number:
        raise ArgumentError(f"{name}: expected {number} rows, got shape {features.shape}")
    if features.dtype.kind not in "biuf":
        raise ArgumentError(f"{name}: expected real numbers, got dtype {features.dtype}")
    matrix = scipy.sparse.csr_array(features).astype(np.float32)
    if not np.isfinite(matrix.data).all():
        raise ArgumentError(f"{name}: expected finite values, got NaN or infinity")
    matrix.sum_duplicates()
    return matrix


def ranges(indptr: Any, ids: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Places of the entries of CSR rows `ids`, one row after the other, and where each ends."""
    starts = indptr[ids].astype(np.int64)
    counts = indptr[ids + 1].astype(np.int64) - starts
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    places = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)
    return places, ends


def _bag_rows(features: scipy.sparse.csr_array, number: int, mean: bool) -> scipy.sparse.csr_array:
    """CSR (E, rows of the table): which rows make up an entity."""
    if mean:
        ones = (np.ones(features.nnz, np.float32), features.indices, features.indptr)
        return scipy.sparse.csr_array(ones, shape=features.shape)
    own = scipy.sparse.eye_array(number, dtype=np.float32, format="csr")
    return scipy.sparse.csr_array(scipy.sparse.hstack([own, features], format="csr"))
