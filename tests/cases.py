"""Seeded batches named by what they are hard for, and tables to run them on.

Letters as everywhere: B bags, L positions, E rows, D columns.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_embed import ops
from sparse_embed.dtypes import Precision, narrow
from sparse_embed.initializers import Normal, Uniform
from sparse_embed.quantize import quantise
from sparse_embed.storage.layout import Layout

DIMS = (1, 3, 7, 16, 64, 100, 257, 600)
"""Below, at and beyond a vector register; odd; beyond the 512 that fit in registers together."""

FEW_DIMS = (1, 64, 257, 2500)
"""For kernels that share their loops with one that sees them all: compiling takes seconds."""


@dataclass(frozen=True)
class Batch:
    """indices (L,), offsets (B+1,), per_sample_weights (L,) or None, over a table of E rows."""

    name: str
    num_embeddings: int
    indices: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray | None = None
    padding_idx: int = ops.NO_PADDING

    def __str__(self) -> str:
        return self.name

    @property
    def num_bags(self) -> int:
        return len(self.offsets) - 1

    @property
    def slots(self) -> np.ndarray:
        """Identity slots; rubbish where the index is padding, which no kernel may follow."""
        return np.where(self.indices == self.padding_idx, np.int64(10**12), self.indices)


def zipf(rng: np.random.Generator, num_embeddings: int, length: int, alpha: float = 1.05):
    """Zipf-distributed row numbers, scattered over the table."""
    p = np.arange(1, num_embeddings + 1, dtype=np.float64) ** -alpha
    ranks = rng.choice(num_embeddings, size=length, p=p / p.sum())
    return rng.permutation(num_embeddings)[ranks].astype(np.int64)


def _offsets(*sizes: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def batches() -> list[Batch]:
    """Small enough for the reference, all different in kind."""
    rng = np.random.default_rng(7)
    mixed = rng.integers(0, 50, 60)
    mixed[[0, 59]] = [0, 49]
    weights = rng.standard_normal(60).astype(np.float32)
    weights[10:13] = [1.0, -1.0, 0.0]
    padded = mixed.copy()
    padded[::7] = -1
    inside = mixed.copy()
    inside[::5] = 3
    return [
        Batch("no bags", 5, np.empty(0, np.int64), _offsets()),
        Batch("only empty bags", 5, np.empty(0, np.int64), _offsets(0, 0, 0)),
        Batch("one bag", 50, mixed, _offsets(60)),
        Batch("bags of one", 50, mixed, np.arange(61)),
        Batch("empty bags at both ends and inside", 50, mixed, _offsets(0, 3, 0, 0, 50, 7, 0)),
        Batch("all duplicates", 9, np.full(700, 8), _offsets(100, 300, 0, 300)),
        Batch("weighted", 50, mixed, _offsets(10, 3, 40, 7), weights),
        Batch("weighted, padding -1", 50, padded, _offsets(1, 12, 40, 7), weights, -1),
        Batch("padding inside the table", 50, inside, _offsets(10, 1, 42, 7), None, 3),
        Batch("only padding", 50, np.full(6, -1), _offsets(2, 4), None, -1),
        Batch("zipf", 1000, zipf(rng, 1000, 900), _offsets(*[30] * 30)),
    ]


def hot_batch() -> Batch:
    """Two rows far beyond a shared block, many beyond one block of 256."""
    rng = np.random.default_rng(11)
    indices = np.concatenate(
        [np.full(5000, 3), np.full(2049, 17), np.full(2048, 18), rng.integers(20, 40, 6000)]
    )
    rng.shuffle(indices)
    return Batch("hot rows", 41, indices.astype(np.int64), _offsets(*[1] * 97, len(indices) - 97))


def records(
    num_embeddings: int, dim: int, optimizer: Any = None, *, seed: int = 5, virgin: float = 0.3
) -> ops.Records:
    """A table of which this share of rows was never written; lanes beyond the state are padding."""
    rng = np.random.default_rng(seed)
    state = optimizer.state_fields(dim) if optimizer is not None else ()
    lanes = dim + sum(field.lanes for field in state)
    data = np.zeros((num_embeddings, -(-lanes // 4) * 4), np.float32)
    written = rng.random(num_embeddings) >= virgin
    data[written, :dim] = rng.standard_normal((written.sum(), dim)) + np.float32(1e-3)
    at = dim
    for field in state:
        sign = np.abs if field.name != "exp_avg" else np.asarray
        data[written, at : at + field.lanes] = sign(
            rng.standard_normal((written.sum(), field.lanes)) * 0.1
        )
        at += field.lanes
    data[written & (data[:, 0] == 0), 0] = -0.0
    init = Normal(0.5) if dim % 2 else Uniform(0.5)
    return ops.Records(data, np.zeros(num_embeddings, np.uint8), dim, init, seed=2**64 - 3)


def narrow_records(
    rows: int, dim: int, optimizer: Any, precision: Precision, virgin: float = 0.3
) -> tuple[ops.Records, Layout]:
    """As `records`, in other dtypes; and how a record lies in memory."""
    rng = np.random.default_rng(5)
    state = optimizer.state_fields(dim) if optimizer is not None else ()
    fields = (("weight", dim), *((field.name, field.lanes) for field in state))
    layout = Layout(rows, dim, fields, precision)
    data = np.zeros((rows, layout.lanes), np.float32)
    parts = layout.structured(data)
    written = rng.random(rows) >= virgin
    weights = rng.standard_normal((rows, dim)).astype(np.float32)
    if precision.dtype == "int8":
        parts["scale"], parts["bias"], parts["weight"] = quantise(weights)
    else:
        parts["weight"] = narrow(weights, precision.dtype)
        parts["weight"][::3, 0] = 0  # stored as -0.0
    for field in state:
        values = np.abs(rng.standard_normal((rows, field.lanes)) * 0.1).astype(np.float32)
        stored = narrow(values, precision.of_field(field.lanes))
        parts[field.name] = stored.reshape(parts[field.name].shape)
    layout.keep_written(data)
    data[~written] = 0
    flags = np.zeros(rows, np.uint8)
    return ops.Records(data, flags, dim, Normal(0.5), 2**64 - 3, precision), layout


def twin(rec: ops.Records) -> ops.Records:
    """A copy with arrays of its own."""
    return copy.deepcopy(rec)


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Equality of every bit; NaN equals NaN of the same bits, and 0.0 is not -0.0."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.size == 0:
        return
    as_bytes = f"u{found.dtype.itemsize}"
    a, b = np.ascontiguousarray(found).view(as_bytes), np.ascontiguousarray(expected).view(as_bytes)
    different = np.argwhere(a != b)
    assert len(different) == 0, (
        f"{len(different)} of {a.size} differ, first at {tuple(different[0])}:"
        f" {found[tuple(different[0])]!r} for {expected[tuple(different[0])]!r}"
    )
