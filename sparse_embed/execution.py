"""Checked batches on the rows of one table, whose cache may be smaller than a batch.

Reads of a batch that does not fit go piece by piece through copies that are not kept; changes go by
ranges of unique rows, each of which fits.  Either way the bits are those of one call.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np

from sparse_embed import _validate, nearest, ops
from sparse_embed._typing import ByteArray, FloatArray, IndexArray
from sparse_embed.batch import Batch, make_batch
from sparse_embed.cuda.arrays import refuse_device_array
from sparse_embed.dtypes import narrow, widen
from sparse_embed.errors import ArgumentError, CorruptStoreError, UnsupportedVersionError
from sparse_embed.initializers import Initializer, initializer_from_dict
from sparse_embed.optim import Optimizer, StateField, optimizer_from_dict
from sparse_embed.storage.store import StoreCore, TableCore

_BLOCK_BYTES = 16 << 20
_ARRAYS = ("indices", "offsets", "mode", "per_sample_weights")  # the first arguments of a batch


class Execution:
    """What EmbeddingTable's methods do once their arguments are checked and the store is held."""

    def __init__(self, core: StoreCore, name: str) -> None:
        """Raises UnsupportedVersionError or CorruptStoreError when the entry in store.json does not
        describe a table that this package can run."""
        self._core = core
        self._name = name
        entry = core.tables[name].entry
        self.dim = entry.embedding_dim
        self.seed = entry.seed
        try:
            self.init: Initializer = initializer_from_dict(entry.init)
            self.optimizer: Optimizer | None = (
                None if entry.optimizer is None else optimizer_from_dict(entry.optimizer)
            )
        except ArgumentError as error:
            raise UnsupportedVersionError(
                errno.ENOTSUP,
                f"table {name!r}: this package does not know its init or optimizer ({error})",
            ) from None
        self.precision = entry.precision
        self.state_fields = self.optimizer.state_fields(self.dim) if self.optimizer else ()
        if tuple((field.name, field.lanes) for field in self.state_fields) != entry.fields:
            raise CorruptStoreError(
                errno.EINVAL,
                f"table {name!r}: its records hold {entry.fields}, "
                f"its optimizer needs {self.state_fields}",
            )

    @property
    def table(self) -> TableCore:
        """The table's place in storage (a reader's `refresh` replaces it)."""
        return self._core.tables[self._name]

    # ---- arguments and results, which `cuda.execution` has on a GPU ------------------------------

    def on_stream(self, stream: int | None) -> AbstractContextManager[None]:
        """Raises ArgumentError: only a GPU has streams."""
        if stream is not None:
            raise ArgumentError("stream: only tables on a GPU take one; this one is on the CPU")
        return nullcontext()

    def make_batch(self, *arguments: Any) -> Any:
        """The checked batch of a call; arguments as in `batch.make_batch`, from indices on."""
        for argument, value in zip(_ARRAYS, arguments, strict=False):
            refuse_device_array(argument, value)
        return make_batch(self.table.entry.num_embeddings, *arguments)

    def lookup_batch(self, *arguments: Any) -> Any:
        """As `make_batch`; the pooling kernel may be left to check the range of the indices."""
        for argument, value in zip(_ARRAYS, arguments, strict=False):
            refuse_device_array(argument, value)
        return make_batch(self.table.entry.num_embeddings, *(*arguments, True))  # later

    def update_batch(self, *arguments: Any) -> Any:
        """As `make_batch`; `update` may be left to check what lies on a GPU."""
        return self.make_batch(*arguments)

    def as_grad(self, grad: object, batch: Any, check_finite: bool) -> Any:
        """(B, D) the checked gradient of a batch's result."""
        refuse_device_array("grad", grad)
        checked = _validate.as_grad(grad, (*batch.lead, self.dim), check_finite=check_finite)
        return checked.reshape(batch.num_bags, self.dim)

    def result(self, array: Any, shape: tuple[int, ...], batch: Any) -> Any:
        """An operation's result as the user gets it."""
        return array.reshape(shape)

    # ---- records --------------------------------------------------------------------------------

    def _resident(self) -> ops.Records:
        resident = self.table.rows.resident
        return self._records(resident.records, resident.flags)

    def _records(self, records: FloatArray, flags: ByteArray) -> ops.Records:
        return ops.Records(records, flags, self.dim, self.init, self.seed, self.precision)

    def _copies(self, rows: IndexArray) -> tuple[ops.Records, IndexArray]:
        """Records of `rows` that are not kept in memory, and the slot of each row among them."""
        unique, inverse = np.unique(rows, return_inverse=True)
        records = self.table.rows.read(unique)
        found = self._records(records, np.zeros(len(records), np.uint8))
        return found, inverse.astype(np.int64, copy=False)

    def _reach(self, batch: Batch) -> tuple[ops.Records, IndexArray] | None:
        """Records and slots by position when the batch fits the cache."""
        slots = self.table.rows.resident.slots(batch.rows)
        return None if slots is None else (self._resident(), batch.slots(slots))

    def _reach_copies(self, batch: Batch) -> tuple[ops.Records, IndexArray]:
        records, slots = self._copies(batch.rows)
        return records, batch.slots(slots)

    def _by_pieces(
        self,
        batch: Batch,
        dtype: type[np.generic],
        operation: Callable[[ops.Records, IndexArray, Batch, int], np.ndarray],
    ) -> np.ndarray:
        """(B, D): [bags] = operation(records, slots, part, position of the part's first index)."""
        if batch.unchecked and not self.table.rows.resident.whole:
            batch.check()
            batch = replace(batch, unchecked=False)
        reached = self._reach(batch)
        if reached is not None:
            return operation(*reached, batch, 0)
        out = np.empty((batch.num_bags, self.dim), dtype)
        step = max(1, _BLOCK_BYTES // self.table.rows.layout.record_bytes)
        first = 0
        while first < batch.num_bags:
            begin, last = first, first + step
            if batch.offsets is not None:
                begin = int(batch.offsets[first])
                last = int(np.searchsorted(batch.offsets, begin + step, side="right")) - 1
            last = min(max(last, first + 1), batch.num_bags)
            part = batch.part(first, last)
            out[first:last] = operation(*self._reach_copies(part), part, begin)
            first = last
        return out

    def prefetch(self, indices: object, padding_idx: object, wait: bool) -> None:
        """See `EmbeddingTable.prefetch`."""
        rows = self._prefetch_rows(indices, padding_idx)
        resident = self.table.rows.resident
        if wait:
            resident.slots(rows[: resident.capacity])
        else:
            self.table.rows.read_ahead(rows[: resident.capacity])

    def _prefetch_rows(self, indices: object, padding_idx: object) -> IndexArray:
        """The distinct rows of any array of indices, ascending."""
        total = self.table.entry.num_embeddings
        rows = np.unique(_validate.as_indices(indices, total, padding_idx))
        kept: IndexArray = rows[rows != _validate.as_padding_idx(padding_idx)]
        return kept

    # ---- reading --------------------------------------------------------------------------------

    def lookup(self, batch: Batch) -> FloatArray:
        """(B, D) bags, or (L, D) rows of an unpooled batch."""
        return self._by_pieces(batch, np.float32, _lookup)

    def argmax(self, batch: Batch) -> IndexArray | None:
        """For mode "max": which position each column of each bag comes from.  Else None."""
        if batch.mode != "max" or batch.offsets is None:
            return None
        return self._by_pieces(batch, np.int64, _max_positions)

    def dots(self, batch: Batch, grad: FloatArray) -> FloatArray:
        """(L,) <grad[bag of k], weight[indices[k]]>."""
        records, slots = self._reach(batch) or self._reach_copies(batch)
        bag_ids = coefficients(batch).bag_ids
        return ops.dots(records, slots, batch.indices, grad, bag_ids, batch.padding)

    def weights_grad(self, batch: Any, grad: Any) -> Any:
        """(L,) the gradient of the weights of a batch."""
        dots = self.dots(batch, grad)
        return ops.weights_grad(
            dots, batch.indices, batch.offsets, batch.weights, str(batch.mode), batch.padding
        )

    def backward(self, batch: Any, grad: Any) -> tuple[IndexArray, FloatArray]:
        """The merged gradient: sorted row numbers (U,) and values (U, D)."""
        argmax = self.argmax(batch)
        merged, shares = _merged(batch)
        return merged.indices, ops.backward(merged, shares, grad, argmax)

    def nearest(
        self, queries: FloatArray, k: int, metric: str, rows: IndexArray | range
    ) -> tuple[IndexArray, FloatArray]:
        """The best rows of each query; see `nearest.search`."""
        return nearest.search(queries, k, metric, rows, self.weights_of)

    def weights_of(self, rows: IndexArray) -> FloatArray:
        """(n, D) weights of rows, without bringing them into the cache."""
        records, slots = self._copies(rows)
        return ops.lookup(records, slots, rows, ops.NO_PADDING)

    def state(self, rows: IndexArray) -> dict[str, FloatArray]:
        """Field name -> (n, lanes); the field's first value where a row was never written."""
        layout = self.table.rows.layout
        records, slots = self._copies(rows)
        data = records.records[slots]
        virgin = ~layout.written(data)
        fields = layout.structured(data)
        found: dict[str, FloatArray] = {}
        for field in self.state_fields:
            dtype = self.precision.of_field(field.lanes)
            values = widen(fields[field.name], dtype).reshape(len(rows), field.lanes).copy()
            values[virgin] = self._first_state(field)
            found[field.name] = values
        return found

    def _first_state(self, field: StateField) -> FloatArray:
        """A state's first value, as the record can hold it."""
        dtype = self.precision.of_field(field.lanes)
        return widen(narrow(np.array([field.fill], np.float32), dtype), dtype)

    # ---- changing -------------------------------------------------------------------------------

    def _ranges(self, rows: IndexArray) -> Iterator[tuple[int, int, IndexArray]]:
        """(u0, u1, slots) of ranges of distinct rows, each brought in when it is asked for.

        How many rows fit may change on the way (indexes grow as rows are moved out), so a range
        that does not fit is halved.
        """
        resident = self.table.rows.resident
        u0, size = 0, len(rows)
        while u0 < len(rows):
            size = min(size, resident.capacity)
            u1 = min(u0 + size, len(rows))
            slots = resident.slots(rows[u0:u1])
            if slots is not None:
                yield u0, u1, slots
                u0 = u1
            elif size > 1:
                size //= 2
            else:
                raise AssertionError("not one row fits the cache")

    def _step(
        self, rows: IndexArray, change: Callable[[ops.Records, IndexArray, int, int], None]
    ) -> None:
        """Call change(records, slots, u0, u1) for ranges of `rows`; then the step counts.

        The first range is brought in before anything is changed: an error there costs nothing.
        """
        ranges = self._ranges(rows)
        first = list(islice(ranges, 1))
        with self._core.step():
            for u0, u1, slots in chain(first, ranges):
                change(self._resident(), slots, u0, u1)
            self.table.step += 1

    def update(self, batch: Batch, grad: FloatArray, optimizer: Optimizer) -> None:
        """One fused step."""
        argmax = self.argmax(batch)
        merged, shares = _merged(batch)
        step, lr = self.table.step + 1, self.table.lr
        self._step(
            merged.indices,
            lambda records, slots, u0, u1: ops.update(
                records, slots, merged, u0, u1, shares, grad, argmax, optimizer, step, lr
            ),
        )

    def apply(self, rows: IndexArray, values: FloatArray, optimizer: Optimizer) -> None:
        """One step with merged gradients."""
        step, lr = self.table.step + 1, self.table.lr
        self._step(
            rows,
            lambda records, slots, u0, u1: ops.apply(
                records, slots, rows[u0:u1], values[u0:u1], optimizer, step, lr
            ),
        )

    def assign(
        self, rows: IndexArray, weights: FloatArray, state: Mapping[str, FloatArray]
    ) -> None:
        """Set distinct rows, and those state fields that are given."""
        layout = self.table.rows.layout
        with self._core.step():
            for u0, u1, slots in self._ranges(rows):
                data = np.empty((u1 - u0, layout.lanes), np.float32)
                self.table.rows.resident.gather(slots, data)
                virgin = ~layout.written(data)
                fields = layout.structured(data)
                fields["weight"] = narrow(weights[u0:u1], self.precision.dtype)
                for field in self.state_fields:
                    dtype = self.precision.of_field(field.lanes)
                    lanes = fields[field.name].reshape(len(data), field.lanes)
                    lanes[virgin] = narrow(self._first_state(field), dtype)
                    if field.name in state:
                        lanes[:] = narrow(state[field.name][u0:u1], dtype)
                layout.keep_written(data)
                self.table.rows.resident.put(slots, data)

    def reset(self, rows: IndexArray) -> None:
        """Make distinct rows virgin again."""
        lanes = self.table.rows.layout.lanes
        with self._core.step():
            for u0, u1, slots in self._ranges(rows):
                self.table.rows.resident.put(slots, np.zeros((u1 - u0, lanes), np.float32))


def coefficients(batch: Batch) -> ops.Coefficients:
    """By how much each position enters its bag."""
    return ops.bag_coefficients(
        batch.indices, batch.offsets, batch.weights, batch.mode or "sum", batch.padding
    )


def _merged(batch: Batch) -> tuple[ops.Merged, ops.Coefficients]:
    """The unique rows of a batch, and by how much each of their entries counts."""
    shares = coefficients(batch)
    if batch.mode == "max":
        return ops.merge(batch.indices, batch.padding), shares
    return ops.merge_gradient(batch.indices, batch.padding, shares)


def _lookup(records: ops.Records, slots: IndexArray, batch: Batch, _begin: int) -> FloatArray:
    if batch.offsets is None or batch.mode is None:
        return ops.lookup(records, slots, batch.indices, batch.padding)
    limit = batch.num_embeddings if batch.unchecked else None
    where = records, slots, batch.indices, batch.offsets
    try:
        return ops.lookup_bags(
            *where, batch.weights, batch.mode, batch.padding, limit, batch.bounds
        )
    except ops.OutsideError:
        batch.check()
        raise


def _max_positions(records: ops.Records, slots: IndexArray, batch: Batch, begin: int) -> IndexArray:
    assert batch.offsets is not None
    found = ops.max_positions(records, slots, batch.indices, batch.offsets, batch.padding)
    if begin:
        found[found >= 0] += begin
    return found
