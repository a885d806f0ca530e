"""Many tables in one step, as click models have them: forward, backward, optimizer.

26 tables of 1,000 to 4,000,000 rows x 32, batch 2048, one id a table, ids with the skew of ad
fields; and the same with bags of 13 ids (the mean of Meta's published batch: 1.405e9 accesses in
788 tables x 131,072 samples), drawn by Zipf as before.  Every row of every table was trained
before, on all sides.

"C: floor" is what no step of all tables together can avoid, as in `train_step`: the lookup, one
sort of (table and row, bag), the sum of each row's gradients, and the optimizer on the records
given these sums, each as its own pass over all tables at once.  Where a record lies is given.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

import sparse_embed as se
from benchmarks import peers, tables, workloads
from benchmarks.ceilings import Ceilings, Room, best_distance, label
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
            cache_bytes=tables.CACHE,
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


class Separate:
    """The tables of a collection, a lookup and an update each."""

    name = "sparse_embed, a call a table"

    def __init__(self, ours: Collection) -> None:
        self.tables, self.weight = ours.tables, ours.weight

    def prepare(self, features: list[Any], offsets: Any, grad: Any) -> Any:
        parts = np.split(grad, len(features), axis=1)
        return features, offsets, [np.ascontiguousarray(part) for part in parts]

    def step(self, batch: Any) -> None:
        features, offsets, parts = batch
        for table, ids in zip(self.tables, features, strict=True):
            table.lookup(ids, offsets, mode="sum")
        for table, ids, part in zip(self.tables, features, parts, strict=True):
            table.update(part, ids, offsets, mode="sum")


class Floor:
    """The unavoidable in C, on the records of a collection whose rows are laid out by number."""

    name = label("floor")

    def __init__(self, ours: Collection, optimizer: str, rate: float) -> None:
        self.weight, self._optimizer, self._rate = ours.weight, optimizer, rate
        found = [tables.records(table) for table in ours.tables]
        self._dim, self._lanes = ours.tables[0].embedding_dim, found[0].shape[1]
        at = [array.ctypes.data for array in found]
        ends = [a + array.nbytes for a, array in zip(at, found, strict=True)]
        floats = (ctypes.c_float * ((max(ends) - min(at)) // 4)).from_address(min(at))
        # "Rows" of it begin at every float: so all tables are one to the kernels.
        shape = (len(floats) - self._lanes + 1, self._lanes)
        self._records = as_strided(np.frombuffer(floats, np.float32), shape, (4, 4))
        self._begins = [(a - min(at)) // 4 for a in at]
        rows = [table.num_embeddings for table in ours.tables]
        self._keys = np.concatenate([[0], np.cumsum(rows)])
        self._native = Ceilings(self._dim, se.get_num_threads())
        self.ahead = [16, 4]

    def prepare(self, features: list[Any], offsets: Any, grad: Any) -> Any:
        count, size = len(features), len(offsets) - 1
        starts = [offsets[:-1] + n * offsets[-1] for n in range(count)]
        bounds = np.concatenate([*starts, [offsets[-1] * count]])
        bag = np.repeat(np.arange(size), np.diff(offsets))
        bags = np.concatenate([bag * count + n for n in range(count)]).astype(np.int32)
        at = np.concatenate([self._begins[n] + self._lanes * ids for n, ids in enumerate(features)])
        keys = np.concatenate([self._keys[n] + ids for n, ids in enumerate(features)])
        _, one = np.unique(keys, return_index=True)
        return at, bounds, keys, bags, at[one], grad.reshape(-1, self._dim), Room(keys, self._dim)

    def tune(self, prepared: Any) -> None:
        """Find the best distances of prefetching."""
        at, bounds, keys, bags, _, grad, room = prepared
        self._native.merge(grad, keys, bags, room)
        self.ahead = [
            best_distance(lambda a: self._native.gather_sum(self._records, at, bounds, ahead=a)),
            best_distance(lambda a: self._update(prepared, 0.0, a)),
        ]

    def _update(self, prepared: Any, rate: float, ahead: int) -> None:
        rows, room = prepared[4], prepared[6]
        self._native.update_rows(self._optimizer, self._records, rows, room.sums, rate, ahead)

    def step(self, prepared: Any) -> None:
        at, bounds, keys, bags, _, grad, room = prepared
        self._native.gather_sum(self._records, at, bounds, ahead=self.ahead[0])
        self._native.merge(grad, keys, bags, room)
        self._update(prepared, self._rate, self.ahead[1])


def _batches(rows: list[int], batch: int, bag: int, seeds: range) -> list[list[Any]]:
    """Row numbers of each table, for each seed."""
    drawn = []
    for n, count in enumerate(rows):
        works = [Workload(count, 32, batch, bag, workloads.ADS, seed=s * 1000 + n) for s in seeds]
        drawn.append([work.batches(1)[0] for work in works])
    return [list(features) for features in zip(*drawn, strict=True)]


def _race(settings: Settings, name: str, rows: list[int], batch: int, bag: int, dim: int) -> Case:
    _gate(name, dim)
    offsets = np.arange(0, batch * bag + 1, bag, dtype=np.int64)
    grad = np.random.default_rng(5).standard_normal((batch, len(rows) * dim)).astype(np.float32)
    batches = _batches(rows, batch, bag, range(4))
    kinds, absent = peers.training_peers(name)
    competitors = []
    ours = Collection(rows, dim, name)
    for table in ours.tables:
        tables.fill(table)
    least = Floor(ours, name, 1e-3)
    least.tune(least.prepare(batches[0], offsets, grad))
    for side in (ours, Separate(ours), *(kind(rows, dim, name) for kind in kinds), least):
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
    keys = [np.unique(features[n]) for features in batches for n in range(len(rows))]
    case.facts = {
        "rows touched a step": sum(len(found) for found in keys) / len(batches),
        "prefetch distances of the floor": least.ahead,
    }
    if name == "lazy_adam":
        case.absent.setdefault("FBGEMM", "has no Adam on the CPU")
    ours.bags.store.close()
    return case


def _gate(name: str, dim: int) -> None:
    """One step of four small tables from the same weights."""
    rows, batch, bag = sizes(4, 30, 500), 64, 3
    rng = np.random.default_rng(6)
    weights = [rng.standard_normal((count, dim)).astype(np.float32) for count in rows]
    (features,) = _batches(rows, batch, bag, range(9, 10))
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

    ours = [Collection(rows, dim, name) for _ in range(3)]
    for one in ours:
        one.assign(weights)
    rate = peers.LR[name]
    if name == "lazy_adam":  # the first step's bias corrections
        rate *= float(np.sqrt(1 - 0.999)) / (1 - 0.9)
    theirs = [kind(rows, dim, name, weights) for kind in peers.training_peers(name)[0]]
    sides = [ours[0], Separate(ours[1]), Floor(ours[2], name, rate), *theirs]
    competitors = [Competitor(side.name, print, lambda side=side: result(side)) for side in sides]
    gate(competitors, wanted, 2e-5, f"multi_table {name}")
