"""The operations of `ops` on a GPU: the same names, arguments and bits, on device arrays.

`DeviceOps(memory)` has a method for each; `reference` is the specification of these too.  Arguments
are trusted: index arrays are int64, everything else float32, C-contiguous, on the device, rows of a
multiple of 4 columns at 16-byte boundaries.

Merged batches and coefficients lie in buffers that are kept: each is valid until the next `merge`
or `bag_coefficients` of the same device.  Results that are handed out have memory of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_embed._typing import METRICS, MODES
from sparse_embed.cuda.merging import Hot, Merged, MergeOps, Survey
from sparse_embed.device import DeviceMemory
from sparse_embed.device_scan import take_into
from sparse_embed.dtypes import FLOAT32, Precision
from sparse_embed.initializers import Initializer
from sparse_embed.kernels.cuda import _shim
from sparse_embed.kernels.cuda import backward as _backward
from sparse_embed.kernels.cuda import batches as _batches
from sparse_embed.kernels.cuda import dots as _dots
from sparse_embed.kernels.cuda import lookup as _lookup
from sparse_embed.kernels.cuda import records as _records
from sparse_embed.kernels.cuda import topk as _topk
from sparse_embed.kernels.cuda import update as _update
from sparse_embed.kernels.cuda._rows import row_shape
from sparse_embed.kernels.plan import BLOCK
from sparse_embed.ops import rounding_key, step_scalars
from sparse_embed.optim import Optimizer

__all__ = ["Coefficients", "DeviceOps", "Merged", "Records", "Survey"]

_NO_KEY = np.uint64(0)
_SCRATCH_BYTES = 64 << 20
_HOT_GROUPS = 1 << 14  # that sum the blocks of long segments, most often of none


@dataclass(frozen=True)
class Records:
    """As `ops.Records`, on the device."""

    records: Any
    flags: Any
    dim: int
    init: Initializer
    seed: int
    precision: Precision = FLOAT32

    @functools.cached_property
    def init_args(self) -> tuple[np.uint64, int, np.float32]:
        """seed, init_kind, init_param as kernels take them."""
        return np.uint64(self.seed), self.init.kind, np.float32(self.init.param)


@dataclass(frozen=True)
class Coefficients:
    """As `ops.Coefficients`, on the device."""

    bag_ids: Any
    weights: Any
    scale: Any


class DeviceOps(MergeOps):
    """The operations on one GPU."""

    def __init__(self, memory: DeviceMemory) -> None:
        super().__init__(memory)
        self._one = memory.upload(np.ones(1, np.float32))
        self._no_argmax = memory.upload(np.zeros((1, 1), np.int64))
        self._many = memory.upload(np.full(1, 1 << 62, np.int64))

    # ---- launches -------------------------------------------------------------------------------

    def _rows(self, kernel: Any, dim: int, rows: int, *args: Any) -> None:
        """Start a kernel in which a group of lanes takes a row."""
        if rows > 0:
            shape = row_shape(dim)
            self.memory.launch(kernel, shape.many_blocks(rows), shape.threads, *args)

    def or_one(self, weights: Any) -> tuple[Any, int]:
        """weights and weight_step as kernels take them."""
        return (self._one, 0) if weights is None else (weights, 1)

    # ---- lookup ---------------------------------------------------------------------------------

    def initialize(self, init: Initializer, seed: int, rows: Any, dim: int) -> Any:
        """First weights of these rows: (n, D)."""
        out = self.memory.empty((rows.shape[0], dim), np.float32)
        args = (np.uint64(seed), init.kind, np.float32(init.param))
        self.memory.each(_lookup.initialize_cuda(dim), rows.shape[0] * dim, rows, *args, out)
        return out

    def lookup(
        self, rec: Records, slots: Any, indices: Any, padding_idx: int, found: Any = None
    ) -> Any:
        """Rows, unpooled: (L, D); zeros at padded positions.

        found: a survey's numbers, still on the device: where they speak of an error the result is
        rubbish, and nothing is read.
        """
        length = indices.shape[0]
        out = self.memory.empty((length, rec.dim), np.float32, "looked up rows")
        self._rows(
            _lookup.gather_cuda(rec.dim, rec.precision.dtype), rec.dim, length,
            rec.records, slots, indices, padding_idx,
            self.nothing_found if found is None else found, *rec.init_args, out,
        )  # fmt: skip
        return out

    def lookup_bags(
        self,
        rec: Records,
        slots: Any,
        indices: Any,
        offsets: Any,
        per_sample_weights: Any,
        mode: str,
        padding_idx: int,
        found: Any = None,
        out: Any = None,
    ) -> Any:
        """Rows, pooled in bags: (B, D), in `out` if that is given.  found: as in `lookup`."""
        bags = offsets.shape[0] - 1
        if out is None:
            out = self.memory.empty((bags, rec.dim), np.float32, "pooled rows")
        self._rows(
            _lookup.pool_cuda(rec.dim, rec.precision.dtype), rec.dim, bags,
            rec.records, slots, indices, offsets, *self.or_one(per_sample_weights),
            MODES.index(mode), padding_idx, self.nothing_found if found is None else found,
            *rec.init_args, out,
        )  # fmt: skip
        return out

    def max_positions(
        self, rec: Records, slots: Any, indices: Any, offsets: Any, padding_idx: int
    ) -> Any:
        """(B, D) int64: the first position of the largest value, -1 in an empty bag."""
        bags = offsets.shape[0] - 1
        out = self.memory.empty((bags, rec.dim), np.int64, "positions of maxima")
        self.memory.each(
            _lookup.max_positions_cuda(rec.dim, rec.precision.dtype), bags * rec.dim,
            rec.records, slots, indices, offsets, padding_idx, *rec.init_args, out,
        )  # fmt: skip
        return out

    # ---- backward and update --------------------------------------------------------------------

    def bag_coefficients(
        self, indices: Any, offsets: Any, per_sample_weights: Any, mode: str, padding_idx: int
    ) -> Coefficients:
        """What `backward`, `update` and `dots` need to know of the bags."""
        if offsets is None:
            return Coefficients(None, per_sample_weights, None)
        length, bags = int(indices.shape[0]), int(offsets.shape[0]) - 1
        bag_ids = self.memory.work("bag ids", length, np.int64)
        self.memory.each(_batches.bag_ids_cuda(), length, offsets, bag_ids)
        scale = None
        if mode in ("mean", "sqrtn"):
            scale = self.memory.work("scales", bags, np.float32)
            self.memory.each(
                _batches.bag_scales_cuda(), bags, indices, offsets,
                *self.or_one(per_sample_weights), MODES.index(mode), padding_idx, scale,
            )  # fmt: skip
        return Coefficients(bag_ids, per_sample_weights, scale)

    def _entry_args(
        self, positions: Any, coefficients: Coefficients, bags: Any = None
    ) -> tuple[Any, ...]:
        """What the kernels of `backward` are told of entries.  bags: of each, if known."""
        if coefficients.bag_ids is None:
            bags = positions
        elif bags is None:
            bags = self.memory.work("bags of entries", int(positions.shape[0]), np.int64)
            take_into(self.memory, coefficients.bag_ids, positions, bags)
        arrays = (positions, bags, coefficients.weights, coefficients.scale)
        absent = (self._zero, self._zero, self._one, self._one)
        steps = tuple(0 if array is None else 1 for array in arrays)
        given = (none if a is None else a for a, none in zip(arrays, absent, strict=True))
        return (*given, steps)

    def _hot_sums(
        self,
        hot: Hot,
        starts: Any,
        entries: tuple[Any, ...],
        argmax: Any,
        grad: Any,
        part: tuple[int, int] = (0, 1 << 62),
    ) -> Any:
        """The sums of the blocks of long segments, those of the unique rows `part` = [u0, u1);
        valid until the next ones of this dim."""
        dim = int(grad.shape[1])
        entry_count = int(entries[0].shape[0]) if entries[-1][0] else 0
        # A segment of more than HOT entries has less than one block more than entries / BLOCK.
        most = entry_count // BLOCK + entry_count // _backward.HOT + 1
        sums = self.memory.work(f"block sums {dim}", most * dim, np.float32).reshape((most, dim))
        if entry_count > _backward.HOT:  # else there are none
            self._rows(
                _backward.hot_sums_cuda(dim, argmax is not None), dim, min(most, _HOT_GROUPS),
                hot.rows, hot.bases, hot.found, starts, *part, *entries,
                self._no_argmax if argmax is None else argmax, grad, sums,
            )  # fmt: skip
        return sums

    def long_sums(
        self, merged: Merged, u0: int, u1: int, coefficients: Coefficients, grad: Any
    ) -> Any:
        """What `prepare_update` needs of the rows [u0, u1) that are in very many places: for
        callers whose rows outside of these have other gradients."""
        entries = self._entry_args(merged.all_positions, coefficients, merged.all_bags)
        return self._hot_sums(merged.hot, merged.all_starts, entries, None, grad, (u0, u1))

    def backward(self, merged: Merged, coefficients: Coefficients, grad: Any, argmax: Any) -> Any:
        """Gradient of the unique rows: (U, D)."""
        dim, num = int(grad.shape[1]), len(merged)
        out = self.memory.empty((num, dim), np.float32, "the gradient of rows")
        if num == 0:
            return out
        entries = self._entry_args(merged.all_positions, coefficients, merged.all_bags)
        sums = self._hot_sums(merged.hot, merged.all_starts, entries, argmax, grad)
        self._rows(
            _backward.backward_cuda(dim, argmax is not None), dim, num, merged.hot.starts, sums,
            merged.num, merged.all_starts, *entries,
            self._no_argmax if argmax is None else argmax, grad, out,
        )  # fmt: skip
        return out

    def update(
        self,
        rec: Records,
        slots: Any,
        merged: Merged,
        u0: int,
        u1: int,
        coefficients: Coefficients,
        grad: Any,
        argmax: Any,
        optimizer: Optimizer,
        step: int,
        lr: float,
    ) -> None:
        """Gradient, clipping and optimizer step of the unique rows [u0, u1), in place."""
        self.prepare_update(
            rec, slots, merged, u0, u1, coefficients, grad, argmax, optimizer, step, lr
        )()

    def prepare_update(
        self,
        rec: Records,
        slots: Any,
        merged: Merged,
        u0: int,
        u1: int,
        coefficients: Coefficients,
        grad: Any,
        argmax: Any,
        optimizer: Optimizer,
        step: int,
        lr: float,
        sums: Any = None,
    ) -> Callable[[], None]:
        """All of `update` but the change: what is returned makes it, and asks for no memory.

        u1: may be more than there are.  sums: `long_sums` of these rows and others, if known.
        """
        if u1 <= u0:
            return _nothing
        if argmax is not None:
            u1 = min(u1, len(merged))
            values = self.backward(merged, coefficients, grad, argmax)[u0:u1]
            rows = merged.indices[u0:u1]
            return self.prepare_apply(rec, slots, rows, values, optimizer, step, lr)
        entries = self._entry_args(merged.all_positions, coefficients, merged.all_bags)
        if sums is None:
            sums = self._hot_sums(merged.hot, merged.all_starts, entries, None, grad)
        segments = (merged.num, merged.hot.starts, sums, merged.all_starts)
        return self._prepare(
            rec, slots, merged.all_indices, u0, u1 - u0, segments, entries, grad,
            optimizer, step, lr,
        )  # fmt: skip

    def apply(
        self,
        rec: Records,
        slots: Any,
        indices: Any,
        values: Any,
        optimizer: Optimizer,
        step: int,
        lr: float,
    ) -> None:
        """Clipping and optimizer step for rows with these gradients, in place."""
        self.prepare_apply(rec, slots, indices, values, optimizer, step, lr)()

    def prepare_apply(
        self,
        rec: Records,
        slots: Any,
        indices: Any,
        values: Any,
        optimizer: Optimizer,
        step: int,
        lr: float,
    ) -> Callable[[], None]:
        """All of `apply` but the change, as `prepare_update`."""
        num = int(indices.shape[0])
        if num == 0:
            return _nothing
        starts = self.memory.work("places", num + 1, np.int64)
        self.memory.each(_records.count_cuda(), num + 1, starts)
        entries = self._entry_args(None, Coefficients(None, None, None))
        no_sums = self._one.reshape((1, 1))
        segments = (self._many, self._zero, no_sums, starts)
        return self._prepare(
            rec, slots, indices, 0, num, segments, entries, values, optimizer, step, lr
        )

    def _prepare(
        self, rec: Records, slots: Any, indices: Any, u0: int, num: int, segments: tuple[Any, ...],
        entries: tuple[Any, ...], grad: Any, optimizer: Optimizer, step: int, lr: float,
    ) -> Callable[[], None]:  # fmt: skip
        scalars = tuple(step_scalars(rec, optimizer, step, lr))
        noisy = rec.precision.rounding == "stochastic"
        key = rounding_key(rec.seed, step) if noisy else _NO_KEY
        args = (
            rec.records, rec.flags, slots, indices, u0, num, *segments,
            *entries, grad, scalars, key, *rec.init_args,
        )  # fmt: skip
        name, dim = optimizer.name, rec.dim
        how = (rec.precision.dtype, rec.precision.state_dtype, rec.precision.rounding)
        shape = row_shape(dim)
        blocks = shape.blocks(num)
        if optimizer.clip_norm is None and not name.startswith("row_wise"):
            kernel = _update.update_columns_cuda(dim, name, *how)
        else:
            kernel, scratch = _update.update_rows_cuda(dim, name, *how), self._one
            if dim > _update.SHARED_COLUMNS:
                blocks = max(1, min(blocks, _SCRATCH_BYTES // (4 * dim * shape.groups)))
                scratch = self.memory.work("gradients", blocks * shape.groups * dim, np.float32)
            args = (*args, scratch)
        return lambda: self.memory.launch(kernel, blocks, shape.threads, *args)

    # ---- gradient of per_sample_weights ---------------------------------------------------------

    def dots(
        self, rec: Records, slots: Any, indices: Any, grad: Any, bag_ids: Any, padding_idx: int
    ) -> Any:
        """(L,): <grad[bag of k], weight[indices[k]]>; 0 at padded positions."""
        length = int(indices.shape[0])
        out = self.memory.empty(length, np.float32)
        bags = (self._zero, 0) if bag_ids is None else (bag_ids, 1)
        self._rows(
            _dots.dots_cuda(rec.dim, rec.precision.dtype), rec.dim, length,
            rec.records, slots, indices, grad, *bags, padding_idx, *rec.init_args, out,
        )  # fmt: skip
        return out

    def weights_grad(
        self,
        dots: Any,
        indices: Any,
        offsets: Any,
        per_sample_weights: Any,
        mode: str,
        padding_idx: int,
    ) -> Any:
        """(L,): the gradient of per_sample_weights, from `dots`."""
        if offsets is None or mode == "sum":
            return dots
        out = self.memory.empty(dots.shape[0], np.float32)
        self.memory.each(
            _dots.weights_grad_cuda(), offsets.shape[0] - 1, dots, indices, offsets,
            *self.or_one(per_sample_weights), MODES.index(mode), padding_idx, out,
        )  # fmt: skip
        return out

    # ---- search and dropout ---------------------------------------------------------------------

    def scores(self, block: Any, queries: Any, metric: str) -> Any:
        """(Q, N): metric of (N, D) rows and (Q, D) queries."""
        dim, rows, asked = int(block.shape[1]), int(block.shape[0]), int(queries.shape[0])
        out = self.memory.empty((asked, rows), np.float32, "scores")
        if rows == 0 or asked == 0:
            return out
        row_norms = self.memory.work("norms", rows, np.float32)
        query_norms = self.memory.work("query norms", asked, np.float32)
        if metric == "cosine":
            self._rows(_topk.norms_cuda(dim), dim, rows, block, row_norms)
            self._rows(_topk.norms_cuda(dim), dim, asked, queries, query_norms)
        squares = -(-rows // _topk.SIDE) * -(-asked // _topk.SIDE)
        self.memory.launch(
            _topk.scores_cuda(dim), _shim.blocks_for(squares, 1), _topk.SQUARE,
            block, queries, METRICS.index(metric), row_norms, query_norms, out,
        )  # fmt: skip
        return out

    def merge_top_k(
        self, scores: Any, candidates: Any, metric: str, best_indices: Any, best_scores: Any
    ) -> tuple[Any, Any]:
        """The best lists (Q, k) with the candidates (N,) taken in: new arrays."""
        queries, k = int(best_indices.shape[0]), int(best_indices.shape[1])
        if queries == 0 or k == 0:
            return best_indices, best_scores
        indices = self.memory.empty((queries, k), np.int64, "results")
        values = self.memory.empty((queries, k), np.float32, "results")
        self.memory.launch(
            _topk.merge_top_k_cuda(), _shim.blocks_for(queries, 1), _shim.THREADS,
            scores, candidates, metric != "euclidean", best_indices, best_scores, indices, values,
        )  # fmt: skip
        return indices, values

    def dropout_scale(self, seed: int, step: int, num_positions: int, p: float) -> Any:
        """(n,): 0 with probability p, else 1 / (1 - p)."""
        out = self.memory.empty(num_positions, np.float32)
        args = (np.uint64(seed), np.uint64(step), np.uint64(round(p * 2**24)))
        kernel = _batches.dropout_scale_cuda()
        self.memory.each(kernel, num_positions, *args, np.float32(1 / (1 - p)), out)
        return out


def _nothing() -> None:
    """The change of no rows."""
