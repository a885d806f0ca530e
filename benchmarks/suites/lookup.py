"""Pooled lookup from resident records: ours, C on the same memory, torch and FBGEMM.

Peers read weight-only records where they lie, when these are packed (else their own copy on huge
pages).  "C: gather" is the best of several prefetch distances and checks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import peers, tables
from benchmarks.ceilings import Ceilings, best_distance, label
from benchmarks.harness import Case, Competitor, Settings, gate, race
from benchmarks.workloads import Workload

ABOUT = "bags of rows pooled: skews, bag sizes, dimensions, modes; weights alone or beside Adam's"

_BYTES = 2_560_000_000  # of a table's weights, whatever its dimension
DIMS = (8, 16, 32, 64, 100, 128, 256, 768)
BAGS = (1, 2, 8, 32, 200)
POSITIONS = 131_072


def run(settings: Settings) -> Iterator[Case]:
    base = Workload().changed(settings)
    if settings.quick:
        small = replace(base, num_embeddings=20_000, batch_size=256, bag_size=8)
        yield from _cases(settings, small, None, [small, replace(small, alpha=0.0)], ("sum",))
        yield from _cases(settings, small, "lazy_adam", [small], ("sum", "mean", "weighted"))
        return
    both = [base, replace(base, alpha=0.0)]
    yield from _cases(settings, base, "lazy_adam", both, ("sum",))
    bags = [
        replace(work, bag_size=size, batch_size=POSITIONS // size)
        for size in BAGS
        for work in both
        if (size, POSITIONS // size) != (base.bag_size, base.batch_size)
    ]
    yield from _cases(settings, base, None, [*both, *bags], ("sum",))
    yield from _cases(settings, base, None, both[:1], ("mean", "weighted"))
    for dim in DIMS:
        if dim != base.embedding_dim:
            rows = min(_BYTES // (4 * dim), 20_000_000)
            work = replace(base, embedding_dim=dim, num_embeddings=rows)
            yield from _cases(settings, work, None, [work, replace(work, alpha=0.0)], ("sum",))


def _cases(
    settings: Settings,
    shape: Workload,
    optimizer: str | None,
    works: list[Workload],
    modes: tuple[str, ...],
) -> Iterator[Case]:
    """Races on one table."""
    table = tables.filled(shape.num_embeddings, shape.embedding_dim, optimizer)
    try:
        for work in works:
            for mode in modes:
                yield _race(settings, table, work, mode)
    finally:
        table.close()


def _race(settings: Settings, table: se.EmbeddingTable, work: Workload, mode: str) -> Case:
    records, native = tables.records(table), Ceilings(work.embedding_dim, se.get_num_threads())
    batches, offsets = work.batches(8), work.offsets()
    shares = None
    if mode == "weighted":
        shares = np.random.default_rng(3).random(work.length).astype(np.float32)
    pooling = "sum" if mode == "weighted" else mode

    def ours(i: int) -> Any:
        return table.lookup(batches[i % 8], offsets, mode=pooling, per_sample_weights=shares)

    def gather(i: int, ahead: int) -> Any:
        mean = mode == "mean"
        return native.gather_sum(records, batches[i % 8], offsets, shares, mean, ahead)

    ahead = best_distance(lambda distance: gather(0, distance))
    competitors = [
        Competitor("sparse_embed", ours, lambda: ours(0)),
        Competitor(label("gather"), lambda i: gather(i, ahead), lambda: gather(0, ahead)),
    ]
    absent: dict[str, str] = {}
    if table.optimizer is None:
        kinds, absent = peers.lookup_peers(work.embedding_dim)
        for kind in kinds:
            competitors.append(_peer(kind, tables.weights(table), batches, offsets, shares, mode))
    # Sums of some hundred float32 below 0.1 in another order.
    gate(competitors, _expected(table, batches[0], offsets, shares, mode), 1e-4, work.name)
    state = "weights only" if table.optimizer is None else "training records"
    if mode != "sum":
        state += f", {mode}"
    case = race(
        f"{state}: {work.name}",
        competitors,
        settings.count(25, 2),
        absent=absent,
        moved_bytes=4 * work.embedding_dim * (work.length + work.batch_size),
    )
    case.facts["prefetch distance of the ceiling"] = ahead
    return case


def _peer(
    kind: type[peers.Lookup], weight: Any, batches: Any, offsets: Any, shares: Any, mode: str
) -> Competitor:
    lookup = kind(weight, "mean" if mode == "mean" else "sum")
    prepared = [lookup.prepare(batch, offsets, shares) for batch in batches]
    return Competitor(
        kind.name, lambda i: lookup(prepared[i % 8]), lambda: lookup(prepared[0]).numpy()
    )


def _expected(table: se.EmbeddingTable, batch: Any, offsets: Any, shares: Any, mode: str) -> Any:
    """In float64, from the table's weights."""
    rows = tables.weights(table)[batch].astype(np.float64)
    if shares is not None:
        rows *= shares[:, None]
    sums = np.add.reduceat(rows, offsets[:-1])
    return sums / np.diff(offsets)[:, None] if mode == "mean" else sums
