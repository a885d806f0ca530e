"""One function per operation: the one door to the lookup, merge, backward and update kernels.

Arguments are trusted: `_validate` has seen them.  Index arrays are int64, everything else float32,
C-contiguous.  `padding_idx` is an int, NO_PADDING for none.  `reference` has a plain NumPy twin of
every function here, which computes the same bits.

The story:  lookup -> merge -> update,  or  merge -> backward -> apply  for the same bits.
Unpooled is the case `offsets=None`: position k is its own bag k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from sparse_embed import results
from sparse_embed._typing import (
    METRICS,
    MODES,
    NO_PADDING,
    AnyArray,
    ByteArray,
    FloatArray,
    IndexArray,
)
from sparse_embed.dtypes import FLOAT32, Precision, narrow, widen
from sparse_embed.initializers import Initializer
from sparse_embed.kernels import (
    backward as _backward,
)
from sparse_embed.kernels import (
    bags as _bags,
)
from sparse_embed.kernels import (
    bounds as _bounds,
)
from sparse_embed.kernels import (
    dots as _dots,
)
from sparse_embed.kernels import (
    dropout as _dropout,
)
from sparse_embed.kernels import (
    entries as _entry,
)
from sparse_embed.kernels import (
    initialize as _initialize,
)
from sparse_embed.kernels import (
    lookup as _lookup,
)
from sparse_embed.kernels import (
    plan as _plan,
)
from sparse_embed.kernels import (
    topk as _topk,
)
from sparse_embed.kernels import (
    update as _update,
)
from sparse_embed.kernels._jit import counter_of_items, guard_fork, new_counter
from sparse_embed.ops_merge import Merged, merge, merge_places
from sparse_embed.optim import Optimizer

__all__ = [
    "LOOKUP_CHUNK",
    "NO_PADDING",
    "Coefficients",
    "Merged",
    "OutsideError",
    "Records",
    "apply",
    "backward",
    "bag_coefficients",
    "dots",
    "dropout_scale",
    "gradient_entries",
    "initialize",
    "lookup",
    "lookup_bags",
    "max_positions",
    "merge",
    "merge_gradient",
    "merge_places",
    "merge_top_k",
    "scores",
    "top_k",
    "update",
    "weights_grad",
]

LOOKUP_CHUNK = _lookup.CHUNK
_NO_INDICES: IndexArray = np.empty(0, np.int64)
_ONE: FloatArray = np.ones(1, np.float32)  # stands for weights or scales that are all 1


_Entries: TypeAlias = tuple[IndexArray, FloatArray, int]


class OutsideError(Exception):
    """`lookup_bags` met an index outside its limit; the caller says which."""


@dataclass(frozen=True)
class Records:
    """The resident rows of a table, and what its virgin rows hold.

    Args:
        records: (S, W) float32: lanes [0, D) are the weight, then the optimizer's state; other
            words where `precision` says so (`kernels/formats.py`).
        flags: (S,) uint8: bit 0 is set where a kernel wrote.
        dim: D.
        init: first weights of a row whose lane 0 has all bits zero.
        seed: of `init` and of stochastic rounding, 0 <= seed < 2^64.
        precision: how the numbers of a record are stored, and rounded by an update.
    """

    records: FloatArray
    flags: ByteArray
    dim: int
    init: Initializer
    seed: int
    precision: Precision = FLOAT32

    @property
    def init_args(self) -> tuple[np.uint64, int, np.float32]:
        """seed, init_kind, init_param as kernels take them."""
        return np.uint64(self.seed), self.init.kind, np.float32(self.init.param)


@dataclass(frozen=True)
class Coefficients:
    """By how much a position's row entered its bag: c[k] = weights[k] * scale[bag_ids[k]].

    bag_ids: (L,) int64 or None: position k is bag k.  weights: (L,) or None: all 1.
    scale: (B,) or None: all 1.
    """

    bag_ids: IndexArray | None
    weights: FloatArray | None
    scale: FloatArray | None


def _or_one(weights: FloatArray | None) -> tuple[FloatArray, int]:
    """weights and weight_step as kernels take them."""
    return (_ONE, 0) if weights is None else (weights, 1)


def initialize(init: Initializer, seed: int, rows: IndexArray, dim: int) -> FloatArray:
    """First weights of these rows: (n, D) float32."""
    guard_fork()
    out = np.empty((len(rows), dim), np.float32)
    args = (np.uint64(seed), init.kind, np.float32(init.param))
    _initialize.initialize_cpu(dim)(rows, *args, new_counter(), out)
    return out


def lookup(rec: Records, slots: IndexArray, indices: IndexArray, padding_idx: int) -> FloatArray:
    """Rows, unpooled.

    Args:
        slots: (L,) where the row of each position is; not used at padded positions.
        indices: (L,) row numbers, or `padding_idx`.

    Returns:
        (L, D) float32; zeros at padded positions.
    """
    guard_fork()
    out = results.empty(len(indices), rec.dim)
    _lookup.gather_cpu(rec.dim, rec.precision.dtype)(
        rec.records, slots, indices, padding_idx, *rec.init_args, new_counter(), out
    )
    return out


def lookup_bags(
    rec: Records,
    slots: IndexArray,
    indices: IndexArray,
    offsets: IndexArray,
    per_sample_weights: FloatArray | None,
    mode: str,
    padding_idx: int,
    limit: int | None = None,
    bounds: IndexArray | None = None,
) -> FloatArray:
    """Rows, pooled in bags: (B, D) float32.  An empty bag gives zeros.

    bounds: the bags cut into chunks of LOOKUP_CHUNK, where the caller has that already.
    limit: with it the indices need not have been checked, but slots are indices; not for "max".

    Raises:
        OutsideError: an index is outside [0, limit).
    """
    guard_fork()
    out = results.empty(len(offsets) - 1, rec.dim)
    if bounds is None:
        bounds = _plan.cut_bags(offsets, _lookup.CHUNK)
    dtype = rec.precision.dtype
    counter = new_counter(len(bounds) - 1)
    where = rec.records, slots, indices, offsets, bounds
    rest = padding_idx, *rec.init_args, counter, out
    if mode == "max":
        _lookup.pool_max_cpu(rec.dim, dtype)(*where, *rest)
        return out
    weights, weighted = _or_one(per_sample_weights)
    most = _bounds.UNLIMITED if limit is None else np.uint64(limit)
    kernel = _lookup.pool_cpu(rec.dim, bool(weighted), dtype)
    kernel(*where, weights, MODES.index(mode), most, *rest)
    if counter[1]:
        raise OutsideError
    return out


def max_positions(
    rec: Records, slots: IndexArray, indices: IndexArray, offsets: IndexArray, padding_idx: int
) -> IndexArray:
    """(B, D) int64: the position whose value is the largest of its bag and column; the first of
    equals; -1 in an empty bag."""
    guard_fork()
    out = np.empty((len(offsets) - 1, rec.dim), np.int64)
    bounds = _plan.cut_bags(offsets, _lookup.CHUNK)
    _lookup.max_positions_cpu(rec.dim, rec.precision.dtype)(
        rec.records,
        slots,
        indices,
        offsets,
        bounds,
        padding_idx,
        *rec.init_args,
        new_counter(),
        out,
    )
    return out


def merge_gradient(
    indices: IndexArray, padding_idx: int, coefficients: Coefficients
) -> tuple[Merged, Coefficients]:
    """What `backward` and `update` need of a batch, other than of mode "max".

    Where no weight asks for the positions, the bags' numbers are sorted in their place: then each
    position is its own bag, and nothing has to be looked up in the order of rows.
    """
    bag_ids, scale = coefficients.bag_ids, coefficients.scale
    if bag_ids is None or coefficients.weights is not None:
        return merge(indices, padding_idx), coefficients
    num_bags = int(bag_ids[-1]) + 1 if len(bag_ids) else 1
    merged = merge_places(indices, padding_idx, bag_ids, num_bags)
    return merged, Coefficients(None, None, scale)


def bag_coefficients(
    indices: IndexArray,
    offsets: IndexArray | None,
    per_sample_weights: FloatArray | None,
    mode: str,
    padding_idx: int,
) -> Coefficients:
    """What `backward`, `update` and `dots` need to know of the bags."""
    if offsets is None:
        return Coefficients(None, per_sample_weights, None)
    guard_fork()
    bag_ids = np.empty(len(indices), np.int64)
    scaled = mode in ("mean", "sqrtn")
    scale = np.empty(len(offsets) - 1 if scaled else 0, np.float32)
    bounds = _plan.cut_bags(offsets, _bags.CHUNK)
    _bags.bags_cpu()(
        indices, offsets, bounds, *_or_one(per_sample_weights), MODES.index(mode), padding_idx,
        new_counter(len(bounds) - 1), bag_ids, scale,
    )  # fmt: skip
    return Coefficients(bag_ids, per_sample_weights, scale if scaled else None)


def gradient_entries(merged: Merged, u0: int, u1: int, coefficients: Coefficients) -> _Entries:
    """bags, factors, factor_step of the entries of the unique rows [u0, u1): `kernels/entries`."""
    begin, end = int(merged.starts[u0]), int(merged.starts[u1])
    weights, scale = coefficients.weights, coefficients.scale
    if coefficients.bag_ids is None and weights is None:
        bags = merged.positions[begin:end]
        return (bags, _ONE, 0) if scale is None else (bags, scale[bags], 1)
    bags = np.empty(end - begin, np.int64)
    even = weights is None and scale is None
    factors = np.empty(0 if even else end - begin, np.float32)
    bag_ids = coefficients.bag_ids
    if bag_ids is None:  # position k is bag k; padded positions count
        assert weights is not None
        bag_ids = np.arange(len(weights))
    _entry.entries_cpu()(
        merged.positions, begin, bag_ids, *_or_one(weights), *_or_one(scale),
        counter_of_items(len(bags)), bags, factors,
    )  # fmt: skip
    return (bags, _ONE, 0) if even else (bags, factors, 1)


def _cut(
    starts: IndexArray,
    u0: int,
    u1: int,
    entries: tuple[IndexArray, FloatArray, int],
    grad: AnyArray,
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Chunks of the unique rows [u0, u1), blocks of hot rows among them, their sums."""
    bounds, blocks = _plan.cut_segments(starts, u0, u1, _backward.CHUNK)
    dim = grad.shape[1]
    sums = np.empty((len(blocks), dim), np.float32)
    if len(blocks):
        _backward.block_sums_cpu(dim)(blocks, int(starts[u0]), *entries, grad, new_counter(), sums)
    return bounds, blocks, sums


def backward(
    merged: Merged, coefficients: Coefficients, grad: FloatArray, argmax: IndexArray | None
) -> FloatArray:
    """Gradient of the unique rows: (U, D) float32.

    Args:
        grad: (B, D) upstream gradient.
        argmax: `max_positions` of mode "max", else None.
    """
    guard_fork()
    dim = grad.shape[1]
    out = np.empty((len(merged), dim), np.float32)
    count, starts = len(merged), merged.starts
    if not count:
        return out
    if argmax is not None:
        bags, _, _ = gradient_entries(
            merged, 0, count, Coefficients(coefficients.bag_ids, None, None)
        )
        bounds, _ = _plan.cut_segments(starts, 0, count, _backward.CHUNK)
        _backward.backward_max_cpu(dim)(
            bounds, starts, merged.positions, bags, argmax, grad, new_counter(), out
        )
        return out
    entries = gradient_entries(merged, 0, count, coefficients)
    _backward.backward_cpu(dim)(
        *_cut(starts, 0, count, entries, grad), starts, *entries, grad, new_counter(), out
    )
    return out


_WORD = 2**64 - 1
_GAMMA, _ROUNDING = 0x9E3779B97F4A7C15, 0xB5297A4D3F84D5A9


def _mix64(z: int) -> int:
    """As in `kernels/initialize.py`."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
    return z ^ z >> 31


def rounding_key(seed: int, step: int) -> np.uint64:
    """Of the noise of stochastic rounding in this step: other bits than those of `init`."""
    base = _mix64(((seed ^ _ROUNDING) + _GAMMA) & _WORD)
    return np.uint64(_mix64((base + step * _GAMMA) & _WORD))


def _update_kernel(rec: Records, optimizer: Optimizer) -> Any:
    how = rec.precision
    return _update.update_cpu(rec.dim, optimizer.name, how.dtype, how.state_dtype, how.rounding)


def step_scalars(rec: Any, optimizer: Optimizer, step: int, lr: float) -> FloatArray:
    """As `Optimizer.scalars`; the state's first value as the record can hold it."""
    scalars = optimizer.scalars(step, lr)
    if rec.precision.state_dtype == "float32":
        return scalars
    for field in optimizer.state_fields(rec.dim)[:1]:
        dtype = rec.precision.of_field(field.lanes)
        scalars[8:] = widen(narrow(scalars[8:], dtype), dtype)
    return scalars


def update(
    rec: Records,
    slots: IndexArray,
    merged: Merged,
    u0: int,
    u1: int,
    coefficients: Coefficients,
    grad: FloatArray,
    argmax: IndexArray | None,
    optimizer: Optimizer,
    step: int,
    lr: float,
) -> None:
    """Fused: gradient, clipping and optimizer step of the unique rows [u0, u1), in place.

    Args:
        slots: (u1-u0,) where these rows are.
        step: from 1 on.
        lr: the learning rate of this step.
    """
    if u1 <= u0:
        return
    if argmax is not None:
        part = Merged(merged.indices[u0:u1], merged.starts[u0 : u1 + 1], merged.positions)
        values = backward(part, coefficients, grad, argmax)
        return apply(rec, slots, part.indices, values, optimizer, step, lr)
    guard_fork()
    entries = gradient_entries(merged, u0, u1, coefficients)
    bounds, *hot = _cut(merged.starts, u0, u1, entries, grad)
    _update_kernel(rec, optimizer)(
        rec.records, rec.flags, slots, merged.indices, u0, bounds, *hot,
        merged.starts, *entries, grad,
        step_scalars(rec, optimizer, step, lr), rounding_key(rec.seed, step),
        *rec.init_args, new_counter(len(bounds) - 1),
    )  # fmt: skip


def apply(
    rec: Records,
    slots: IndexArray,
    indices: IndexArray,
    values: FloatArray,
    optimizer: Optimizer,
    step: int,
    lr: float,
) -> None:
    """Clipping and optimizer step for rows with these gradients, in place: the bits of `update`.

    Args:
        slots, indices: (U,) where the rows are and which they are; unique.
        values: (U, D) their gradients.
    """
    if len(indices) == 0:
        return
    guard_fork()
    starts = np.arange(len(indices) + 1)
    entries = starts[:-1], _ONE, 0
    _update_kernel(rec, optimizer)(
        rec.records, rec.flags, slots, indices, 0,
        *_cut(starts, 0, len(indices), entries, values), starts, *entries, values,
        step_scalars(rec, optimizer, step, lr), rounding_key(rec.seed, step),
        *rec.init_args, new_counter(),
    )  # fmt: skip


def dots(
    rec: Records,
    slots: IndexArray,
    indices: IndexArray,
    grad: FloatArray,
    bag_ids: IndexArray | None,
    padding_idx: int,
) -> FloatArray:
    """(L,) float32: <grad[bag of k], weight[indices[k]]>; 0 at padded positions."""
    guard_fork()
    out = np.empty(len(indices), np.float32)
    _dots.dots_cpu(rec.dim, rec.precision.dtype)(
        rec.records, slots, indices, grad, _NO_INDICES if bag_ids is None else bag_ids,
        padding_idx, *rec.init_args, new_counter(), out,
    )  # fmt: skip
    return out


def weights_grad(
    dots: FloatArray,
    indices: IndexArray,
    offsets: IndexArray | None,
    per_sample_weights: FloatArray | None,
    mode: str,
    padding_idx: int,
) -> FloatArray:
    """(L,) float32: the gradient of per_sample_weights, from `dots`; modes sum, mean, sqrtn."""
    if offsets is None or mode == "sum":
        return dots.copy()
    guard_fork()
    out = np.empty(len(dots), np.float32)
    _dots.weights_grad_cpu()(
        dots, indices, offsets, _plan.cut_bags(offsets, _bags.CHUNK),
        *_or_one(per_sample_weights), MODES.index(mode), padding_idx, new_counter(), out,
    )  # fmt: skip
    return out


def scores(block: FloatArray, queries: FloatArray, metric: str) -> FloatArray:
    """(Q, N) float32: metric "cosine", "dot" or "euclidean" of (N, D) rows and (Q, D) queries."""
    guard_fork()
    out = np.empty((len(queries), len(block)), np.float32)
    norms = np.empty(len(queries), np.float32)
    _topk.scores_cpu(block.shape[1])(
        block, queries, METRICS.index(metric), new_counter(), norms, out
    )
    return out


def merge_top_k(
    scores: FloatArray,
    candidates: IndexArray,
    metric: str,
    best_indices: IndexArray,
    best_scores: FloatArray,
) -> None:
    """Take candidates (N,) with scores (Q, N) into the best lists (Q, k), in place.

    Best first, ties by the smaller index.  Start from `best_indices` full of -1: "none yet".
    """
    if best_indices.shape[1] == 0:
        return
    guard_fork()
    largest = metric != "euclidean"
    _topk.merge_top_k_cpu()(scores, candidates, largest, new_counter(), best_indices, best_scores)


def top_k(
    scores: FloatArray, candidates: IndexArray, k: int, metric: str
) -> tuple[IndexArray, FloatArray]:
    """The best min(k, N) candidates of each query: (Q, k) indices and scores, best first."""
    num_queries, k = len(scores), min(k, len(candidates))
    best_indices = np.full((num_queries, k), -1, np.int64)
    best_scores = np.zeros((num_queries, k), np.float32)
    merge_top_k(scores, candidates, metric, best_indices, best_scores)
    return best_indices, best_scores


def dropout_scale(seed: int, step: int, num_positions: int, p: float) -> FloatArray:
    """(n,) float32, 0 with probability p, else 1 / (1 - p): a function of seed, step, position."""
    guard_fork()
    out = np.empty(num_positions, np.float32)
    threshold = np.uint64(round(p * 2**24))
    keep = np.float32(1 / (1 - p))
    args: Any = (np.uint64(seed), np.uint64(step), threshold, keep)
    _dropout.dropout_scale_cpu()(*args, counter_of_items(num_positions), out)
    return out
