"""EmbeddingBagCollection: many tables and features in one call, as click models have them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from sparse_embed import _validate
from sparse_embed._typing import FloatArray
from sparse_embed.collection_batch import KeyedBatch
from sparse_embed.collection_run import ManyExecution
from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Initializer
from sparse_embed.optim import Optimizer
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable


class EmbeddingBagCollection:
    """Bags of many features, on tables that features may share, looked up and trained at once.

        with se.Store.create("model") as store:
            users = store.create_table("users", num_embeddings=10**8, embedding_dim=32, ...)
            items = store.create_table("items", num_embeddings=10**7, embedding_dim=32, ...)
            collection = se.EmbeddingBagCollection(
                store, {"user": "users", "clicked": "items", "shown": "items"}, mode="mean")
            bags = collection.lookup(indices, offsets)            # (B, 96)
            collection.update(grad, indices, offsets)             # one step of each table

    Results are those of `EmbeddingTable.lookup` and `update` table by table, bit for bit; the
    features of a shared table count as one batch, one behind the other in the collection's order,
    so their gradients are added before the table makes its one step.

    A batch of F features with B bags each comes in one of these forms, alike for every method:

        indices (L,), offsets (F B + 1,)   feature-major, as a TorchRec KeyedJaggedTensor and FBGEMM
                                           have them: bag b of feature f is number f B + b
        indices (F, B, N)                  N ids in every bag
        {feature: (indices, offsets)}      (L,) and (B + 1,), or with weights as a third; or an
        {feature: indices}                 array (B, N)
        a KeyedJaggedTensor                by what it can do: keys, values, offsets, weights_or_none
        batch(...)                         any of them, checked before: saves the second check

    Tables on a GPU take arrays of that GPU too (int64 and float32; mappings of them, and a
    KeyedJaggedTensor of other keys, go through the host), and give results where the indices were.

    Args:
        tables: name -> table, or a store, whose tables all are meant.  Tables may have different
            rows, columns, optimizers, stores; all are on one device.
        features: feature -> name of its table, in the order of the result's columns.  Default: one
            feature for each table, named as it.
        mode: "sum", "mean", "sqrtn" or "max"; or table name -> mode.
        padding_idx: as in EmbeddingTable.lookup; or table name -> padding_idx.

    Raises:
        ArgumentError: an argument does not fit.

    Source: torchrec.modules.EmbeddingBagCollection (names, layout of input and output); FBGEMM's
    SplitTableBatchedEmbeddingBags (one batched operation).
    """

    def __init__(
        self,
        tables: Mapping[str, EmbeddingTable] | Store,
        features: Mapping[str, str] | None = None,
        *,
        mode: str | Mapping[str, str] = "sum",
        padding_idx: int | Mapping[str, int | None] | None = None,
    ) -> None:
        found = tables.tables if isinstance(tables, Store) else tables
        if not isinstance(found, Mapping) or not found:
            raise ArgumentError(f"tables: expected a Store or name -> table, got {found!r}")
        for name, table in found.items():
            if not isinstance(table, EmbeddingTable):
                raise ArgumentError(
                    f"tables[{name!r}]: expected an EmbeddingTable, got {type(table).__name__}"
                )
        chosen = {name: name for name in found} if features is None else dict(features)
        unknown = sorted({str(name) for name in chosen.values() if name not in found})
        if unknown or not chosen:
            raise ArgumentError(f"features: expected names of {list(found)}, got {unknown}")
        used = set(chosen.values())
        self._tables = {name: table for name, table in found.items() if name in used}
        if len({(id(t._core), t.name) for t in self._tables.values()}) != len(self._tables):
            raise ArgumentError("tables: expected each table once, got one under two names")
        self._features = chosen
        names = list(self._tables)
        modes = [_validate.as_mode(_of(mode, name, "mode", found)) for name in names]
        paddings = [_of(padding_idx, name, "padding_idx", found) for name in names]
        for padding in paddings:
            _validate.as_padding_idx(padding)
        self._names = list(chosen)
        numbers = [names.index(table) for table in chosen.values()]
        devices = {table.device for table in self._tables.values()}
        if len(devices) > 1:
            raise ArgumentError(
                f"tables: expected all on one device, got {', '.join(sorted(devices))}"
            )
        runs = [table._run for table in self._tables.values()]
        self._run = _make_run(devices.pop(), runs, numbers, modes, paddings)
        self._dims = [self._tables[table].embedding_dim for table in chosen.values()]

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        num_embeddings: Mapping[str, int],
        embedding_dim: int | Mapping[str, int],
        *,
        features: Mapping[str, str] | None = None,
        mode: str | Mapping[str, str] = "sum",
        padding_idx: int | Mapping[str, int | None] | None = None,
        init: Initializer | None = None,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        cache_bytes: int | None = None,
        device: str = "cpu",
        overwrite: bool = False,
    ) -> EmbeddingBagCollection:
        """A collection on new tables in one new store; they commit together.

        Args:
            path: directory of the store; None keeps it in memory.
            num_embeddings: table name -> rows.
            embedding_dim: columns; or table name -> columns.
            seed: of the first table; the next one has seed + 1, and so on.
            cache_bytes, device: of each table.
            Others as in the constructor and in EmbeddingTable.create.
        """
        store = Store.create(path, overwrite=overwrite)
        try:
            for i, (name, rows) in enumerate(num_embeddings.items()):
                store.create_table(
                    name,
                    num_embeddings=rows,
                    embedding_dim=_of(embedding_dim, name, "embedding_dim", num_embeddings),
                    init=init,
                    optimizer=optimizer,
                    seed=_validate.as_seed(seed) + i,
                    cache_bytes=cache_bytes,
                    device=device,
                )
            made = cls(store, features, mode=mode, padding_idx=padding_idx)
        except BaseException:
            store.discard()
            raise
        made._store = store
        return made

    _store: Store | None = None

    @property
    def store(self) -> Store | None:
        """The store that `create` made; None otherwise."""
        return self._store

    @property
    def tables(self) -> Mapping[str, EmbeddingTable]:
        """Name -> table, of those that a feature has."""
        return MappingProxyType(self._tables)

    @property
    def features(self) -> Mapping[str, str]:
        """Feature -> name of its table, in the order of the result's columns."""
        return MappingProxyType(self._features)

    @property
    def embedding_dims(self) -> dict[str, int]:
        """Feature -> its columns."""
        return dict(zip(self._names, self._dims, strict=True))

    @property
    def output_dim(self) -> int:
        """Columns of a result: the sum over features."""
        return sum(self._dims)

    def __repr__(self) -> str:
        return (
            f"EmbeddingBagCollection({len(self._names)} features, {len(self._tables)} tables,"
            f" output_dim={self.output_dim})"
        )

    # ---- a batch --------------------------------------------------------------------------------

    def batch(
        self,
        indices: object,
        offsets: object = None,
        *,
        per_sample_weights: object = None,
        include_last_offset: bool = True,
    ) -> Any:
        """Check a batch once, for a lookup and an update.

        Args:
            indices, offsets: one of the forms above; any integer dtype.
            per_sample_weights: float32, of the shape of `indices`, where these are arrays.
            include_last_offset: False takes offsets without the last one, as torch's.

        Raises:
            ArgumentError, IndexRangeError: feature and argument are named; nothing has changed.
        """
        with self._run.using(write=False):
            return self._batch(indices, offsets, per_sample_weights, include_last_offset)

    def _batch(
        self, indices: Any, offsets: object, per_sample_weights: object, include_last_offset: bool
    ) -> Any:
        if hasattr(indices, "batch_size") and hasattr(indices, "owner"):
            if indices.owner is not self or offsets is not None or per_sample_weights is not None:
                raise ArgumentError("indices: a batch() stands alone, and for its own collection")
            return indices
        return self._run.make_batch(
            self, self._names, indices, offsets, per_sample_weights, include_last_offset
        )

    def split(self, bags: Any) -> dict[str, Any]:
        """Feature -> its columns (B, D) of a result, as views; of a result on a GPU, copies."""
        if len(bags.shape) != 2 or bags.shape[1] != self.output_dim:
            raise ArgumentError(f"bags: expected shape (B, {self.output_dim}), got {bags.shape}")
        return dict(zip(self._names, self._run.split(bags, self._dims), strict=True))

    # ---- reading --------------------------------------------------------------------------------

    def lookup(
        self,
        indices: object,
        offsets: object = None,
        *,
        per_sample_weights: object = None,
        include_last_offset: bool = True,
        stream: int | None = None,
    ) -> FloatArray:
        """Pool every bag of every feature.  Arguments as in `batch`; `stream` as in
        EmbeddingTable.lookup.

        Returns:
            (B, output_dim) float32: the features' columns side by side, in their order; `split`
            takes them apart.  Empty bags give zeros.

        Raises:
            ArgumentError, IndexRangeError: nothing has changed.
        """
        with self._run.using(write=False), self._run.on_stream(stream):
            batch = self._batch(indices, offsets, per_sample_weights, include_last_offset)
            pooled: FloatArray = self._run.as_result(
                self._run.pooled(batch, self.output_dim), batch
            )
        return pooled

    # ---- training -------------------------------------------------------------------------------

    def update(
        self,
        grad: object,
        indices: object,
        offsets: object = None,
        *,
        per_sample_weights: object = None,
        include_last_offset: bool = True,
        check_finite: bool = False,
        stream: int | None = None,
    ) -> None:
        """One optimizer step of every table from the gradient of a lookup's result; each table's
        `step` rises by one, also where no id came.  No lookup is needed before.

        Args:
            grad: (B, output_dim) float32, or feature -> (B, D).
            check_finite: refuse NaN and infinity.
            Others as in `batch`.

        Raises:
            ArgumentError, IndexRangeError: nothing has changed, in any table.
            StoreError: a row could not be read, or moved to the scratch file.  If rows had been
                changed already the stores of all tables are failed: `rollback()`.
        """
        self._need_optimizers()
        with self._run.using(write=True), self._run.on_stream(stream):
            batch = self._batch(indices, offsets, per_sample_weights, include_last_offset)
            self._run.update(batch, self._grads(grad, batch, check_finite))

    def backward(
        self,
        grad: object,
        indices: object,
        offsets: object = None,
        *,
        per_sample_weights: object = None,
        include_last_offset: bool = True,
        check_finite: bool = False,
        stream: int | None = None,
    ) -> dict[str, SparseGrad]:
        """The merged gradient of every table, by its name; nothing is changed.  Arguments as in
        `update`.  Goes table by table."""
        merged: dict[str, SparseGrad] = {}
        with self._run.using(write=False), self._run.on_stream(stream):
            batch = self._batch(indices, offsets, per_sample_weights, include_last_offset)
            grads = self._grads(grad, batch, check_finite)
            for t, name, table in self._numbered():
                upstream = self._run.grad_of(grads, t)
                merged[name] = table.backward(upstream, **self._bags_of(batch, t), stream=stream)
        return merged

    def _bags_of(self, batch: Any, t: int) -> dict[str, Any]:
        """A table's bags of the batch, as the arguments of its own methods."""
        part = self._run.part(batch, t)
        return {
            "indices": part.indices,
            "offsets": part.offsets,
            "mode": part.mode,
            "per_sample_weights": part.weights,
            "padding_idx": self._run.paddings[t],
        }

    def apply(self, grads: Mapping[str, SparseGrad]) -> None:
        """One optimizer step of each table that is named, with merged gradients; all or nothing.

        Raises:
            ArgumentError: a name or shape does not fit; nothing has changed.
        """
        self._need_optimizers()
        if not isinstance(grads, Mapping):
            raise ArgumentError(f"grads: expected name -> SparseGrad, got {type(grads).__name__}")
        unknown = sorted(str(name) for name in grads if name not in self._tables)
        if unknown:
            raise ArgumentError(f"grads: expected names of {list(self._tables)}, got {unknown}")
        steps = {}
        for t, name, table in self._numbered():
            if name in grads:
                table._check_sparse(grads[name], f"grads[{name!r}]")
                steps[t] = (grads[name].indices, grads[name].values)
        with self._run.using(write=True):
            self._run.apply(steps)

    def per_sample_weights_grad(
        self,
        grad: object,
        indices: object,
        offsets: object = None,
        *,
        per_sample_weights: object = None,
        include_last_offset: bool = True,
        stream: int | None = None,
    ) -> FloatArray:
        """Gradient of the weights of a lookup, (L,) in the order of the batch's positions: as
        EmbeddingTable.per_sample_weights_grad.  Goes table by table; call it before `update`."""
        with self._run.using(write=False), self._run.on_stream(stream):
            batch = self._batch(indices, offsets, per_sample_weights, include_last_offset)
            grads = self._grads(grad, batch, False)
            host = self._run.on_host(batch)
            out = np.empty(len(host.indices), np.float32)
            for t, _, table in self._numbered():
                upstream, bags = self._run.grad_of(grads, t), self._bags_of(batch, t)
                found = table.per_sample_weights_grad(upstream, **bags, stream=stream)
                at = 0
                for f in self._run.features_of[t]:
                    begin, end = host.span(f)
                    out[begin:end] = found[at : at + end - begin]
                    at += end - begin
            result: FloatArray = self._run.as_result(out, batch)
        return result

    def _numbered(self) -> Iterator[tuple[int, str, EmbeddingTable]]:
        """The tables with their numbers in `_run`, in the order they were given."""
        number = {id(run): t for t, run in enumerate(self._run.runs)}
        return ((number[id(table._run)], name, table) for name, table in self._tables.items())

    def _need_optimizers(self) -> None:
        for name, table in self._tables.items():
            if table.optimizer is None:
                raise ArgumentError(
                    f"optimizer: table {name!r} was created without one, so it cannot be trained"
                )

    def _grads(self, grad: object, batch: Any, check_finite: bool) -> Any:
        return self._run.as_grads(grad, batch, self._names, self._dims, check_finite)


def _make_run(device: str, runs: Any, *arguments: Any) -> ManyExecution:
    """For the device that the tables are on."""
    if device == "cpu":
        return ManyExecution(runs, *arguments)
    from sparse_embed.collection_device import DeviceManyExecution

    return DeviceManyExecution(runs, *arguments)


def _of(value: Any, table: str, argument: str, tables: Mapping[str, object]) -> Any:
    """A value for all tables, or the one for this table out of a mapping."""
    if not isinstance(value, Mapping):
        return value
    unknown = sorted(str(name) for name in value if name not in tables)
    if unknown or table not in value:
        wrong = f"got {unknown}" if unknown else f"none for {table!r}"
        raise ArgumentError(f"{argument}: expected table names of {list(tables)}, {wrong}")
    return value[table]


__all__ = ["EmbeddingBagCollection", "KeyedBatch"]
