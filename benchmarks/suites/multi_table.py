"""Many tables in one step, as click models have them: forward, backward, optimizer.

26 tables of 1,000 to 4,000,000 rows x 32, batch 2048, one id a table, ids with the skew of ad
fields; and the same with bags of 13 ids (the mean of Meta's published batch: 1.405e9 accesses in
788 tables x 131,072 samples), drawn by Zipf as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import peers, tables, workloads
from benchmarks.harness import Case, Competitor, Settings, gate, race
from benchmarks.suites.train_step import expected_step
from benchmarks.workloads import Workload

ABOUT = "26 tables x 32, batch 2048: one batched call against FBGEMM's and torch's"


def sizes(count: int = 26, smallest: int = 1_000, largest: int = 4_000_000) -> list[int]:
    return [round(size) for size in np.geomspace(smallest, largest, count)]


def run(settings: Settings) -> Iterator[Case]:
    if settings.quick:
        yield _race(settings, "row_wise_adagrad", sizes(4, 50, 2000), 64, 2, 16)
        return
    for bag in (1, 13):
        for name in ("row_wise_adagrad", "lazy_adam", "adagrad", "sgd")[: 4 if bag == 1 else 2]:
            yield _race(settings, name, sizes(), 2048, bag, 32)


class Collection:
    """Ours: one batched lookup and one batched update of all tables."""

    name = "sparse_embed"

    def __init__(self, rows: list[int], dim: int, optimizer: str) -> None:
        self.bags = se.EmbeddingBagCollection.create(
            None,
            {f"t{n}": count for n, count in enumerate(rows)},
            dim,
            optimizer=tables.OPTIMIZERS[optimizer],
            cache_bytes=1 << 30,
        )
        self.tables = list(self.bags.tables.values())

    def prepare(self, features: list[Any], offsets: Any, grad: Any) -> Any:
        length = int(offsets[-1])
        starts = [offsets[:-1] + n * length for n in range(len(features))]
        return np.concatenate(features), np.concatenate([*starts, [length * len(features)]]), grad

    def step(self, prepared: Any) -> None:
        indices, offsets, grad = prepared
        batch = self.bags.batch(indices, offsets)
        self.bags.lookup(batch)
        self.bags.update(grad, batch)

    def weight(self, table: int) -> Any:
        found = self.tables[table]
        return found.lookup(np.arange(found.num_embeddings))

    def assign(self, weights: list[Any]) -> None:
        for table, weight in zip(self.tables, weights, strict=True):
            table.assign(np.arange(len(weight)), weight)


class Separate(Collection):
    """A table each, a lookup and an update each."""

    name = "sparse_embed, a call a table"

    def __init__(self, rows: list[int], dim: int, optimizer: str) -> None:
        self.tables = [tables.make(count, dim, optimizer, cache_bytes=1 << 30) for count in rows]

    def prepare(self, features: list[Any], offsets: Any, grad: Any) -> Any:
        dim = self.tables[0].embedding_dim
        parts = [
            np.ascontiguousarray(grad[:, n * dim : (n + 1) * dim]) for n in range(len(features))
        ]
        return features, offsets, parts

    def step(self, batch: Any) -> None:
        features, offsets, parts = batch
        for table, ids in zip(self.tables, features, strict=True):
            table.lookup(ids, offsets, mode="sum")
        for table, ids, part in zip(self.tables, features, parts, strict=True):
            table.update(part, ids, offsets, mode="sum")


def _batch(rows: list[int], batch: int, bag: int, seed: int) -> list[Any]:
    """Row numbers of each table."""
    found = []
    for table, count in enumerate(rows):
        work = Workload(count, 32, batch, bag, workloads.ADS, seed=seed * 1000 + table)
        found += work.batches(1)
    return found


def _race(settings: Settings, name: str, rows: list[int], batch: int, bag: int, dim: int) -> Case:
    _gate(name, dim)
    offsets = np.arange(0, batch * bag + 1, bag, dtype=np.int64)
    grad = np.random.default_rng(5).standard_normal((batch, len(rows) * dim)).astype(np.float32)
    batches = [_batch(rows, batch, bag, seed) for seed in range(4)]
    kinds, absent = peers.training_peers(name)
    competitors = []
    ours = (Collection(rows, dim, name), Separate(rows, dim, name))
    for side in (*ours, *(kind(rows, dim, name) for kind in kinds)):
        prepared = [side.prepare(features, offsets, grad) for features in batches]

        def step(i: int, side: Any = side, prepared: list[Any] = prepared) -> None:
            side.step(prepared[i % 4])

        competitors.append(Competitor(side.name, step))
    case = race(
        f"{name}: {len(rows)} tables of {rows[0]:,} to {rows[-1]:,} rows x {dim}, "
        f"batch {batch} x {bag}, zipf({workloads.ADS:g})",
        competitors,
        settings.count(15, 2),
        warmup=4,
        absent=absent,
    )
    if name == "lazy_adam":
        case.absent.setdefault("FBGEMM", "has no Adam on the CPU")
    return case


def _gate(name: str, dim: int) -> None:
    """One step of four small tables from the same weights."""
    rows, batch, bag = sizes(4, 30, 500), 64, 3
    rng = np.random.default_rng(6)
    weights = [rng.standard_normal((count, dim)).astype(np.float32) for count in rows]
    features = _batch(rows, batch, bag, 9)
    offsets = np.arange(0, batch * bag + 1, bag, dtype=np.int64)
    grad = rng.standard_normal((batch, len(rows) * dim)).astype(np.float32)
    wanted = np.concatenate(
        [
            expected_step(weight, grad[:, n * dim : (n + 1) * dim], features[n], offsets, name)
            for n, weight in enumerate(weights)
        ]
    )

    def result(side: Any) -> Any:
        side.step(side.prepare(features, offsets, grad))
        return np.concatenate([side.weight(n) for n in range(len(rows))])

    ours = (Collection(rows, dim, name), Separate(rows, dim, name))
    for one in ours:
        one.assign(weights)
    sides = [*ours, *(kind(rows, dim, name, weights) for kind in peers.training_peers(name)[0])]
    competitors = [Competitor(side.name, print, lambda side=side: result(side)) for side in sides]
    gate(competitors, wanted, 2e-5, f"multi_table {name}")
