"""The row update alone, merged gradients given: ours against C on the same records.

Ours is `table.apply`: it checks, finds the records and marks them as changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import tables
from benchmarks.ceilings import EPS, Ceilings, best_distance, label
from benchmarks.harness import Case, Competitor, Settings, gate, race
from benchmarks.workloads import Workload

ABOUT = "apply merged gradients: four optimizers, two skews; C on the same records"


def run(settings: Settings) -> Iterator[Case]:
    base = Workload().changed(settings)
    if settings.quick:
        base = replace(base, num_embeddings=20_000, batch_size=256, bag_size=8)
    for name in ("lazy_adam",) if settings.quick else tables.OPTIMIZERS:
        table = tables.filled(base.num_embeddings, base.embedding_dim, name)
        try:
            for work in [base, replace(base, alpha=0.0)]:
                yield _race(settings, name, table, work)
        finally:
            table.close()


def _race(settings: Settings, name: str, table: se.EmbeddingTable, work: Workload) -> Case:
    native, records = Ceilings(work.embedding_dim, se.get_num_threads()), tables.records(table)
    rng = np.random.default_rng(4)
    rows = [np.unique(batch) for batch in work.draw(4)]
    values = [
        rng.standard_normal((len(found), work.embedding_dim)).astype(np.float32) for found in rows
    ]
    merged = [
        se.SparseGrad(found, value, table.num_embeddings)
        for found, value in zip(rows, values, strict=True)
    ]
    competitors = [Competitor("sparse_embed", lambda i: table.apply(merged[i % 4]))]
    _gate(name, table, native, rows[0], values[0], merged[0])

    def update(i: int, rate: float, ahead: int) -> None:
        native.update_rows(name, records, rows[i % 4], values[i % 4], rate, ahead)

    ahead = best_distance(lambda a: update(0, 0.0, a))
    competitors.append(Competitor(label("row update"), lambda i: update(i, 1e-3, ahead)))
    lanes = records.shape[1]
    count = float(np.mean([len(found) for found in rows]))
    return race(
        f"{name}: {count:,.0f} rows of {work.num_embeddings:,} x {work.embedding_dim}, {work.skew}",
        competitors,
        settings.count(20, 2),
        moved_bytes=int(4 * count * (2 * lanes + work.embedding_dim)),
    )


def _gate(
    name: str,
    table: se.EmbeddingTable,
    native: Ceilings,
    rows: Any,
    values: Any,
    merged: se.SparseGrad,
) -> None:
    """Our step and C's, from the same records, against the formula in float64."""
    records, dim = tables.records(table), table.embedding_dim
    before = records[rows].copy()
    wide, g, rate = before.astype(np.float64), values.astype(np.float64), float(table.lr)
    weight, state, second = wide[:, :dim], wide[:, dim : 2 * dim], wide[:, 2 * dim : 3 * dim]
    if name == "lazy_adam":
        step = table.step + 1
        rate *= np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        change = (0.9 * state + 0.1 * g) / (np.sqrt(0.999 * second + 0.001 * g**2) + EPS[name])
    elif name == "adagrad":
        change = g / (np.sqrt(state + g**2) + EPS[name])
    elif name == "row_wise_adagrad":
        total = wide[:, dim : dim + 1] + np.mean(g**2, axis=1, keepdims=True)
        change = g / (np.sqrt(total) + EPS[name])
    else:
        change = g

    def ours() -> Any:
        table.apply(merged)
        return table.lookup(rows)

    def c() -> Any:
        records[rows] = before
        native.update_rows(name, records, rows, values, rate)
        return records[rows, :dim]

    competitors = [Competitor("sparse_embed", print, ours), Competitor("C", print, c)]
    gate(competitors, weight - rate * change, 1e-5, name)
