"""Checked batches on the rows of one table whose records lie on a GPU.

As `execution.Execution`, which it falls back on for what goes row by row through the host anyway
(`assign`, `state`, `export`).  Everything that asks for memory comes before the step that changes
rows, so that a full GPU leaves the table as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import chain, islice
from typing import Any

import numpy as np

from sparse_embed import _validate
from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.batch import Batch
from sparse_embed.cuda.arrays import DeviceArray, import_array, is_on_device
from sparse_embed.cuda.batch import DeviceBatch, as_device, make_device_batch, upload_batch
from sparse_embed.cuda.ops import Coefficients, DeviceOps, Merged, Records
from sparse_embed.device import DeviceMemory
from sparse_embed.execution import Execution
from sparse_embed.kernels.cuda.streams import Mark
from sparse_embed.optim import Optimizer
from sparse_embed.storage.store import StoreCore

_BLOCK_BYTES = 64 << 20
_SCORES = 1 << 24  # scores in memory at a time


@functools.cache
def ops_of(memory: DeviceMemory) -> DeviceOps:
    """The operations on a GPU; one for the process."""
    return DeviceOps(memory)


class DeviceExecution(Execution):
    """What EmbeddingTable's methods do on a GPU."""

    def __init__(self, core: StoreCore, name: str, memory: DeviceMemory) -> None:
        super().__init__(core, name)
        self.memory = memory
        self.ops = ops_of(memory)

    # ---- arguments and results ------------------------------------------------------------------

    def on_stream(self, stream: int | None) -> AbstractContextManager[None]:
        """Work is done on this stream inside."""
        return self.memory.on_stream(stream)

    def lookup_batch(self, *arguments: Any) -> Any:
        """Not checked yet: `lookup` waits for that when its own work is on the way."""
        return make_device_batch(self.ops, self.table.entry.num_embeddings, *arguments)

    def update_batch(self, *arguments: Any) -> Any:
        """Not checked yet: `update` waits for that before it changes anything."""
        return self.lookup_batch(*arguments)

    def make_batch(self, *arguments: Any) -> Any:
        batch = self.lookup_batch(*arguments)
        batch.check()
        return batch

    def as_grad(self, grad: object, batch: Any, check_finite: bool) -> Any:
        shape = (*batch.lead, self.dim)
        checked = as_device(self.ops, grad, shape, "grad", check_finite)
        return checked.reshape((batch.num_bags, self.dim))

    def result(self, array: Any, shape: tuple[int, ...], batch: Any) -> Any:
        """On the device when the indices came from there, else a NumPy array."""
        if batch.given:
            return DeviceArray(self.memory, array.reshape(shape), self.memory.stream_handle)
        return self.memory.download(array).reshape(shape)

    # ---- records --------------------------------------------------------------------------------

    def _on_device(self, records: Any, flags: Any) -> Records:
        return Records(records, flags, self.dim, self.init, self.seed, self.precision)

    def records(self) -> Records:
        """The resident rows."""
        resident: Any = self.table.rows.resident
        known: Records | None = resident.view
        if known is None or known.records is not resident.records:
            known = resident.view = self._on_device(resident.records, resident.flags)
        return known

    def _reach_device(self, batch: DeviceBatch) -> tuple[Records, Any] | None:
        """Records and slots by position, all brought in; None when they do not fit together."""
        resident: Any = self.table.rows.resident
        if not resident.complete:
            batch.check()
        slots = resident.bring(batch.indices, batch.padding)
        return None if slots is None else (self.records(), slots)

    def _host_rows(self, batch: DeviceBatch) -> tuple[IndexArray, IndexArray]:
        """The distinct rows of a batch, and which of them each position has (-1: padding)."""
        indices = self.memory.download(batch.indices)
        rows, inverse = np.unique(indices, return_inverse=True)
        if batch.has_padding:
            place = np.searchsorted(rows, batch.padding)
            if place < len(rows) and rows[place] == batch.padding:
                inverse = np.where(inverse == place, -1, inverse - (inverse > place))
                rows = np.delete(rows, place)
        return rows, inverse.astype(np.int64, copy=False)

    def _device_copies(self, batch: DeviceBatch) -> tuple[Records, Any]:
        """Copies of a batch's records, which need not fit the cache."""
        rows, inverse = self._host_rows(batch)
        data = self.table.rows.read(rows)
        records = self.memory.upload(data, "the rows of a batch")
        flags = self.memory.zeros(len(rows), np.uint8)
        return self._on_device(records, flags), self.memory.upload(np.maximum(inverse, 0))

    def _pieces(self, batch: DeviceBatch) -> Iterator[tuple[int, int, int, DeviceBatch]]:
        """(first bag, last bag, first position, part) of a batch that does not fit the cache."""
        host = self._host_batch(batch)
        step = max(1, _BLOCK_BYTES // self.table.rows.layout.record_bytes)
        first = 0
        while first < host.num_bags:
            begin, last = first, first + step
            if host.offsets is not None:
                begin = int(host.offsets[first])
                last = int(np.searchsorted(host.offsets, begin + step, side="right")) - 1
            last = min(max(last, first + 1), host.num_bags)
            part = host.part(first, last)
            yield first, last, begin, upload_batch(self.ops, part, part.indices.shape)
            first = last

    def _host_batch(self, batch: DeviceBatch) -> Batch:
        download = self.memory.download
        return Batch(
            indices=download(batch.indices),
            offsets=None if batch.offsets is None else download(batch.offsets),
            mode=batch.mode,
            weights=None if batch.weights is None else download(batch.weights),
            padding=batch.padding,
            has_padding=batch.has_padding,
            lead=batch.lead,
        )

    def _by_device_pieces(
        self,
        batch: DeviceBatch,
        dtype: Any,
        operation: Callable[[Records, Any, DeviceBatch, int], Any],
    ) -> Any:
        reached = self._reach_device(batch)
        if reached is not None:
            return operation(*reached, batch, 0)
        out = self.memory.empty((batch.num_bags, self.dim), dtype, "results")
        for first, last, begin, part in self._pieces(batch):
            found = operation(*self._device_copies(part), part, begin)
            self.memory.copy(out[first:last], found)
        return out

    def prefetch(self, indices: object, padding_idx: object, wait: bool) -> None:
        """Rows of the next batch are brought in beside the work in hand.  Row numbers on the device
        wait for what was asked of it before, those of the host do not."""
        resident: Any = self.table.rows.resident
        if not wait:
            if is_on_device(indices):
                array = import_array(self.memory, indices, np.int64, "indices")
                indices = self.memory.download(array)
            self.table.rows.read_ahead(self._prefetch_rows(indices, padding_idx))
        elif is_on_device(indices):
            batch = self.make_batch(indices, None, None, None, padding_idx, True)
            ready = Mark()
            self.memory.record(ready)
            resident.prefetch(batch.indices, batch.padding, ready)
        else:
            total = self.table.entry.num_embeddings
            rows = _validate.as_indices(indices, total, padding_idx).reshape(-1)
            resident.prefetch(rows, _validate.as_padding_idx(padding_idx))

    # ---- reading --------------------------------------------------------------------------------

    def lookup(self, batch: Any) -> Any:
        found = self._by_device_pieces(batch, np.float32, self._lookup_part)
        batch.check()
        return found

    def _lookup_part(self, rec: Records, slots: Any, batch: DeviceBatch, _begin: int) -> Any:
        if batch.offsets is None or batch.mode is None:
            return self.ops.lookup(rec, slots, batch.indices, batch.padding, batch.found)
        return self.ops.lookup_bags(
            rec, slots, batch.indices, batch.offsets, batch.weights, batch.mode, batch.padding,
            batch.found,
        )  # fmt: skip

    def argmax(self, batch: Any) -> Any:
        if batch.mode != "max" or batch.offsets is None:
            return None
        batch.check()
        return self._by_device_pieces(batch, np.int64, self._argmax_part)

    def _argmax_part(self, rec: Records, slots: Any, batch: DeviceBatch, begin: int) -> Any:
        found = self.ops.max_positions(rec, slots, batch.indices, batch.offsets, batch.padding)
        if begin:
            host = self.memory.download(found)
            host[host >= 0] += begin
            found = self.memory.upload(host)
        return found

    def _coefficients(self, batch: DeviceBatch) -> Coefficients:
        if batch.mode in ("mean", "sqrtn") or batch.num_bags == 0:
            batch.check()  # bags are walked through, or positions have none
        return self.ops.bag_coefficients(
            batch.indices, batch.offsets, batch.weights, batch.mode or "sum", batch.padding
        )

    def _merged(self, batch: DeviceBatch, shares: Coefficients) -> Merged:
        rows = self.table.entry.num_embeddings
        return self.ops.merge(batch.indices, batch.padding, rows, shares.bag_ids)

    def weights_grad(self, batch: Any, grad: Any) -> Any:
        records, slots = self._reach_device(batch) or self._device_copies(batch)
        bag_ids = self._coefficients(batch).bag_ids
        dots = self.ops.dots(records, slots, batch.indices, grad, bag_ids, batch.padding)
        return self.ops.weights_grad(
            dots, batch.indices, batch.offsets, batch.weights, str(batch.mode), batch.padding
        )

    def backward(self, batch: Any, grad: Any) -> tuple[IndexArray, FloatArray]:
        argmax = self.argmax(batch)
        shares = self._coefficients(batch)
        merged = self._merged(batch, shares)
        values = self.ops.backward(merged, shares, grad, argmax)
        return self.memory.download(merged.indices), self.memory.download(values)

    def nearest(
        self, queries: FloatArray, k: int, metric: str, rows: IndexArray | range
    ) -> tuple[IndexArray, FloatArray]:
        """Scores and the best of them are found on the device, a block of rows at a time."""
        found = min(k, len(rows))
        asked = self.memory.upload(queries)
        best = self.memory.upload(np.full((len(queries), found), -1, np.int64))
        scores = self.memory.zeros((len(queries), found), np.float32)
        block = max(1024, _SCORES // max(1, len(queries)))
        block = min(block, max(1, _BLOCK_BYTES // (4 * self.dim)))
        for begin in range(0, len(rows), block):
            part = np.asarray(rows[begin : begin + block], np.int64)
            batch = self.make_batch(part, None, None, None, None, True)
            weights = self.lookup(batch)
            new = self.ops.scores(weights, asked, metric)
            best, scores = self.ops.merge_top_k(new, batch.indices, metric, best, scores)
        return self.memory.download(best), self.memory.download(scores)

    # ---- changing -------------------------------------------------------------------------------

    def _step_on_device(
        self, rows: Any, prepare: Callable[[Records, Any, int, int], Callable[[], None]]
    ) -> None:
        """Make the changes that prepare(records, slots, u0, u1) returns for ranges of distinct
        rows; then the step counts.  The first range is prepared before anything is changed."""
        ranges = self._device_ranges(rows)
        first = [prepare(records, slots, *part) for records, slots, *part in islice(ranges, 1)]
        rest = (prepare(records, slots, *part) for records, slots, *part in ranges)
        with self._core.step():
            for change in chain(first, rest):
                change()
            self.table.step += 1

    def _device_ranges(self, rows: Any) -> Iterator[tuple[Records, Any, int, int]]:
        """(records, slots, u0, u1) of ranges of distinct rows, as `_ranges`."""
        resident: Any = self.table.rows.resident
        u0 = 0
        size = length = int(rows.shape[0])
        while u0 < length:
            u1 = min(u0 + size, length)
            slots = resident.bring(rows[u0:u1], -1)
            if slots is not None:
                yield self.records(), slots, u0, u1
                u0 = u1
            else:
                size = resident.capacity if size > resident.capacity else size // 2
                if size < 1:
                    raise AssertionError("not one row fits the cache")

    def update(self, batch: Any, grad: Any, optimizer: Optimizer) -> None:
        argmax = self.argmax(batch)
        resident: Any = self.table.rows.resident
        straight = resident.complete and argmax is None
        if straight:
            resident.bring(batch.indices, batch.padding)  # or what is on its way there
        else:
            batch.check()
        shares = self._coefficients(batch)
        merged = self._merged(batch, shares)
        step, lr = self.table.step + 1, self.table.lr

        def prepare(records: Records, slots: Any, u0: int, u1: int) -> Callable[[], None]:
            return self.ops.prepare_update(
                records, slots, merged, u0, u1, shares, grad, None, optimizer, step, lr
            )

        if straight:  # nobody on the host needs to know how many rows it is
            most = int(batch.indices.shape[0])
            change = prepare(self.records(), merged.all_indices, 0, most)
            batch.check()
            with self._core.step():
                change()
                self.table.step += 1
            return
        if argmax is not None:
            values = self.ops.backward(merged, shares, grad, argmax)
            self._apply(merged.indices, values, optimizer)
            return
        self._step_on_device(merged.indices, prepare)

    def apply(self, rows: IndexArray, values: FloatArray, optimizer: Optimizer) -> None:
        self._apply(self.memory.upload(rows), self.memory.upload(values), optimizer)

    def _apply(self, rows: Any, values: Any, optimizer: Optimizer) -> None:
        step, lr = self.table.step + 1, self.table.lr
        self._step_on_device(
            rows,
            lambda records, slots, u0, u1: self.ops.prepare_apply(
                records, slots, rows[u0:u1], values[u0:u1], optimizer, step, lr
            ),
        )
