"""Checked batches of many features on the rows of many tables, all in one call of each kernel.

A table that the kernels cannot reach (its cache is smaller than the batch, "max" is to be trained,
row numbers of all tables together pass 2^62, not all of it is float32) is run by its own
`Execution`, with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np

from sparse_embed import _validate, ops, ops_many
from sparse_embed._typing import MODES, NO_PADDING, AnyArray, FloatArray, IndexArray
from sparse_embed._validate import as_padding_idx
from sparse_embed.batch import Batch
from sparse_embed.collection_batch import KeyedBatch, make_keyed_batch
from sparse_embed.cuda.arrays import refuse_device_array
from sparse_embed.dtypes import FLOAT32
from sparse_embed.errors import ArgumentError
from sparse_embed.execution import Execution
from sparse_embed.optim import Optimizer
from sparse_embed.storage.store import StoreCore

_MOST_KEYS = 2**62
_ARRAYS = ("indices", "offsets", "per_sample_weights")  # the first arguments of a batch
_NO_SCALARS: FloatArray = np.zeros(9, np.float32)


class Columns(Sequence[FloatArray]):
    """The columns of each feature in one matrix (B, output_dim): views, made when asked for.

    starts: (F + 1,) first column of each feature.
    """

    def __init__(self, matrix: FloatArray, starts: IndexArray) -> None:
        self._matrix = matrix
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, f: Any) -> Any:
        begin, end = self._starts[f : f + 2]
        return self._matrix[:, begin:end]

    def places(self) -> tuple[IndexArray, IndexArray]:
        """As the function of this name."""
        at = ops_many.address(self._matrix) + self._matrix.itemsize * self._starts[:-1]
        return at, np.full(len(at), self._matrix.strides[0])


class ManyExecution:
    """What EmbeddingBagCollection's methods do once their arguments are checked.

    Args:
        runs: one for each table.
        table_of: (F,) the table of each feature.
        modes, paddings: of each table.
    """

    def __init__(
        self,
        runs: Sequence[Execution],
        table_of: Sequence[int],
        modes: Sequence[str],
        paddings: Sequence[int | None],
    ) -> None:
        names = [run.optimizer.name if run.optimizer is not None else "" for run in runs]
        # Keys of one kernel lie together: tables are numbered here by (dim, optimizer).  Multiples
        # of 4 first: matrices of their rows, one behind the other, begin at 16 bytes.
        order = sorted(range(len(runs)), key=lambda t: (runs[t].dim % 4 > 0, runs[t].dim, names[t]))
        place = {t: i for i, t in enumerate(order)}
        self.runs = [runs[t] for t in order]
        self.modes = [modes[t] for t in order]
        self.paddings = [paddings[t] for t in order]
        self.table_of = [place[t] for t in table_of]
        self.features_of = [
            [f for f, t in enumerate(self.table_of) if t == i] for i in range(len(order))
        ]
        self.cores: list[StoreCore] = sorted({run._core for run in runs}, key=id)
        rows = [run.table.entry.num_embeddings for run in self.runs]
        self._few = sum(rows) < _MOST_KEYS
        starts = np.concatenate([[0], np.cumsum(rows if self._few else [0] * len(rows))])
        self.key_starts: IndexArray = starts.astype(np.int64)
        self.features = self._describe_features(rows)
        self.dims = tuple(sorted({run.dim for run in self.runs}))
        self._columns = np.concatenate([[0], np.cumsum(self.features.dims)])
        self._groups = self._cut_groups([names[t] for t in order])
        self._where = np.zeros((len(runs), ops_many.FIELDS), np.int64)
        self._seen: list[tuple[object, object, object]] = [(None, None, None)] * len(runs)
        optimizers: dict[Optimizer | None, Optimizer | None] = {}
        self._optimizers = [optimizers.setdefault(r.optimizer, r.optimizer) for r in self.runs]
        self._constants = (
            np.array([run.seed for run in self.runs], np.uint64),
            np.array([run.init.kind for run in self.runs], np.int64),
            np.array([run.init.param for run in self.runs], np.float32),
        )

    def _describe_features(self, rows: Sequence[int]) -> ops_many.Features:
        tables = self.table_of
        paddings = [self.paddings[t] for t in tables]
        numbers = [NO_PADDING if p is None else as_padding_idx(p) for p in paddings]
        runs = [self.runs[t] for t in tables]
        return ops_many.Features(
            key_base=self.key_starts[tables],
            rows=np.array([rows[t] for t in tables], np.uint64),
            padding=np.array(numbers, np.int64),
            has_padding=np.array([p is not None for p in paddings], np.uint8),
            modes=np.array([MODES.index(self.modes[t]) for t in tables], np.int64),
            dims=np.array([run.dim for run in runs], np.int64),
            seeds=np.array([run.seed for run in runs], np.uint64),
            init_kinds=np.array([run.init.kind for run in runs], np.int64),
            init_params=np.array([run.init.param for run in runs], np.float32),
        )

    def _cut_groups(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """[begin, end) of tables that one update kernel takes."""
        kinds = [(run.dim, name) for run, name in zip(self.runs, names, strict=True)]
        cuts = [t for t in range(len(kinds)) if t == 0 or kinds[t] != kinds[t - 1]]
        return list(zip(cuts, [*cuts[1:], len(kinds)], strict=True))

    # ---- arguments and results, which `collection_device` has on a GPU ---------------------------

    def on_stream(self, stream: int | None) -> AbstractContextManager[None]:
        """Raises ArgumentError: only a GPU has streams."""
        return self.runs[0].on_stream(stream)

    def make_batch(self, owner: object, names: Sequence[str], *arguments: Any) -> Any:
        """The checked batch of a call; arguments from indices on."""
        for argument, value in zip(_ARRAYS, arguments, strict=False):
            refuse_device_array(argument, value)
        modes = [self.modes[t] for t in self.table_of]
        paddings = [self.paddings[t] for t in self.table_of]
        return make_keyed_batch(owner, names, self.features, paddings, modes, *arguments)

    def as_grads(
        self, grad: Any, batch: Any, names: Sequence[str], dims: Sequence[int], check_finite: bool
    ) -> Any:
        """The checked gradient of each feature: (B, D)."""
        size = batch.batch_size
        if not isinstance(grad, Mapping):
            refuse_device_array("grad", grad)
            shape = (size, sum(dims))
            matrix = _validate.as_grad(grad, shape, check_finite=check_finite)
            return Columns(matrix, self._columns)
        if set(grad) != set(names):
            raise ArgumentError(f"grad: expected the features {list(names)}, got {list(grad)}")
        return [
            _validate.as_grad(
                grad[name], (size, dim), check_finite=check_finite, name=f"grad[{name!r}]"
            )
            for name, dim in zip(names, dims, strict=True)
        ]

    def as_result(self, array: Any, batch: Any) -> Any:
        """An operation's result as the user gets it."""
        return array

    def split(self, bags: Any, dims: Sequence[int]) -> list[Any]:
        """The columns of each feature, as views."""
        ends = np.cumsum(dims).tolist()
        return [bags[:, end - dim : end] for end, dim in zip(ends, dims, strict=True)]

    def on_host(self, batch: Any) -> KeyedBatch:
        """The batch in the host's memory."""
        found: KeyedBatch = batch
        return found

    @contextmanager
    def using(self, write: bool) -> Iterator[None]:
        """Hold the stores of all tables."""
        with ExitStack() as stack:
            for core in self.cores:
                stack.enter_context(core.using(write=write))
            yield

    # ---- where rows are -------------------------------------------------------------------------

    def _locate(self) -> IndexArray:
        """(T, FIELDS): where each table's rows are now."""
        for t, run in enumerate(self.runs):
            resident = run.table.rows.resident
            index, seen = resident.index, self._seen[t]
            if seen[0] is resident and seen[1] is resident.records and seen[2] is index:
                continue
            self._seen[t] = (resident, resident.records, index)
            if not self._few or not _is_plain(run, resident.records):
                self._where[t] = (ops_many.AWAY, 0, 0, 0, 0, 0)
                continue
            kind, index_at, mask = ops_many.ALL, 0, 0
            if index is not None:
                kind = ops_many.INDEXED if index.ndim == 2 else ops_many.PRESENT
                index_at, mask = ops_many.address(index), len(index) - 1
            self._where[t] = (
                kind, ops_many.address(resident.records), run.table.rows.layout.record_bytes,
                ops_many.address(resident.flags), index_at, mask,
            )  # fmt: skip
        return self._where

    def _find(
        self, keys: IndexArray, *, flags: bool, skipped: Iterable[int] = ()
    ) -> tuple[ops_many.Found, list[int]]:
        """Bring the rows in; where they are, and the tables that are not reached this way.

        flags: also where their flags are.
        """
        where = self._locate()
        skipped = list(skipped)
        if skipped:
            where = where.copy()
            where[skipped, 0] = ops_many.AWAY
        found = ops_many.find(keys, self.key_starts, where, flags)
        if found.missing.any():
            large = []
            for t in np.flatnonzero(found.missing).tolist():
                low, high = self.key_starts[t], self.key_starts[t + 1]
                rows = keys[(keys >= low) & (keys < high)] - low
                if self.runs[t].table.rows.resident.slots(rows) is None:
                    large.append(t)
            where = self._locate().copy()
            where[[*skipped, *large], 0] = ops_many.AWAY
            found = ops_many.find(keys, self.key_starts, where, flags)
            assert not found.missing.any()
        return found, np.flatnonzero(where[:, 0] == ops_many.AWAY).tolist()

    # ---- reading --------------------------------------------------------------------------------

    def pooled(self, batch: Any, width: int) -> Any:
        """(B, width): the bags of all features side by side."""
        out = np.empty((batch.batch_size, width), np.float32)
        self.lookup(batch, Columns(out, self._columns))
        return out

    def lookup(self, batch: KeyedBatch, outs: Sequence[FloatArray]) -> None:
        """outs[f] (B, D): the bags of feature f; rows may lie apart, columns not."""
        if batch.batch_size == 0:
            return
        found, away = self._find(batch.bags.keys, flags=False)
        if len(away) < len(self.runs):
            ops_many.lookup(self.features, batch.bags, found, self.dims, *places(outs))
        for t in away:
            part = self.part(batch, t)
            pooled = self.runs[t].lookup(part)
            for i, f in enumerate(self.features_of[t]):
                outs[f][:] = pooled[i * batch.batch_size : (i + 1) * batch.batch_size]

    def part(self, batch: KeyedBatch, t: int) -> Batch:
        """The batch of one table: its features one behind the other."""
        return batch.part(self.features_of[t], self.modes[t], self.paddings[t])

    # ---- changing -------------------------------------------------------------------------------

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a change of rows: all of it happens in all stores, or they are failed."""
        with ExitStack() as stack:
            for core in self.cores:
                stack.enter_context(core.step())
            yield

    def update(
        self,
        batch: KeyedBatch,
        grads: Sequence[FloatArray],
        tables: Sequence[int] | None = None,
    ) -> None:
        """One fused step of each table (or only of these, numbered as `runs`).

        Args:
            grads: (B, D) of each feature; rows may lie apart, columns not.
        """
        chosen = set(range(len(self.runs)) if tables is None else tables)
        skipped = [t for t in range(len(self.runs)) if t not in chosen or self.modes[t] == "max"]
        keys = batch.bags.keys if self._few else batch.bags.keys[:0]
        merged, shares = ops.merge_gradient(keys, ops_many.NO_KEY, batch.bags.coefficients)
        found, away = self._find(merged.indices, flags=True, skipped=skipped)
        near = sorted(chosen - set(away))
        scalars = self._scalars(near)
        cuts = np.searchsorted(merged.indices, self.key_starts)
        grad_at, grad_step = places(grads)
        with self.step():
            for t in sorted(chosen & set(away)):
                self._update_alone(batch, grads, t)
            for begin, end in self._groups:
                optimizer = self._optimizers[begin]
                if optimizer is not None:
                    ops_many.update(
                        batch.batch_size, merged, shares, found, int(cuts[begin]), int(cuts[end]),
                        self.key_starts, (scalars, *self._constants), self.runs[begin].dim,
                        optimizer.name, grad_at, grad_step,
                    )  # fmt: skip
            for t in near:
                self.runs[t].table.step += 1

    def _scalars(self, tables: Iterable[int]) -> FloatArray:
        """(T, 9): what the optimizers need at this step."""
        rows = [_NO_SCALARS] * len(self.runs)
        known: dict[tuple[int, int, float], FloatArray] = {}
        for t in tables:
            optimizer, table = self._optimizers[t], self.runs[t].table
            assert optimizer is not None
            key = (id(optimizer), table.step + 1, table.lr)
            if key not in known:
                known[key] = optimizer.scalars(table.step + 1, table.lr)
            rows[t] = known[key]
        return np.array(rows)

    def _update_alone(self, batch: KeyedBatch, grads: Sequence[FloatArray], t: int) -> None:
        optimizer = self.runs[t].optimizer
        assert optimizer is not None
        self.runs[t].update(self.part(batch, t), self.grad_of(grads, t), optimizer)

    def grad_of(self, grads: Sequence[FloatArray], t: int) -> FloatArray:
        """The upstream gradient of one table's bags, as `part` has them."""
        return np.concatenate([grads[f] for f in self.features_of[t]])

    def apply(self, grads: Mapping[int, tuple[IndexArray, FloatArray]]) -> None:
        """One step of each of these tables with merged gradients: rows and values."""
        with self.step():
            for t, (rows, values) in grads.items():
                optimizer = self.runs[t].optimizer
                assert optimizer is not None
                self.runs[t].apply(rows, values, optimizer)


def _is_plain(run: Execution, records: AnyArray) -> bool:
    """Records of float32, weight and state, as the kernels take them."""
    return records.dtype == np.float32 and run.precision == FLOAT32


def places(arrays: Sequence[FloatArray]) -> tuple[IndexArray, IndexArray]:
    """Address of the first row, and bytes from row to row, of each array."""
    if isinstance(arrays, Columns):
        return arrays.places()
    at = np.array([ops_many.address(array) for array in arrays], np.int64)
    return at, np.array([array.strides[0] for array in arrays], np.int64)
