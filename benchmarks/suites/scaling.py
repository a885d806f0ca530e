"""What a step costs against the table's size, the batch's, the threads and the skew.

One LazyAdam step, lookup and update, of rows of 64; "floor" is what no step can avoid, in C (see
train_step).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import tables
from benchmarks.harness import Case, Competitor, Settings, race
from benchmarks.suites.train_step import floor
from benchmarks.workloads import WORDS, Workload, zipf_rows

ABOUT = "time a step against table size, batch, threads, skew"

_DIM, _BAG = 64, 32


def run(settings: Settings) -> Iterator[Case]:
    quick = settings.quick
    for rows in (10**4, 10**6) if quick else (10**5, 10**6, 10**7, 10**8, 10**9):
        for alpha in (WORDS, 0.0):
            yield _size(settings, rows, alpha, 2048 if quick else 131_072)
    rows = 20_000 if quick else 10_000_000
    table = tables.filled(rows, _DIM, "lazy_adam")
    try:
        for ids in (256, 1024) if quick else (128, 1024, 8192, 32_768, 131_072, 524_288, 1_048_576):
            work = Workload(rows, _DIM, ids // _BAG, _BAG)
            yield _step(settings, table, work, "ids a batch", ids)
        for alpha in (0.0, 1.05) if quick else (0.0, 0.3, 0.6, 0.8, 0.9, 1.05, 1.2, 1.5):
            work = Workload(rows, _DIM, 32 if quick else 4096, _BAG, alpha)
            yield _step(settings, table, work, "Zipf's exponent", alpha)
        all_threads = se.get_num_threads()
        try:
            for threads in range(1, all_threads + 1):
                se.set_num_threads(threads)
                work = Workload(rows, _DIM, 32 if quick else 4096, _BAG)
                yield _step(settings, table, work, "threads", threads)
        finally:
            se.set_num_threads(all_threads)
    finally:
        table.close()


def _size(settings: Settings, rows: int, alpha: float, ids: int) -> Case:
    rng = np.random.default_rng(8)
    batches = [zipf_rows(rows, alpha, ids, rng) for _ in range(4)]
    offsets = np.arange(0, ids + 1, _BAG, dtype=np.int64)
    grad = rng.standard_normal((ids // _BAG, _DIM)).astype(np.float32)
    table = tables.make(rows, _DIM, "lazy_adam", cache_bytes=8 << 30)
    touched = len(np.unique(batches[0]))

    def step(i: int) -> None:
        table.lookup(batches[i % 4], offsets, mode="sum")
        table.update(grad, batches[i % 4], offsets, mode="sum")

    skew = f"zipf({alpha:g})" if alpha else "uniform"
    case = race(
        f"{ids:,} ids of {rows:,} rows, {skew}",
        [Competitor("sparse_embed", step)],
        settings.count(12, 2),
        warmup=6,
        axis=(f"rows of the table, {skew}", rows),
    )
    case.facts = {"rows touched a step": touched, "layout": table.info()["resident"]}
    table.close()
    return case


def _step(
    settings: Settings, table: se.EmbeddingTable, work: Workload, axis: str, place: float
) -> Case:
    batches, offsets = work.batches(4), work.offsets()
    shape = (work.batch_size, _DIM)
    grad = np.random.default_rng(9).standard_normal(shape).astype(np.float32)

    def step(i: int) -> None:
        table.lookup(batches[i % 4], offsets, mode="sum")
        table.update(grad, batches[i % 4], offsets, mode="sum")

    facts: dict[str, Any] = {"rows touched a step": len(np.unique(batches[0]))}
    least = floor(table, "lazy_adam", work, batches, offsets, grad, facts)[:1]
    rounds = settings.count(12 if work.length > 200_000 else 25, 2)
    case = race(
        f"{axis} {place:g}: {work.name}",
        [Competitor("sparse_embed", step), *least],
        rounds,
        axis=(axis, place),
    )
    case.facts = facts
    return case
