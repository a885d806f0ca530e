"""Every operation in slow, plain NumPy: the specification.

Same names and argument order as `ops`, same bits: each function adds in the order that the
contract fixes, in float32, and leaves the speed to `kernels/`.  Imports nothing of ours but names
of types; what it takes and gives has the fields of `ops.Records`, `Merged` and `Coefficients`.

Orders of addition
    a bag             left to right from +0.0, then times the bag's scale
    a row's gradient  blocks of 256 positions from its segment's start, each left to right from
                      +0.0; then the block sums left to right
    over columns      16 lanes (column % 16), each in order of columns from +0.0; then lane i takes
                      in lane i + 8, then i + 4, i + 2, i + 1
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparse_embed import reference_formats as formats
from sparse_embed._typing import INITIALIZERS, AnyArray, FloatArray, IndexArray

BLOCK = 256

Words: TypeAlias = NDArray[np.uint64]

F0, F1 = np.float32(0), np.float32(1)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Merged(NamedTuple):
    """As `ops.Merged`."""

    indices: IndexArray
    starts: IndexArray
    positions: IndexArray


class Coefficients(NamedTuple):
    """As `ops.Coefficients`."""

    bag_ids: IndexArray | None
    weights: FloatArray | None
    scale: FloatArray | None


# ---- first weights -------------------------------------------------------------------------------


def mix64(z: Words) -> Words:
    """The finaliser of splitmix64, on uint64 arrays (arithmetic mod 2^64)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _lane_sum(h: Words) -> Words:
    total = np.zeros_like(h)
    for shift in (0, 16, 32, 48):
        total += (h >> np.uint64(shift)) & np.uint64(0xFFFF)
    return total


def initialize(init: Any, seed: int, rows: AnyArray, dim: int) -> FloatArray:
    """First weights of these rows: (n, D) float32."""
    kind, param = INITIALIZERS[init.kind], np.float32(init.param)
    if kind == "zeros":
        return np.zeros((len(rows), dim), np.float32)
    base = mix64(np.array([seed], np.uint64) + _GAMMA)
    key = mix64(base + np.asarray(rows).astype(np.uint64) * _GAMMA)
    columns = np.arange(1, dim + 1, dtype=np.uint64)
    h = mix64(key[:, None] + columns[None, :] * _GAMMA)
    if kind == "uniform":
        number = h.view(np.int64) >> np.int64(40)
    else:
        number = (_lane_sum(h) + _lane_sum(mix64(h + _GAMMA))).astype(np.int64) - 262140
    return number.astype(np.float32) * param


# ---- lookup --------------------------------------------------------------------------------------


def weight_rows(rec: Any, slots: AnyArray, indices: AnyArray) -> FloatArray:
    """Weights of rows that are not padding: (n, D), virgin ones generated."""
    dtype = rec.precision.dtype
    if dtype != "float32":
        return _narrow_rows(rec, slots, indices)
    rows = rec.records[slots, : rec.dim].copy()
    virgin = rec.records.view(np.uint32)[slots, 0] == 0
    rows[virgin] = initialize(rec.init, rec.seed, indices[virgin], rec.dim)
    return np.asarray(rows, np.float32)


def _narrow_rows(rec: Any, slots: AnyArray, indices: AnyArray) -> FloatArray:
    dtype = rec.precision.dtype
    rows = np.zeros((len(slots), rec.dim), np.float32)
    for i, (slot, row) in enumerate(zip(slots, indices, strict=True)):
        record = rec.records[slot]
        if formats.is_virgin(record, dtype):
            first = initialize(rec.init, rec.seed, np.array([row]), rec.dim)[0]
            rows[i] = formats.settle(first, dtype)
        else:
            rows[i] = formats.read_weight(record, rec.dim, dtype)
    return rows


def lookup(rec: Any, slots: AnyArray, indices: IndexArray, padding_idx: int) -> FloatArray:
    """Rows, unpooled: (L, D); zeros at padded positions."""
    out = np.zeros((len(indices), rec.dim), np.float32)
    real = indices != padding_idx
    out[real] = weight_rows(rec, slots[real], indices[real])
    return out


def bag_scale(
    indices: IndexArray,
    begin: int,
    end: int,
    weights: FloatArray | None,
    mode: str,
    padding_idx: int,
) -> np.float32:
    """What the sum of a bag is multiplied by; 0 where the denominator is 0."""
    if mode not in ("mean", "sqrtn"):
        return F1
    total = F0
    for k in range(begin, end):
        if indices[k] != padding_idx:
            w = F1 if weights is None else weights[k]
            total = total + (w if mode == "mean" else w * w)
    if mode == "sqrtn":
        total = np.sqrt(total)
    return F1 / total if total != 0 else F0


def lookup_bags(
    rec: Any,
    slots: IndexArray,
    indices: IndexArray,
    offsets: IndexArray,
    per_sample_weights: FloatArray | None,
    mode: str,
    padding_idx: int,
) -> FloatArray:
    """Rows, pooled in bags: (B, D)."""
    weights = per_sample_weights
    rows = lookup(rec, slots, indices, padding_idx)
    out = np.zeros((len(offsets) - 1, rec.dim), np.float32)
    for b in range(len(offsets) - 1):
        begin, end = int(offsets[b]), int(offsets[b + 1])
        total, first = np.zeros(rec.dim, np.float32), True
        for k in range(begin, end):
            if indices[k] == padding_idx:
                continue
            if mode == "max":
                total = rows[k] if first else np.where(rows[k] > total, rows[k], total)
                first = False
            else:
                total = total + (F1 if weights is None else weights[k]) * rows[k]
        out[b] = bag_scale(indices, begin, end, weights, mode, padding_idx) * total
    return out


def max_positions(
    rec: Any, slots: IndexArray, indices: IndexArray, offsets: IndexArray, padding_idx: int
) -> IndexArray:
    """(B, D) int64: the first position of the largest value of each bag and column, or -1."""
    rows = lookup(rec, slots, indices, padding_idx)
    out = np.full((len(offsets) - 1, rec.dim), -1, np.int64)
    for b in range(len(offsets) - 1):
        best = np.zeros(rec.dim, np.float32)
        for k in range(int(offsets[b]), int(offsets[b + 1])):
            if indices[k] != padding_idx:
                wins = (out[b] < 0) | (rows[k] > best)
                best = np.where(wins, rows[k], best)
                out[b][wins] = k
    return out


# ---- merge and backward --------------------------------------------------------------------------


def merge(indices: IndexArray, padding_idx: int) -> Merged:
    """Sort a batch by row, stably, without its padding."""
    kept = np.flatnonzero(indices != padding_idx)
    positions = kept[np.argsort(indices[kept], kind="stable")].astype(np.int64)
    unique, counts = np.unique(indices[kept], return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Merged(unique, starts, positions)


def bag_coefficients(
    indices: IndexArray,
    offsets: IndexArray | None,
    per_sample_weights: FloatArray | None,
    mode: str,
    padding_idx: int,
) -> Coefficients:
    """Bag of each position, its weight, and the scale of each bag."""
    if offsets is None:
        return Coefficients(None, per_sample_weights, None)
    bags = range(len(offsets) - 1)
    bag_ids = np.repeat(np.arange(len(bags), dtype=np.int64), np.diff(offsets))
    scale = None
    if mode in ("mean", "sqrtn"):
        scale = np.zeros(len(bags), np.float32)
        for b in bags:
            begin, end = int(offsets[b]), int(offsets[b + 1])
            scale[b] = bag_scale(indices, begin, end, per_sample_weights, mode, padding_idx)
    return Coefficients(bag_ids, per_sample_weights, scale)


def backward(
    merged: Any, coefficients: Any, grad: FloatArray, argmax: IndexArray | None
) -> FloatArray:
    """Gradient of the unique rows: (U, D)."""
    bag_ids, weights, scale = coefficients.bag_ids, coefficients.weights, coefficients.scale
    dim = grad.shape[1]
    out = np.zeros((len(merged.indices), dim), np.float32)
    for u in range(len(merged.indices)):
        positions = merged.positions[merged.starts[u] : merged.starts[u + 1]]
        for first in range(0, len(positions), BLOCK):
            block = np.zeros(dim, np.float32)
            for k in positions[first : first + BLOCK]:
                bag = k if bag_ids is None else bag_ids[k]
                c = F1 if weights is None else weights[k]
                if scale is not None:
                    c = c * scale[bag]
                if argmax is not None:
                    block = block + np.where(argmax[bag] == k, grad[bag], F0)
                else:
                    block = block + c * grad[bag]
            out[u] = block if first == 0 else out[u] + block
    return out


# ---- sums over columns ---------------------------------------------------------------------------


def sum_columns(x: FloatArray) -> np.float32:
    """The sum of (D,) float32 in 16 lanes and a tree."""
    lanes = np.zeros(16, np.float32)
    for first in range(0, len(x), 16):
        part = x[first : first + 16]
        lanes[: len(part)] += part
    for half in (8, 4, 2, 1):
        lanes[:half] += lanes[half : 2 * half]
    return np.float32(lanes[0])


def dot(a: FloatArray, b: FloatArray) -> np.float32:
    """sum_d a[d] b[d]"""
    return sum_columns(a * b)


# ---- optimizers: one row in place; p are the places of `Optimizer.scalars` -----------------------


def sgd_row(record: FloatArray, g: FloatArray, dim: int, p: FloatArray) -> None:
    """w -= lr (g + weight_decay w)"""
    w = record[:dim]
    w[:] = w - p[0] * (g + p[1] * w)


def adagrad_row(record: FloatArray, g: FloatArray, dim: int, p: FloatArray) -> None:
    """sum += g^2;  w -= clr g / (sqrt(sum) + eps)"""
    w, total = record[:dim], record[dim : 2 * dim]
    g = g + p[1] * w
    total[:] = total + g * g
    w[:] = w - p[0] * (g / (np.sqrt(total) + p[2]))


def row_wise_adagrad_row(record: FloatArray, g: FloatArray, dim: int, p: FloatArray) -> None:
    """sum += mean(g^2);  w -= (lr / (sqrt(sum) + eps)) g"""
    w = record[:dim]
    g = g + p[1] * w
    record[dim] = record[dim] + dot(g, g) / np.float32(dim)
    w[:] = w - (p[0] / (np.sqrt(record[dim]) + p[2])) * g


def lazy_adam_row(record: FloatArray, g: FloatArray, dim: int, p: FloatArray) -> None:
    """Moments, then w = w decay - rate m / (sqrt(v) root + eps)"""
    w, m, v = record[:dim], record[dim : 2 * dim], record[2 * dim : 3 * dim]
    m[:] = m + (g - m) * p[4]
    v[:] = v + (g * g - v) * p[5]
    w[:] = w * p[1] - p[0] * (m / (np.sqrt(v) * p[3] + p[2]))


def row_wise_adam_row(record: FloatArray, g: FloatArray, dim: int, p: FloatArray) -> None:
    """As lazy_adam_row, v one number: the moving average of mean(g^2)"""
    w, m = record[:dim], record[dim : 2 * dim]
    v = record[2 * dim]
    v = v + (dot(g, g) / np.float32(dim) - v) * p[5]
    record[2 * dim] = v
    m[:] = m + (g - m) * p[4]
    w[:] = w * p[1] - p[0] * (m / (np.sqrt(v) * p[3] + p[2]))


_ROWS = {
    "sgd": sgd_row,
    "adagrad": adagrad_row,
    "row_wise_adagrad": row_wise_adagrad_row,
    "lazy_adam": lazy_adam_row,
    "row_wise_adam": row_wise_adam_row,
}


def clip_row(g: FloatArray, clip_value: np.float32, clip_norm: np.float32) -> FloatArray:
    """By value, then by norm; inf is off; NaN stays."""
    g = np.where(g > clip_value, clip_value, g)
    g = np.where(g < -clip_value, -clip_value, g)
    if clip_norm < np.inf:
        norm = np.sqrt(dot(g, g))
        if norm > clip_norm:
            g = g * (clip_norm / norm)
    return g


def apply(
    rec: Any,
    slots: IndexArray,
    indices: IndexArray,
    values: FloatArray,
    optimizer: Any,
    step: int,
    lr: float,
) -> None:
    """Clipping and optimizer step of the rows with these gradients, in place."""
    p = optimizer.scalars(step, lr)
    state = optimizer.state_fields(rec.dim)
    if rec.precision.dtype != "float32" or rec.precision.state_dtype != "float32":
        return _apply_narrow(rec, slots, indices, values, optimizer, step, lr)
    for slot, row, value in zip(slots, indices, values, strict=True):
        record = rec.records[slot]
        if record.view(np.uint32)[0] == 0:
            record[: rec.dim] = initialize(rec.init, rec.seed, np.array([row]), rec.dim)[0]
            at = rec.dim
            for field in state:
                record[at : at + field.lanes] = field.fill
                at += field.lanes
        g = clip_row(value + F0, p[6], p[7])  # + 0: the sum of a segment starts at +0.0
        _ROWS[optimizer.name](record, g, rec.dim, p)
        if record.view(np.uint32)[0] == 0:
            record[0] = -0.0
        rec.flags[slot] |= 1


def _apply_narrow(
    rec: Any,
    slots: IndexArray,
    indices: IndexArray,
    values: FloatArray,
    optimizer: Any,
    step: int,
    lr: float,
) -> None:
    """The same where records are narrower: widen a row, move it in float32, round it back."""
    p = optimizer.scalars(step, lr)
    state = optimizer.state_fields(rec.dim)
    places = formats.fields(rec.dim, state, rec.precision)
    for slot, index, value in zip(slots, indices, values, strict=True):
        record = rec.records[slot]
        if formats.is_virgin(record, rec.precision.dtype):
            first = initialize(rec.init, rec.seed, np.array([index]), rec.dim)[0]
            parts = [formats.settle(first, rec.precision.dtype)]
            for field, (_, dtype, number) in zip(state, places[1:], strict=True):
                parts.append(formats.settle(np.full(number, field.fill, np.float32), dtype))
        else:
            parts = [formats.read_field(record, place) for place in places]
        row = np.concatenate(parts)
        g = clip_row(value + F0, p[6], p[7])
        _ROWS[optimizer.name](row, g, rec.dim, p)
        formats.write_row(record, row, rec.dim, state, rec, step, int(index))
        rec.flags[slot] |= 1


def update(
    rec: Any,
    slots: IndexArray,
    merged: Any,
    u0: int,
    u1: int,
    coefficients: Any,
    grad: FloatArray,
    argmax: IndexArray | None,
    optimizer: Any,
    step: int,
    lr: float,
) -> None:
    """backward and apply of the unique rows [u0, u1)."""
    values = backward(merged, coefficients, grad, argmax)[u0:u1]
    apply(rec, slots, merged.indices[u0:u1], values, optimizer, step, lr)


# ---- gradient of per_sample_weights --------------------------------------------------------------


def dots(
    rec: Any,
    slots: IndexArray,
    indices: IndexArray,
    grad: FloatArray,
    bag_ids: IndexArray | None,
    padding_idx: int,
) -> FloatArray:
    """(L,): <grad[bag of k], weight[indices[k]]>; 0 at padded positions."""
    rows = lookup(rec, slots, indices, padding_idx)
    out = np.zeros(len(indices), np.float32)
    for k in range(len(indices)):
        if indices[k] != padding_idx:
            out[k] = dot(grad[k if bag_ids is None else bag_ids[k]], rows[k])
    return out


def weights_grad(
    dots: FloatArray,
    indices: IndexArray,
    offsets: IndexArray | None,
    per_sample_weights: FloatArray | None,
    mode: str,
    padding_idx: int,
) -> FloatArray:
    """(L,): the gradient of per_sample_weights, from `dots`."""
    if offsets is None or mode == "sum":
        return dots.copy()
    weights = per_sample_weights
    out = np.zeros(len(dots), np.float32)
    for b in range(len(offsets) - 1):
        begin, end = int(offsets[b]), int(offsets[b + 1])
        scale = bag_scale(indices, begin, end, weights, mode, padding_idx)
        total = F0
        for k in range(begin, end):
            if indices[k] != padding_idx:
                total = total + (F1 if weights is None else weights[k]) * dots[k]
        for k in range(begin, end):
            if indices[k] == padding_idx:
                continue
            if mode == "mean":
                out[k] = scale * (dots[k] - scale * total)
            else:
                w = F1 if weights is None else weights[k]
                out[k] = scale * (dots[k] - w * (scale * (scale * total)))
    return out


# ---- search and dropout --------------------------------------------------------------------------


def scores(block: FloatArray, queries: FloatArray, metric: str) -> FloatArray:
    """(Q, N): the score of every row against every query."""
    out = np.zeros((len(queries), len(block)), np.float32)
    norms = [np.sqrt(dot(row, row)) for row in block]
    for q, query in enumerate(queries):
        query_norm = np.sqrt(dot(query, query))
        for i, row in enumerate(block):
            if metric == "euclidean":
                difference = query - row
                out[q, i] = np.sqrt(dot(difference, difference))
                continue
            out[q, i] = dot(query, row)
            if metric == "cosine":
                both = norms[i] * query_norm
                out[q, i] = out[q, i] / both if both != 0 else F0
    return out


def top_k(
    scores: FloatArray, candidates: IndexArray, k: int, metric: str
) -> tuple[IndexArray, FloatArray]:
    """The best min(k, N) of each query, best first, ties by the smaller index, NaN last."""
    worst_first = 1 if metric == "euclidean" else -1
    k = min(k, len(candidates))
    best_indices = np.full((len(scores), k), -1, np.int64)
    best_scores = np.zeros((len(scores), k), np.float32)
    for q, row in enumerate(scores):
        order = np.lexsort((candidates, worst_first * row, np.isnan(row)))[:k]
        best_indices[q], best_scores[q] = candidates[order], row[order]
    return best_indices, best_scores


def merge_top_k(
    scores: FloatArray,
    candidates: IndexArray,
    metric: str,
    best_indices: IndexArray,
    best_scores: FloatArray,
) -> None:
    """Take the candidates into the best lists, in place."""
    k = best_indices.shape[1]
    for q in range(len(scores)):
        old = best_indices[q] >= 0
        all_scores = np.concatenate([best_scores[q][old], scores[q]])[None]
        all_candidates = np.concatenate([best_indices[q][old], candidates])
        found, values = top_k(all_scores, all_candidates, k, metric)
        best_indices[q, : found.shape[1]] = found[0]
        best_scores[q, : found.shape[1]] = values[0]


def dropout_scale(seed: int, step: int, num_positions: int, p: float) -> FloatArray:
    """(n,): 0 with probability p, else 1 / (1 - p)."""
    base = mix64(np.array([seed], np.uint64) + _GAMMA)
    key = mix64(base + np.array([step], np.uint64) * _GAMMA)
    h = mix64(key + np.arange(1, num_positions + 1, dtype=np.uint64) * _GAMMA)
    dropped = (h >> np.uint64(40)) < np.uint64(round(p * 2**24))
    return np.where(dropped, F0, np.float32(1 / (1 - p)))
