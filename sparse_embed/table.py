"""EmbeddingTable: rows of a store, an initializer for those never trained, an optimizer."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sparse_embed import _validate, export, quantize
from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.commit import Commit
from sparse_embed.errors import ArgumentError, StoreError
from sparse_embed.executing import make_execution
from sparse_embed.initializers import Initializer
from sparse_embed.making import (
    check_cache,
    check_device,
    create_core,
    make_entry,
    open_core,
    table_info,
)
from sparse_embed.optim import Optimizer, check_lr
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.storage import filling, fold, inspect, opening
from sparse_embed.storage import verify as checking
from sparse_embed.storage.store import StoreCore, TableCore

_ONE_TABLE = "rows"


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
        self._run = make_execution(core, name)

    # ---- making and opening ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
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
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> EmbeddingTable:
        """A new table; milliseconds, whatever its size.

        Args:
            path: directory of the new store, which holds this one table under the name "rows";
                None keeps the table in memory.
            num_embeddings: rows, E, up to what the file system allows in one file (ext4: 16 TiB).
            embedding_dim: columns, D.
            dtype: of the stored weights: "float32", "bfloat16" or "float16".  Arithmetic, and what
                comes out, is float32.
            state_dtype: of optimizer state: "float32" or "bfloat16"; one number a row (the sum of
                RowWiseAdagrad, exp_avg_sq of RowWiseAdam) stays float32.
            rounding: how an update rounds to a narrower dtype: "stochastic" (default; unbiased, and
                a function of seed, step, row and column, so repeatable) or "nearest" (ties to even;
                small steps are lost).  Rows that are assigned are rounded to nearest.
            init: first weights of a row: Uniform(scale), Normal(std) or Zeros(); None is
                Uniform(0.05).
            optimizer: SGD, Adagrad, RowWiseAdagrad, LazyAdam or RowWiseAdam; None: weights only,
                which `assign` sets.
            seed: of `init` and of stochastic rounding.
            cache_bytes: memory for resident rows; None shares half of the machine's (or control
                group's) memory with all other such tables.
            device: "cpu", "cuda" or "cuda:N": where resident rows are, and the work is done.  Of a
                GPU's memory `cache_bytes` says how much; None takes four fifths of what is free.
                Files are the same.  Indices and gradients may then be arrays of that GPU, and
                results are where the indices were.
            metadata: a dict of JSON values, committed with the table.
            overwrite: remove a store that is at `path`; other files are never removed.

        Raises:
            ArgumentError: an argument does not fit.
            MissingExtraError: "cuda" without its package or a driver.
            DeviceMemoryError: the GPU's memory is too small for that.
            StoreError: something is at `path`, or the disk or file system refuses.
        """
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
        cache, memory = check_cache(cache_bytes), check_device(device)
        core = create_core(path, metadata, overwrite)
        try:
            lr = optimizer.lr if optimizer is not None else 0.0
            core.add_table(_ONE_TABLE, entry, lr, cache, memory)
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
        memory = check_device(device)
        core = open_core(path, mode, at_commit, check_cache(cache_bytes), memory)
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
    def dtype(self) -> str:
        """Of the stored weights: "float32", "float16", "bfloat16" or "int8"."""
        return self._table.entry.dtype

    @property
    def init(self) -> Initializer:
        """What rows hold that were never trained."""
        return self._run.init

    @property
    def seed(self) -> int:
        """Of `init`."""
        return self._table.entry.seed

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer's description, as given at creation."""
        return self._run.optimizer

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
    def device(self) -> str:
        """ "cpu" or "cuda:N": where resident rows are."""
        memory = self._table.rows.memory
        return "cpu" if memory is None else memory.name

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
            f"embedding_dim={self.embedding_dim}, dtype={self.dtype!r}, "
            f"optimizer={self.optimizer!r}, step={self.step})"
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
        stream: int | None = None,
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
            stream: of a table on a GPU: the CUDA stream to work on, as an integer handle (torch's
                `cuda_stream`, CuPy's `ptr`); None is the default stream.  Give the one that arrays
                were made on: torch's do not say theirs, and their memory is recycled in its order.

        Raises:
            ArgumentError, IndexRangeError: the argument is named; nothing has changed.

        Source: torch.nn.EmbeddingBag (sum, mean, max), tf.nn.embedding_lookup_sparse (weighted
        mean, sqrtn).
        """
        with self._core.using(write=False), self._run.on_stream(stream):
            batch = self._run.lookup_batch(
                indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset
            )
            result = self._run.lookup(batch)
            found: FloatArray = self._run.result(result, (*batch.lead, self.embedding_dim), batch)
        return found

    def state(self, indices: object) -> dict[str, FloatArray]:
        """The optimizer's state of some rows, as it lies in their records.

        Args:
            indices: (n,) row numbers.

        Returns:
            field name -> (n, lanes) float32, e.g. "exp_avg" (n, D); the initial value for rows
            never trained.  Empty without an optimizer.
        """
        rows = self._row_list(indices)
        with self._core.using(write=False):
            return self._run.state(rows)

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
                In float32: a row whose squares leave its range (numbers below 1e-23 or above 1e19)
                scores 0 by cosine.
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
            indices, scores = self._run.nearest(matrix, count, metric, chosen)
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
        stream: int | None = None,
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
        with self._core.using(write=True), self._run.on_stream(stream):
            batch = self._run.update_batch(
                indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset
            )
            upstream = self._run.as_grad(grad, batch, check_finite)
            self._run.update(batch, upstream, optimizer)

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
        stream: int | None = None,
    ) -> SparseGrad:
        """The gradient of the rows, merged: nothing is changed.  Arguments as in `update`.

        Returns:
            SparseGrad with .indices (U,) sorted and .values (U, D); a row's positions are added
            from left to right in blocks of 256, then the blocks.  NumPy arrays on every device.
        """
        with self._core.using(write=False), self._run.on_stream(stream):
            batch = self._run.make_batch(
                indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset
            )
            rows, values = self._run.backward(batch, self._run.as_grad(grad, batch, check_finite))
        return SparseGrad.owning(rows, values, self.num_embeddings)

    def apply(self, grad: SparseGrad) -> None:
        """One optimizer step with a merged gradient; `step` rises by one.

        Raises:
            ArgumentError: the gradient is of a table of another shape.
        """
        optimizer = self._need_optimizer()
        self._check_sparse(grad, "grad")
        with self._core.using(write=True):
            self._run.apply(grad.indices, grad.values, optimizer)

    def _check_sparse(self, grad: object, name: str) -> None:
        if not isinstance(grad, SparseGrad):
            raise ArgumentError(f"{name}: expected a SparseGrad, got {type(grad).__name__}")
        grad.check()
        if (grad.num_embeddings, grad.embedding_dim) != (self.num_embeddings, self.embedding_dim):
            raise ArgumentError(
                f"{name}: is of a ({grad.num_embeddings}, {grad.embedding_dim}) table, expected "
                f"({self.num_embeddings}, {self.embedding_dim})"
            )

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
        stream: int | None = None,
    ) -> FloatArray:
        """Gradient of the weights of a lookup, of the shape of `indices`; call it before `update`.

            sum    <g, x_k>
            mean   <g, x_k - y> / sum w
            sqrtn  <g, x_k> / r - w_k <g, y> / r^2

        where y is the bag's result and r the root of its squared weights; 0 at padded positions.
        """
        with self._core.using(write=False), self._run.on_stream(stream):
            batch = self._run.make_batch(
                indices,
                offsets,
                "sum" if mode is None else mode,
                per_sample_weights,
                padding_idx,
                include_last_offset,
            )
            if batch.mode == "max":
                raise ArgumentError('mode: "max" takes no per_sample_weights')
            result = self._run.weights_grad(batch, self._run.as_grad(grad, batch, check_finite))
            shape: Any = indices.shape if hasattr(indices, "shape") else np.shape(indices)  # type: ignore[call-overload]
            found: FloatArray = self._run.result(result, tuple(shape), batch)
        return found

    def _need_optimizer(self) -> Optimizer:
        self._need_trainable()
        optimizer = self._run.optimizer
        if optimizer is None:
            raise ArgumentError(
                "optimizer: this table was created without one, so it cannot be trained; "
                "use assign(), or create it with an optimizer"
            )
        return optimizer

    def _need_trainable(self) -> None:
        if self.dtype == "int8":
            raise ArgumentError(
                "dtype: an int8 table is a quantised copy for lookups, its rows do not change; "
                "train the table it was made from and quantize that again"
            )

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
            ArgumentError: wrong shapes or dtypes, repeated indices, unknown state fields; the
                table is an int8 copy.
        """
        self._need_trainable()
        rows = self._row_list(indices)
        if len(np.unique(rows)) != len(rows):
            raise ArgumentError("indices: expected distinct row numbers, got repeated ones")
        weights = _validate.as_grad(values, (len(rows), self.embedding_dim), name="values")
        given = self._given_state(state, len(rows))
        with self._core.using(write=True):
            self._run.assign(rows, weights, given)

    def _given_state(self, state: Mapping[str, object] | None, n: int) -> dict[str, FloatArray]:
        if state is not None and not isinstance(state, Mapping):
            raise ArgumentError(f"state: expected a dict of arrays, got {type(state).__name__}")
        lanes = {field.name: field.lanes for field in self._run.state_fields}
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
        self._need_trainable()
        rows = np.unique(self._row_list(indices))
        with self._core.using(write=True):
            self._run.reset(rows)

    def prefetch(
        self, indices: object, *, padding_idx: int | None = None, wait: bool = True
    ) -> None:
        """Bring rows into the cache, as far as they fit, for the next batch to find.

        Args:
            indices: any shape; `padding_idx` among them is passed over.  On a GPU they are brought
                in on a stream beside the one in use, while it works: call it after the lookup of
                the batch in hand, with NumPy indices (arrays of the GPU wait for their stream).
            wait: False returns at once and changes nothing in the cache: a thread asks the kernel
                to read what is on disk, while you compute; the next batch finds it in the kernel's
                memory.  Call it with the batch after the one in hand.  (Linux; elsewhere it does
                nothing.)  Results are the same with and without.
        """
        with self._core.using(write=False):
            self._run.prefetch(indices, padding_idx, wait)

    # ---- the store ------------------------------------------------------------------------------

    def commit(self, wait: bool = True) -> int | Commit:
        """Make everything since the last commit durable, for the whole store: rows, optimizer
        state, steps, learning rates, metadata, arrays.

        Args:
            wait: True returns the commit's number when it is on disk.  Of a large one, rows may go
                to disk ahead of it, between the steps before.  False copies what has
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
        """Fold all commits into the data files, which `np.load(..., mmap_mode="r")` reads.

        The journal's files stay for the next commits, which are faster there, until `close`.
        """
        fold.fold_now(self._core)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Copy the last commit to a new store at `path`; training may go on from either.

        Of a store in memory, which keeps no commits, the present state is copied.
        """
        inspect.snapshot(self._core, Path(path))

    def refresh(self) -> int:
        """For a reader: move the whole store on to the newest commit; returns its number."""
        return opening.refresh(self._core)

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

    def verify(self, progress: checking.Progress | None = None) -> dict[str, Any]:
        """Check everything that can be checked, from disk; see `Store.verify`.

        Raises:
            CorruptStoreError: names the file, the place and what was found.
        """
        return checking.verify(self._core, progress)

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
            return export.write(Path(path), chosen, self.embedding_dim, self._run.weights_of, names)

    def quantize(
        self,
        dtype: str = "int8",
        path: str | os.PathLike[str] | None = None,
        *,
        rows: object = "trained",
        cache_bytes: int | None = None,
        overwrite: bool = False,
    ) -> EmbeddingTable:
        """A copy of the weights in a narrower dtype, for lookups: a table of its own.

        int8 is row-wise: each row has a scale and a bias in float32 and a byte a weight, and what
        comes out is q scale + bias, off by at most half a scale, (max - min) / 510.  `lookup`,
        `nearest` and `export` work as on any table; what would change rows is refused.

        Args:
            dtype: "int8", "float16" or "bfloat16".
            path: directory of the new store; None keeps the copy in memory.  On disk it is written
                whole or not at all.
            rows: "trained": rows never trained stay uncopied and give `init`'s weights; "all"
                writes every row; or row numbers.
            cache_bytes: of the copy, as in `create`.
            overwrite: remove a store that is at `path`.

        Returns:
            The copy; of one on disk, opened with mode "r".

        Raises:
            ArgumentError: an unknown dtype, `path` is this table's own, or int8 of a row with NaN,
                infinity, or a span beyond 3e38.
            StoreError: something is at `path`, or the disk refuses.

        Source: FBGEMM's fused 8-bit row-wise format.
        """
        entry = quantize.as_entry(self._table.entry, dtype)
        chosen, cache = self._choose(rows), check_cache(cache_bytes)
        own = None if self.path is None else os.path.realpath(self.path)
        if path is not None and os.path.realpath(path) == own:
            raise ArgumentError(f"path: {os.fspath(path)!r} is the table that is to be copied")
        with self._core.using(write=False):
            core = create_core(path, self.metadata, overwrite)
            blocks = quantize.blocks(chosen, entry.layout(), self._run.weights_of)
            filling.fill(core, _ONE_TABLE, entry, blocks, cache)
        if path is None:
            return EmbeddingTable(core, _ONE_TABLE)
        return EmbeddingTable.open(path, "r", cache_bytes=cache_bytes)

    def __enter__(self) -> EmbeddingTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._core.leave(kind is None)
