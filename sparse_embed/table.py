"""EmbeddingTable: rows of a store, an initializer for those never trained, an optimizer."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sparse_embed import _validate, export, nearest, ops
from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.batch import Batch, make_batch
from sparse_embed.commit import Commit
from sparse_embed.errors import (
    ArgumentError,
    CorruptStoreError,
    MissingExtraError,
    StoreError,
    UnsupportedVersionError,
)
from sparse_embed.initializers import Initializer, Uniform, initializer_from_dict
from sparse_embed.optim import Optimizer, check_lr, optimizer_from_dict
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.storage import fold, inspect, opening
from sparse_embed.storage.manifest import TableEntry, is_table_name
from sparse_embed.storage.store import StoreCore, TableCore, copy_metadata

_ONE_TABLE = "rows"
_BLOCK_BYTES = 16 << 20


class EmbeddingTable:
    """A table of `num_embeddings` rows of `embedding_dim` float32 numbers, trained row by row.

    Rows that were never trained cost nothing: their weights are computed from (seed, row, column).
    Made by `EmbeddingTable.create`, `EmbeddingTable.open` or `Store.create_table`.  One Python
    thread at a time; results do not depend on the number of kernel threads.

    As a context manager it commits and closes on success; on an exception it rolls back and closes.
    """

    def __init__(self, core: StoreCore, name: str) -> None:
        """Used by create, open and Store; not public."""
        self._core = core
        self._name = name
        entry = core.tables[name].entry
        try:
            self._init: Initializer = initializer_from_dict(entry.init)
            self._optimizer: Optimizer | None = (
                None if entry.optimizer is None else optimizer_from_dict(entry.optimizer)
            )
        except ArgumentError as error:
            raise UnsupportedVersionError(
                errno.ENOTSUP,
                f"table {name!r}: this package does not know its init or optimizer ({error})",
            ) from None
        fields = self._optimizer.state_fields(entry.embedding_dim) if self._optimizer else ()
        if tuple((field.name, field.lanes) for field in fields) != entry.fields:
            raise CorruptStoreError(
                errno.EINVAL,
                f"table {name!r}: its records hold {entry.fields}, its optimizer needs {fields}",
            )

    # ---- making and opening ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        *,
        num_embeddings: int,
        embedding_dim: int,
        dtype: str = "float32",
        init: Initializer | None = None,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        cache_bytes: int | None = None,
        device: str = "cpu",
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> EmbeddingTable:
        """A new table; milliseconds, whatever its size.

        Args:
            path: directory of the new store, which holds this one table under the name "rows";
                None keeps the table in memory.
            num_embeddings: rows, E, up to what the file system allows in one file (ext4: 16 TiB).
            embedding_dim: columns, D.
            dtype: of the weights; "float32".
            init: first weights of a row: Uniform(scale), Normal(std) or Zeros(); None is
                Uniform(0.05).
            optimizer: SGD, Adagrad, RowWiseAdagrad, LazyAdam or RowWiseAdam; None: weights only,
                which `assign` sets.
            seed: of `init`.
            cache_bytes: memory for resident rows; None shares half of the machine's (or control
                group's) memory with all other such tables.
            device: "cpu".
            metadata: a dict of JSON values, committed with the table.
            overwrite: remove a store that is at `path`; other files are never removed.

        Raises:
            ArgumentError: an argument does not fit.
            StoreError: something is at `path`, or the disk or file system refuses.
        """
        entry = make_entry(num_embeddings, embedding_dim, dtype, init, optimizer, seed, device)
        cache = check_cache(cache_bytes)
        core = create_core(path, metadata, overwrite)
        try:
            lr = optimizer.lr if optimizer is not None else 0.0
            core.add_table(_ONE_TABLE, entry, lr, cache)
        except BaseException:
            if core.path is not None:
                opening.destroy(core)
            raise
        return cls(core, _ONE_TABLE)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: str = "r+",
        *,
        at_commit: int | None = None,
        cache_bytes: int | None = None,
        device: str = "cpu",
    ) -> EmbeddingTable:
        """Open the table of a store that has exactly one.

        Args:
            path: the store's directory.
            mode: "r+" to train (one process), "r" to read (many; each sees one commit).
            at_commit: an earlier commit that the journal still has.  With "r+" the later ones are
                dropped at the next commit.
            cache_bytes, device: as in `create`.

        Raises:
            NotAStoreError, UnsupportedVersionError, CorruptStoreError, LockedError, ReadOnlyError.
        """
        check_device(device)
        core = open_core(path, mode, at_commit, check_cache(cache_bytes))
        if len(core.tables) != 1:
            names = ", ".join(sorted(core.tables)) or "none"
            core.close(checkpoint_first=False)
            raise StoreError(
                errno.EINVAL,
                f"path: {os.fspath(path)!r} has {len(core.tables)} tables ({names}); "
                "open it with Store.open",
            )
        try:
            return cls(core, next(iter(core.tables)))
        except BaseException:
            core.release()
            raise

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def _table(self) -> TableCore:
        return self._core.tables[self._name]

    @property
    def name(self) -> str:
        """The table's name in its store."""
        return self._name

    @property
    def num_embeddings(self) -> int:
        """Rows, E."""
        return self._table.entry.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Columns, D."""
        return self._table.entry.embedding_dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the weights."""
        return np.dtype(self._table.entry.dtype)

    @property
    def init(self) -> Initializer:
        """What rows hold that were never trained."""
        return self._init

    @property
    def seed(self) -> int:
        """Of `init`."""
        return self._table.entry.seed

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer's description, as given at creation."""
        return self._optimizer

    @property
    def lr(self) -> float:
        """The learning rate of the next step; may be set between steps, and is committed."""
        return self._table.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        value = check_lr(lr)
        with self._core.using(write=True):
            self._table.lr = value

    @property
    def step(self) -> int:
        """Steps done: calls of `update` and `apply`, empty batches included."""
        return self._table.step

    @property
    def path(self) -> Path | None:
        """The store's directory; None in memory."""
        return self._core.path

    @property
    def metadata(self) -> dict[str, Any]:
        """JSON values of the store, committed with it; change them in place."""
        return self._core.metadata

    @property
    def last_commit(self) -> int:
        """The number of the newest durable commit; 0 before the first."""
        return self._core.last_commit

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else repr(str(self.path))
        return (
            f"EmbeddingTable({where}, num_embeddings={self.num_embeddings}, "
            f"embedding_dim={self.embedding_dim}, optimizer={self._optimizer!r}, step={self.step})"
        )

    # ---- reading --------------------------------------------------------------------------------

    def lookup(
        self,
        indices: object,
        offsets: object = None,
        *,
        mode: str | None = None,
        per_sample_weights: object = None,
        padding_idx: int | None = None,
        include_last_offset: bool = True,
    ) -> FloatArray:
        """Rows, or bags of rows pooled.

            unpooled   lookup(indices (...))                     -> (..., D)
            padded     lookup(indices (..., L), mode=m)          -> (..., D)   pools the last axis
            ragged     lookup(indices (L,), offsets (B+1,), mode=m) -> (B, D)

        Bag b holds positions offsets[b] to offsets[b+1] - 1; an empty bag gives zeros.  With the
        weights w (1 when not given), over the positions k of a bag:

            sum    sum w_k x_k          mean   sum w_k x_k / sum w_k
            sqrtn  sum w_k x_k / sqrt(sum w_k^2)          max   largest x_k by column, no weights

        Added from left to right in float32.

        Args:
            indices: any integer dtype, 0 <= index < num_embeddings, or `padding_idx`.
            offsets: (B+1,) integers, from 0 to L, non-decreasing.
            mode: "sum" (the default with offsets), "mean", "sqrtn", "max".
            per_sample_weights: float32, of the shape of `indices`.
            padding_idx: positions with this value (any integer) give zeros unpooled and are left
                out of bags.
            include_last_offset: False takes torch's (B,) offsets, without the last one.

        Raises:
            ArgumentError, IndexRangeError: the argument is named; nothing has changed.

        Source: torch.nn.EmbeddingBag (sum, mean, max), tf.nn.embedding_lookup_sparse (weighted
        mean, sqrtn).
        """
        batch = self._batch(
            indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset
        )
        with self._core.using(write=False):
            result = self._lookup(batch)
        return result.reshape(*batch.lead, self.embedding_dim)

    def _batch(
        self,
        indices: object,
        offsets: object,
        mode: object,
        per_sample_weights: object,
        padding_idx: object,
        include_last_offset: bool,
    ) -> Batch:
        return make_batch(
            self.num_embeddings,
            indices,
            offsets,
            mode,
            per_sample_weights,
            padding_idx,
            include_last_offset,
        )

    def _records(self) -> ops.Records:
        resident = self._table.rows.resident
        return ops.Records(
            resident.records, resident.flags, self.embedding_dim, self._init, self.seed
        )

    def _loose(self, records: FloatArray) -> ops.Records:
        """Records that are a copy, not resident."""
        flags = np.zeros(len(records), np.uint8)
        return ops.Records(records, flags, self.embedding_dim, self._init, self.seed)

    def _lookup(self, batch: Batch) -> FloatArray:
        rows = batch.rows
        slots = self._table.rows.resident.slots(rows)
        if slots is not None:
            return self._lookup_in(self._records(), batch.slots(slots), batch)
        out = np.empty((batch.num_bags, self.embedding_dim), np.float32)
        for first, last in self._pieces(batch):
            part = batch.part(first, last)
            unique, inverse = np.unique(part.rows, return_inverse=True)
            loose = self._loose(self._table.rows.read(unique))
            out[first:last] = self._lookup_in(loose, part.slots(inverse.astype(np.int64)), part)
        return out

    def _pieces(self, batch: Batch) -> list[tuple[int, int]]:
        """Split a batch that does not fit the cache: ranges of bags of bounded size."""
        step = max(1, _BLOCK_BYTES // self._table.rows.layout.record_bytes)
        if batch.offsets is None:
            return [(i, min(i + step, batch.num_bags)) for i in range(0, batch.num_bags, step)]
        pieces, first = [], 0
        while first < batch.num_bags:
            reach = int(batch.offsets[first]) + step
            last = int(np.searchsorted(batch.offsets, reach, side="right")) - 1
            last = min(max(last, first + 1), batch.num_bags)
            pieces.append((first, last))
            first = last
        return pieces

    @staticmethod
    def _lookup_in(records: ops.Records, slots: IndexArray, batch: Batch) -> FloatArray:
        if batch.offsets is None or batch.mode is None:
            return ops.lookup(records, slots, batch.indices, batch.padding)
        return ops.lookup_bags(
            records,
            slots,
            batch.indices,
            batch.offsets,
            batch.weights,
            batch.mode,
            batch.padding,
        )

    def _weights_of(self, rows: IndexArray) -> FloatArray:
        """Weights of rows without bringing them into the cache."""
        loose = self._loose(self._table.rows.read(rows))
        return ops.lookup(loose, np.arange(len(rows)), rows, ops.NO_PADDING)

    def state(self, indices: object) -> dict[str, FloatArray]:
        """The optimizer's state of some rows, as it lies in their records.

        Args:
            indices: (n,) row numbers.

        Returns:
            field name -> (n, lanes) float32, e.g. "exp_avg" (n, D); the initial value for rows
            never trained.  Empty without an optimizer.
        """
        rows = _validate.as_indices(indices, self.num_embeddings)
        if rows.ndim != 1:
            raise ArgumentError(f"indices: expected shape (n,), got {rows.shape}")
        if self._optimizer is None:
            return {}
        with self._core.using(write=False):
            data = self._read_many(rows)
        virgin = data.view(np.uint32)[:, 0] == 0
        found: dict[str, FloatArray] = {}
        for field in self._optimizer.state_fields(self.embedding_dim):
            at = self._table.rows.layout.offset_of(field.name)
            values = data[:, at : at + field.lanes].copy()
            values[virgin] = np.float32(field.fill)
            found[field.name] = values
        return found

    def _read_many(self, rows: IndexArray) -> FloatArray:
        unique, inverse = np.unique(rows, return_inverse=True)
        return self._table.rows.read(unique)[inverse]

    def trained_indices(self) -> IndexArray:
        """Sorted row numbers of all rows that were ever written, and not reset since: (n,) int64.

        Reads the allocated pages of the data file: time in proportion to trained rows.
        """
        with self._core.using(write=False):
            return self._table.rows.written()

    def nearest(
        self,
        queries: object,
        k: int = 10,
        *,
        metric: str = "cosine",
        rows: object = "trained",
    ) -> tuple[IndexArray, FloatArray]:
        """The k rows most like each query, by exact search.

        Args:
            queries: (Q, D) or (D,) float32.
            k: how many; fewer come back when there are fewer rows.
            metric: "cosine", "dot" (largest first) or "euclidean" (the distance, smallest first).
            rows: "trained", "all", or row numbers (n,) to choose from.

        Returns:
            indices (Q, k) int64 and scores (Q, k) float32, best first, ties by the smaller index;
            (k,) each for one query.
        """
        table_queries = np.asarray(queries)
        single = table_queries.ndim == 1
        matrix = _validate.as_matrix(
            table_queries[None, :] if single else table_queries, "queries", None, self.embedding_dim
        )
        count = _validate.as_integer("k", k)
        if count < 1:
            raise ArgumentError(f"k: expected at least 1, got {count}")
        metric = _validate.as_metric(metric)
        chosen = self._choose(rows)
        with self._core.using(write=False):
            indices, scores = nearest.search(matrix, count, metric, chosen, self._weights_of)
        return (indices[0], scores[0]) if single else (indices, scores)

    def _choose(self, rows: object) -> IndexArray | range:
        """The rows that `nearest` and `export` are asked for, ascending."""
        if isinstance(rows, str):
            if rows == "trained":
                return self.trained_indices()
            if rows == "all":
                return range(self.num_embeddings)
            raise ArgumentError(f'rows: expected "trained", "all" or row numbers, got {rows!r}')
        return np.unique(_validate.as_indices(rows, self.num_embeddings, name="rows"))

    # ---- training -------------------------------------------------------------------------------

    def update(
        self,
        grad: object,
        indices: object,
        offsets: object = None,
        *,
        mode: str | None = None,
        per_sample_weights: object = None,
        padding_idx: int | None = None,
        include_last_offset: bool = True,
        check_finite: bool = False,
    ) -> None:
        """One optimizer step from the gradient of a lookup's result; `step` rises by one.

        Gradients of the same row are added first, then the optimizer moves each row once; rows that
        are not in the batch stay as they are, bit for bit.  No lookup is needed before.  The same
        bits as `apply(backward(...))`, without a gradient per position or row in memory.

        Args:
            grad: float32, of the shape of the lookup's result.
            check_finite: refuse NaN and infinity.
            Others as in `lookup`.

        Raises:
            ArgumentError, IndexRangeError: nothing has changed.
            StoreError: a row could not be read, or moved to the scratch file.  If rows had been
                changed already the store is failed: `rollback()`.
        """
        optimizer = self._need_optimizer()
        batch = self._batch(
            indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset
        )
        upstream = self._grad(grad, batch, check_finite)
        with self._core.using(write=True):
            argmax = self._argmax(batch)
            merged = ops.merge(batch.indices, batch.padding)
            coefficients = _coefficients(batch)
            table = self._table
            step, lr = table.step + 1, table.lr
            resident = table.rows.resident
            pieces = self._split(merged.indices)
            first = resident.slots(merged.indices[slice(*pieces[0])]) if pieces else None
            with self._core.step():
                for i, (u0, u1) in enumerate(pieces):
                    slots = first if i == 0 else resident.slots(merged.indices[u0:u1])
                    if slots is None:
                        raise MemoryError("resident rows do not fit the cache")
                    ops.update(
                        self._records(),
                        slots,
                        merged,
                        u0,
                        u1,
                        coefficients,
                        upstream,
                        argmax,
                        optimizer,
                        step,
                        lr,
                    )
                table.step = step

    def backward(
        self,
        grad: object,
        indices: object,
        offsets: object = None,
        *,
        mode: str | None = None,
        per_sample_weights: object = None,
        padding_idx: int | None = None,
        include_last_offset: bool = True,
        check_finite: bool = False,
    ) -> SparseGrad:
        """The gradient of the rows, merged: nothing is changed.  Arguments as in `update`.

        Returns:
            SparseGrad with .indices (U,) sorted and .values (U, D); a row's positions are added
            from left to right in blocks of 256, then the blocks.
        """
        batch = self._batch(
            indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset
        )
        upstream = self._grad(grad, batch, check_finite)
        with self._core.using(write=False):
            argmax = self._argmax(batch)
        merged = ops.merge(batch.indices, batch.padding)
        values = ops.backward(merged, _coefficients(batch), upstream, argmax)
        return SparseGrad(merged.indices, values, self.num_embeddings)

    def apply(self, grad: SparseGrad) -> None:
        """One optimizer step with a merged gradient; `step` rises by one.

        Raises:
            ArgumentError: the gradient is of a table of another shape.
        """
        optimizer = self._need_optimizer()
        if not isinstance(grad, SparseGrad):
            raise ArgumentError(f"grad: expected a SparseGrad, got {type(grad).__name__}")
        if (grad.num_embeddings, grad.embedding_dim) != (self.num_embeddings, self.embedding_dim):
            raise ArgumentError(
                f"grad: is of a ({grad.num_embeddings}, {grad.embedding_dim}) table, expected "
                f"({self.num_embeddings}, {self.embedding_dim})"
            )
        with self._core.using(write=True):
            table = self._table
            step, lr = table.step + 1, table.lr
            resident = table.rows.resident
            pieces = self._split(grad.indices)
            first = resident.slots(grad.indices[slice(*pieces[0])]) if pieces else None
            with self._core.step():
                for i, (u0, u1) in enumerate(pieces):
                    rows = grad.indices[u0:u1]
                    slots = first if i == 0 else resident.slots(rows)
                    if slots is None:
                        raise MemoryError("resident rows do not fit the cache")
                    ops.apply(self._records(), slots, rows, grad.values[u0:u1], optimizer, step, lr)
                table.step = step

    def per_sample_weights_grad(
        self,
        grad: object,
        indices: object,
        offsets: object = None,
        *,
        mode: str | None = None,
        per_sample_weights: object = None,
        padding_idx: int | None = None,
        include_last_offset: bool = True,
        check_finite: bool = False,
    ) -> FloatArray:
        """Gradient of the weights of a lookup, of the shape of `indices`; call it before `update`.

            sum    <g, x_k>
            mean   <g, x_k - y> / sum w
            sqrtn  <g, x_k> / r - w_k <g, y> / r^2

        where y is the bag's result and r the root of its squared weights; 0 at padded positions.
        """
        batch = self._batch(
            indices,
            offsets,
            "sum" if mode is None else mode,
            per_sample_weights,
            padding_idx,
            include_last_offset,
        )
        if batch.mode == "max":
            raise ArgumentError('mode: "max" takes no per_sample_weights')
        upstream = self._grad(grad, batch, check_finite)
        bag_ids = _coefficients(batch).bag_ids
        with self._core.using(write=False):
            slots = self._table.rows.resident.slots(batch.rows)
            if slots is not None:
                records, where = self._records(), batch.slots(slots)
            else:
                unique, inverse = np.unique(batch.rows, return_inverse=True)
                records = self._loose(self._table.rows.read(unique))
                where = batch.slots(inverse.astype(np.int64))
            dots = ops.dots(records, where, batch.indices, upstream, bag_ids, batch.padding)
        result = ops.weights_grad(
            dots, batch.indices, batch.offsets, batch.weights, str(batch.mode), batch.padding
        )
        return result.reshape(np.asarray(indices).shape)

    def _need_optimizer(self) -> Optimizer:
        if self._optimizer is None:
            raise ArgumentError(
                "optimizer: this table was created without one, so it cannot be trained; "
                "use assign(), or create it with an optimizer"
            )
        return self._optimizer

    def _grad(self, grad: object, batch: Batch, check_finite: bool) -> FloatArray:
        shape = (*batch.lead, self.embedding_dim)
        checked = _validate.as_grad(grad, shape, check_finite=check_finite)
        return checked.reshape(batch.num_bags, self.embedding_dim)

    def _argmax(self, batch: Batch) -> IndexArray | None:
        """For mode "max": which position each column of each bag came from."""
        if batch.mode != "max" or batch.offsets is None:
            return None
        slots = self._table.rows.resident.slots(batch.rows)
        if slots is not None:
            where = batch.slots(slots)
            return ops.max_positions(
                self._records(), where, batch.indices, batch.offsets, batch.padding
            )
        out = np.empty((batch.num_bags, self.embedding_dim), np.int64)
        for first, last in self._pieces(batch):
            part = batch.part(first, last)
            assert part.offsets is not None
            unique, inverse = np.unique(part.rows, return_inverse=True)
            loose = self._loose(self._table.rows.read(unique))
            where = part.slots(inverse.astype(np.int64))
            found = ops.max_positions(loose, where, part.indices, part.offsets, part.padding)
            out[first:last] = np.where(found < 0, -1, found + int(batch.offsets[first]))
        return out

    def _split(self, rows: IndexArray) -> list[tuple[int, int]]:
        """Ranges of unique rows, each of which fits the cache."""
        resident = self._table.rows.resident
        resident.trim()
        capacity = resident.capacity
        step = len(rows) if len(rows) <= capacity else max(1, capacity // 2)
        return [(u0, min(u0 + step, len(rows))) for u0 in range(0, len(rows), step or 1)]

    # ---- setting rows ---------------------------------------------------------------------------

    def assign(
        self,
        indices: object,
        values: object,
        *,
        state: Mapping[str, object] | None = None,
    ) -> None:
        """Set rows.  The optimizer's state of these rows stays, unless `state` sets it.

        Args:
            indices: (n,) distinct row numbers.
            values: (n, D) float32.
            state: optional, field name -> (n, lanes) float32, as `state()` gives them.

        Raises:
            ArgumentError: wrong shapes or dtypes, repeated indices, unknown state fields.
        """
        rows = self._row_list(indices)
        if len(np.unique(rows)) != len(rows):
            raise ArgumentError("indices: expected distinct row numbers, got repeated ones")
        weights = _validate.as_grad(values, (len(rows), self.embedding_dim), name="values")
        fields = self._optimizer.state_fields(self.embedding_dim) if self._optimizer else ()
        given = self._given_state(state, len(rows))
        with self._core.using(write=True), self._core.step():
            for u0, u1 in self._split(rows):
                part = rows[u0:u1]
                data = self._read_many(part)
                virgin = data.view(np.uint32)[:, 0] == 0
                data[:, : self.embedding_dim] = weights[u0:u1]
                for field in fields:
                    at = self._table.rows.layout.offset_of(field.name)
                    lanes = data[:, at : at + field.lanes]
                    lanes[virgin] = np.float32(field.fill)
                    if field.name in given:
                        lanes[:] = given[field.name][u0:u1]
                zero = data.view(np.uint32)[:, 0] == 0
                data[zero, 0] = np.float32(-0.0)  # +0.0 would say "never written"
                self._table.rows.write(part, data)

    def _given_state(self, state: Mapping[str, object] | None, n: int) -> dict[str, FloatArray]:
        fields = self._optimizer.state_fields(self.embedding_dim) if self._optimizer else ()
        lanes = {field.name: field.lanes for field in fields}
        given: dict[str, FloatArray] = {}
        for name, values in (state or {}).items():
            if name not in lanes:
                raise ArgumentError(f"state: expected fields {sorted(lanes)}, got {name!r}")
            given[name] = _validate.as_grad(values, (n, lanes[name]), name=f"state[{name!r}]")
        return given

    def _row_list(self, indices: object) -> IndexArray:
        rows = _validate.as_indices(indices, self.num_embeddings)
        if rows.ndim != 1:
            raise ArgumentError(f"indices: expected shape (n,), got {rows.shape}")
        return rows

    def reset(self, indices: object) -> None:
        """Make rows untrained again: their weights are `init`'s, their optimizer state is fresh."""
        rows = np.unique(self._row_list(indices))
        lanes = self._table.rows.layout.lanes
        with self._core.using(write=True), self._core.step():
            for u0, u1 in self._split(rows):
                self._table.rows.write(rows[u0:u1], np.zeros((u1 - u0, lanes), np.float32))

    def prefetch(self, indices: object, *, padding_idx: int | None = None) -> None:
        """Bring rows into the cache, as far as they fit, for the next batch to find."""
        rows = np.unique(_validate.as_indices(indices, self.num_embeddings, padding_idx))
        rows = rows[rows != _validate.as_padding_idx(padding_idx)]
        with self._core.using(write=False):
            resident = self._table.rows.resident
            resident.slots(rows[: resident.capacity])

    # ---- the store ------------------------------------------------------------------------------

    def commit(self, wait: bool = True) -> int | Commit:
        """Make everything since the last commit durable, for the whole store: rows, optimizer
        state, steps, learning rates, metadata, arrays.

        Args:
            wait: True returns the commit's number when it is on disk.  False copies what has
                changed, lets a thread write it, and returns a Commit; its error, if any, is raised
                by the next call.

        Raises:
            StoreError: the disk is full or fails; the store stays at its last commit, nothing in
                memory is lost, and committing again is possible.
        """
        number = self._core.commit(wait)
        return number if wait else Commit(self._core, number)

    def rollback(self) -> None:
        """Return the whole store to its last commit; a store in memory keeps none."""
        self._core.rollback()

    def checkpoint(self) -> None:
        """Fold all commits into the data files, which `np.load(..., mmap_mode="r")` reads."""
        fold.fold_now(self._core)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Copy the last commit to a new store at `path`; training may go on from either.

        Of a store in memory, which keeps no commits, the present state is copied.
        """
        inspect.snapshot(self._core, Path(path))

    def close(self, checkpoint: bool = True) -> None:
        """Fold commits into the data files (unless checkpoint=False) and let go of everything.

        Changes since the last commit are gone.  Closing twice is allowed.
        """
        self._core.close(checkpoint_first=checkpoint)

    def info(self) -> dict[str, Any]:
        """Plain facts about the table and its store."""
        facts = inspect.info(self._core)
        with self._core.using(write=False):
            return facts | table_info(self._core.tables[self._name])

    def verify(self) -> dict[str, Any]:
        """Check everything that can be checked, from disk; see `Store.verify`.

        Raises:
            CorruptStoreError: names the file, the place and what was found.
        """
        return inspect.verify(self._core)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        rows: object = "trained",
        names: object = None,
    ) -> int:
        """Write weights to a file that other programs read; returns the number of rows.

            x.npy           (n, D) float32, with the row numbers beside it in x.indices.npy
            x.safetensors   tensors "weight" (n, D) and "indices" (n,)
            x.txt, x.vec    word2vec text: "n D", then "name v1 ... vD" a line
            x.bin           word2vec binary

        Args:
            rows: "trained", "all" (materialises every row), or row numbers.
            names: for word2vec formats: n strings without spaces, in ascending order of rows; the
                row numbers when not given.
        """
        chosen = self._choose(rows)
        with self._core.using(write=False):
            return export.write(Path(path), chosen, self.embedding_dim, self._weights_of, names)

    def __enter__(self) -> EmbeddingTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._core.leave(kind is None)


def _coefficients(batch: Batch) -> ops.Coefficients:
    return ops.bag_coefficients(
        batch.indices, batch.offsets, batch.weights, batch.mode or "sum", batch.padding
    )


# ---- shared with Store ------------------------------------------------------------------------


def make_entry(
    num_embeddings: int,
    embedding_dim: int,
    dtype: str,
    init: Initializer | None,
    optimizer: Optimizer | None,
    seed: int,
    device: str,
) -> TableEntry:
    """Check the description of a new table."""
    check_device(device)
    rows = _validate.as_integer("num_embeddings", num_embeddings)
    dim = _validate.as_integer("embedding_dim", embedding_dim)
    if not 1 <= rows < 2**63:
        raise ArgumentError(f"num_embeddings: expected 1 <= rows < 2^63, got {rows}")
    if not 1 <= dim <= 65536:
        raise ArgumentError(f"embedding_dim: expected 1 <= columns <= 65536, got {dim}")
    if not isinstance(dtype, str | np.dtype | type) or np.dtype(dtype) != np.float32:
        raise ArgumentError(f'dtype: expected "float32", got {dtype!r}')
    start = Uniform(0.05) if init is None else init
    if not isinstance(start, Initializer):
        raise ArgumentError(f"init: expected Uniform, Normal or Zeros, got {init!r}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"optimizer: expected SGD, LazyAdam, ... or None, got {optimizer!r}")
    fields = optimizer.state_fields(dim) if optimizer is not None else ()
    entry = TableEntry(
        num_embeddings=rows,
        embedding_dim=dim,
        dtype="float32",
        init=start.to_dict(),
        seed=_validate.as_seed(seed),
        optimizer=None if optimizer is None else optimizer.to_dict(),
        fields=tuple((field.name, field.lanes) for field in fields),
    )
    entry.layout()
    return entry


def check_device(device: object) -> None:
    """Only "cpu" so far."""
    if device == "cpu":
        return
    if isinstance(device, str) and device.split(":")[0] == "cuda":
        raise MissingExtraError('device: "cuda" is not supported by this version; use device="cpu"')
    raise ArgumentError(f'device: expected "cpu", got {device!r}')


def check_cache(cache_bytes: object) -> int | None:
    """None, or a positive number of bytes."""
    if cache_bytes is None:
        return None
    size = _validate.as_integer("cache_bytes", cache_bytes)
    if size < 1:
        raise ArgumentError(f"cache_bytes: expected at least 1, got {size}")
    return size


def check_table_name(name: object) -> str:
    """A name that may be a file's."""
    if not is_table_name(name):
        raise ArgumentError(
            "name: expected letters, digits, '_', '-' and '.', not starting with a dot or dash, "
            f"at most 100 characters, got {name!r}"
        )
    return str(name)


def create_core(
    path: str | os.PathLike[str] | None, metadata: Mapping[str, Any] | None, overwrite: bool
) -> StoreCore:
    """A new, empty store."""
    facts = copy_metadata(dict(metadata or {}))
    if path is None:
        return opening.in_memory(facts)
    return opening.create_store(Path(path), facts, overwrite)


def open_core(
    path: str | os.PathLike[str],
    mode: str,
    at_commit: int | None,
    cache: int | Mapping[str, int | None] | None,
) -> StoreCore:
    """An existing store with its tables."""
    if mode not in ("r", "r+"):
        raise ArgumentError(f'mode: expected "r+" or "r", got {mode!r}')
    if at_commit is not None:
        at_commit = _validate.as_integer("at_commit", at_commit)
    core = opening.open_store(Path(path), mode, at_commit)
    try:
        core.attach_tables(cache)
    except BaseException:
        core.release()
        raise
    return core


def table_info(table: TableCore) -> dict[str, Any]:
    """Plain facts about a table."""
    entry = table.entry
    facts: dict[str, Any] = {
        "num_embeddings": entry.num_embeddings,
        "embedding_dim": entry.embedding_dim,
        "dtype": entry.dtype,
        "init": entry.init,
        "seed": entry.seed,
        "optimizer": entry.optimizer,
        "lr": table.lr,
        "step": table.step,
        "record_bytes": table.rows.layout.record_bytes,
    }
    return facts | table.rows.info()
