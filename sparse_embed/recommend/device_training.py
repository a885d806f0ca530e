"""A batch of each objective on a GPU: draws, rows, gradients and updates without leaving it.

Rows come and go through the public tables, as arrays of the device; the loss alone, a number a
chunk, is copied to the host.  The bits are those of a fit on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_embed import ops
from sparse_embed.cuda.arrays import DeviceArray
from sparse_embed.cuda.execution import ops_of
from sparse_embed.cuda.ops import Coefficients
from sparse_embed.device import DeviceMemory
from sparse_embed.kernels._jit import counter_of_items
from sparse_embed.kernels.bpr import places_cpu
from sparse_embed.kernels.cuda import bpr as _bpr
from sparse_embed.kernels.cuda import contrast as _contrast
from sparse_embed.kernels.cuda.records import take_cuda
from sparse_embed.recommend.device_sampling import DeviceSampler, raw
from sparse_embed.recommend.sampling import TILE, Sampler
from sparse_embed.table import EmbeddingTable

if TYPE_CHECKING:
    from sparse_embed.recommend.base import FactorModel

_LOSSES = 256  # added by one thread


class DeviceTraining:
    """What both kinds of objectives need: the device, the tables, dropout, the loss."""

    def __init__(self, memory: DeviceMemory, sampler: Sampler, model: FactorModel) -> None:
        """model: a fit of it begins."""
        self._memory = memory
        self._sampler = DeviceSampler(sampler, memory)
        self._users, self._items = model.users, model.items
        self._dim = model.embedding_dim
        self._reg = np.float32(model._l2)
        self._dropout = model.dropout
        self._ops = ops_of(memory)

    def _given(self, array: Any) -> DeviceArray:
        return DeviceArray(self._memory, array)

    def _rows(
        self, table: EmbeddingTable, ids: Any, *bags: Any, **how: Any
    ) -> tuple[DeviceArray, Any]:
        """A lookup's result, and the same as kernels take it."""
        found: Any = table.lookup(self._given(ids), *bags, **how)
        return found, raw(self._memory, found)

    def _groups(self, kernel: Any, rows: int, *args: Any) -> None:
        """Start a kernel in which a group of lanes takes a row."""
        lanes = _bpr.LANES
        self._memory.launch(kernel, lanes.blocks(rows), lanes.threads, *args)

    def _drop(self, seed: int, start: int, users: Any) -> Any:
        """Drop numbers of users' vectors, in place; the mask for their gradient, or None."""
        if self._dropout == 0:
            return None
        shape = (int(users.shape[0]), self._dim)
        numbers = shape[0] * shape[1]
        mask = self._ops.dropout_scale(seed, start, numbers, self._dropout).reshape(shape)
        self._scale(users, mask)
        return mask

    def _scale(self, rows: Any, mask: Any) -> None:
        if mask is not None:
            self._memory.each(_bpr.scale_columns_cuda(), mask.size, rows, mask)

    def _sum(self, losses: Any, size: int) -> float:
        """By chunks of `size` on the device, their sums on the host."""
        chunks = -(-int(losses.shape[0]) // size)
        sums = self._memory.work("losses of chunks", chunks, np.float64)
        self._memory.each(_bpr.sum_losses_cuda(), chunks, losses, size, sums)
        return float(self._memory.download(sums).sum())


class DeviceBPR(DeviceTraining):
    """`BPR._train_on_host` on a GPU.  The CPU draws a batch and finds its distinct rows."""

    def __init__(
        self, memory: DeviceMemory, sampler: Sampler, model: FactorModel, step: int
    ) -> None:
        """step: interactions of a batch."""
        super().__init__(memory, sampler, model)
        self._host_sampler, self._step = sampler, step

    def train(self, epoch: int, seed: int, start: int, stop: int) -> float:
        """Update both tables by the batch that begins with interaction `start`; its summed loss.

        seed: of dropout in this epoch.
        """
        memory, batch = self._memory, self._host_sampler.triplets(epoch, start, self._step)
        number, length, against = len(batch.users), len(batch.taken), len(batch.negatives)
        merged = ops.merge(batch.columns, ops.NO_PADDING)
        catalogue = self._host_sampler.interactions.catalogue
        places = np.empty_like(batch.columns)
        places_cpu()(merged.starts, merged.positions, counter_of_items(len(places)), places)
        owners = np.repeat(np.arange(number), np.diff(batch.starts))
        edges = np.append(batch.starts[:-1:TILE], length)
        tile = np.repeat(np.arange(len(edges) - 1), np.diff(batch.tiles))
        users, starts, opponents, rows, bags, firsts, lasts, items = (
            memory.upload(np.ascontiguousarray(array, np.int64), "a batch")
            for array in (
                batch.users, batch.starts, batch.opponents, places,
                np.concatenate([owners, np.arange(number, number + against)]),
                edges[tile], edges[tile + 1], catalogue[merged.indices],
            )
        )  # fmt: skip
        _user_rows, p = self._rows(self._users, users)
        mask = self._drop(seed, start, p)
        _item_rows, q = self._rows(self._items, items)
        width = self._dim + 1
        shares = memory.empty(length + against, np.float32)
        losses = memory.work("losses", length, np.float32)
        differences = memory.work("differences", length * width, np.float32)
        differences = differences.reshape((length, width))
        grad = memory.empty((number, width), np.float32)
        upstream = memory.empty((number + against, width), np.float32)
        memory.each(_bpr.differences_cuda(), length * width, q, rows, opponents, differences)
        self._groups(
            _bpr.slopes_cuda(self._dim), length, p, bags, differences, opponents, shares, losses
        )
        memory.each(
            _bpr.user_sums_cuda(), grad.size, self._reg, starts, p, differences, shares, grad
        )
        memory.each(
            _bpr.upstream_cuda(), upstream.size, p, bags, opponents, firsts, lasts, shares, upstream
        )
        segments = memory.upload(merged.starts)
        entries = self._ops.merge(memory.upload(batch.columns), ops.NO_PADDING)
        found = self._ops.backward(entries, Coefficients(bags, shares, None), upstream, None)
        memory.each(_bpr.penalize_cuda(), found.size, self._reg, segments, q, found)
        self._scale(grad, mask)
        self._users.update(self._given(grad), self._given(users))
        self._items.update(self._given(found), self._given(items))
        return self._sum(losses, _LOSSES)


class DeviceContrast(DeviceTraining):
    """`ContrastModel._train_on_host` on a GPU."""

    def set_loss(
        self,
        name: str,
        cosine: bool,
        numbers: tuple[float, float],
        num_negatives: int,
        in_batch: bool,
        offset_of: np.ndarray | None,
    ) -> None:
        """Which of `kernels/contrast_losses.py`, and what it needs to know."""
        self._unit = cosine
        self._loss = _contrast.slopes_cuda(name)
        self._a, self._b = map(np.float32, numbers)
        self._number = num_negatives
        self._in_batch = in_batch
        self._offset_of = None if offset_of is None else self._memory.upload(offset_of)

    def train(self, epoch: int, seed: int, start: int, stop: int) -> float:
        """As `DeviceBPR.train`."""
        memory, sampler, batch = self._memory, self._sampler, stop - start
        users, columns = sampler.pairs(epoch, start, stop)
        if self._in_batch:
            others = sampler.repeated(columns, self._number)
        else:
            others = sampler.shared(epoch, start, stop, self._number)
        marks = sampler.marks(users, others)
        against = int(others.shape[0]) * self._number
        others = others.reshape((against,))
        everything = memory.empty(batch + against, np.int64)
        sampler.items_of(columns, everything[:batch])
        sampler.items_of(others, everything[batch:])
        user_rows, p = self._rows(self._users, users)
        mask = self._drop(seed, start, p)
        item_rows, q = self._rows(self._items, everything)
        losses = self._gradients(
            p, q[:batch], q[batch:], marks, self._offsets(columns), self._offsets(others)
        )
        self._scale(p, mask)
        self._users.update(user_rows, self._given(users))
        self._items.update(item_rows, self._given(everything))
        return self._sum(losses, self._number)

    def _offsets(self, columns: Any) -> Any:
        length = int(columns.shape[0])
        if self._offset_of is None:
            return self._memory.zeros(length, np.float32)
        found = self._memory.empty(length, np.float32)
        self._memory.each(take_cuda(), length, self._offset_of, columns, found)
        return found

    def _gradients(
        self, users: Any, items: Any, negatives: Any, marks: Any, item_offsets: Any, offsets: Any
    ) -> Any:
        """Gradients in place of the rows; the losses, (B,) float64."""
        memory, dim, unit, size = self._memory, self._dim, self._unit, self._number
        batch, against = int(users.shape[0]), int(negatives.shape[0])
        lengths = [memory.work(f"lengths {i}", 1, np.float32) for i in range(3)]
        if unit:
            for i, rows in enumerate((users, items, negatives)):
                number = int(rows.shape[0])
                lengths[i] = memory.work(f"lengths {i}", number, np.float32)
                self._groups(_contrast.units_cuda(dim), number, rows, lengths[i])
        own, slopes = (memory.work(name, batch, np.float32) for name in ("own", "slopes"))
        scores = memory.work("scores", batch * size, np.float32).reshape((batch, size))
        losses = memory.work("losses of pairs", batch, np.float64)
        changes = memory.work("changes", batch * (dim + 1), np.float32).reshape((batch, dim + 1))
        sums = memory.work("sums", against * (dim + 1), np.float32).reshape((against, dim + 1))
        memory.each(
            _contrast.scores_cuda(dim, unit), batch * (size + 1), size, users, items, negatives,
            own, scores,
        )  # fmt: skip
        memory.each(
            self._loss, batch, size, self._a, self._b, own, scores, marks, item_offsets, offsets,
            slopes, losses,
        )  # fmt: skip
        memory.each(
            _contrast.changes_cuda(dim), changes.size, size, items, negatives, scores, slopes,
            changes,
        )  # fmt: skip
        memory.each(_contrast.sums_cuda(dim), sums.size, size, users, scores, sums)
        self._groups(
            _contrast.finish_own_cuda(dim, unit), batch, self._reg, users, items, own, slopes,
            changes, *lengths[:2],
        )  # fmt: skip
        self._groups(
            _contrast.finish_others_cuda(dim, unit), against, self._reg, negatives, sums, lengths[2]
        )
        return losses


__all__ = ["DeviceBPR", "DeviceContrast"]
