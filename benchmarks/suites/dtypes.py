"""Tables of 16-bit floats and int8 rows against float32: lookups, and steps that round.

The arithmetic is float32 everywhere, so what narrow rows save is memory traffic: lines of 64 bytes
a row of 64 are four in float32, two in 16 bits and two (80 bytes) in int8.  "C: ..." sums the same
records at the best of several prefetch distances and checks nothing: what there is to be saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import tables
from benchmarks.ceilings import Ceilings, best_distance, label, language
from benchmarks.harness import Case, Competitor, Settings, gate, race
from benchmarks.workloads import Workload
from sparse_embed import quantize

ABOUT = "bfloat16, float16 and int8 tables against float32"

_STEPS = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, state too": {"dtype": "bfloat16", "state_dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "bfloat16, nearest": {"dtype": "bfloat16", "rounding": "nearest"},
}


def run(settings: Settings) -> Iterator[Case]:
    base = Workload().changed(settings)
    if settings.quick:
        base = replace(base, num_embeddings=20_000, batch_size=256, bag_size=8)
    yield from _lookups(settings, base)
    yield from _steps(settings, base)


def _lookups(settings: Settings, base: Workload) -> Iterator[Case]:
    """Weight-only tables of the same weights, each rounded to its dtype."""
    made = {"float32": tables.filled(base.num_embeddings, base.embedding_dim, None)}
    for dtype in quantize.DTYPES:
        made[dtype] = _narrow_copy(made["float32"], dtype)
    for alpha in (0.0, base.alpha):
        work = replace(base, alpha=alpha)
        batches, offsets = work.batches(8), work.offsets()

        def lookup(table: se.EmbeddingTable, i: int) -> Any:
            return table.lookup(batches[i % 8], offsets, mode="sum")  # noqa: B023 - used at once

        rows = tables.weights(made["float32"])[batches[0]].astype(np.float64)
        expected = np.add.reduceat(rows, offsets[:-1])
        competitors = []
        native = Ceilings(work.embedding_dim, se.get_num_threads())
        for dtype, table in made.items():
            competitor = Competitor(
                dtype, lambda i, t=table: lookup(t, i), lambda t=table: lookup(t, 0)
            )
            # Weights are below 0.06, in int8 their range is; half a step each, bag_size of them.
            step = {"float32": 0.0, "float16": 2**-15, "bfloat16": 2**-12, "int8": 2**-12}[dtype]
            both = [competitor]
            if language() != "Numba":
                both.append(_ceiling(native, tables.records(table), dtype, batches, offsets))
            gate(both, expected, 1e-4 + step * work.bag_size / 2, work.name)
            competitors += both
        absent = {"C": "no compiler was found"} if language() == "Numba" else {}
        case = race(f"lookup: {work.name}", competitors, settings.count(40, 2), absent=absent)
        case.facts["bytes of a record"] = {
            dtype: table.info()["record_bytes"] for dtype, table in made.items()
        }
        case.ours = "float32"
        yield case
    for table in made.values():
        table.close()


def _ceiling(
    native: Ceilings, records: Any, dtype: str, batches: list[Any], offsets: Any
) -> Competitor:
    def gather(i: int, ahead: int) -> Any:
        if dtype == "float32":
            return native.gather_sum(records, batches[i % 8], offsets, ahead=ahead)
        return native.gather_narrow(dtype, records, batches[i % 8], offsets, ahead)

    ahead = best_distance(lambda distance: gather(0, distance))
    return Competitor(label(dtype), lambda i: gather(i, ahead), lambda: gather(0, ahead))


def _narrow_copy(source: se.EmbeddingTable, dtype: str) -> se.EmbeddingTable:
    """What source.quantize(dtype) holds, laid out by row number as `source` is."""
    copy = source.quantize(dtype, rows=[])
    copy.prefetch(np.arange(copy.num_embeddings // 4 + 1))
    copy.lookup([0])
    assert copy.info()["resident"] == "identity"
    records, weights = tables.records(copy), tables.weights(source)
    # `tables.filled` repeats a block of rows, so one block's records are all there is.
    rows = range(min(tables.BLOCK, source.num_embeddings))
    layout = copy._table.rows.layout
    found = quantize.blocks(rows, layout, lambda part: weights[part])
    block = np.concatenate([data for _, data in found])
    for begin in range(0, len(records), len(block)):
        part = records[begin : begin + len(block)]
        part[:] = block[: len(part)]
    return copy


def _steps(settings: Settings, base: Workload) -> Iterator[Case]:
    """Whole training steps with LazyAdam: gradients merged, rows moved, rounded."""
    rows = min(base.num_embeddings, 1_000_000)
    made = {}
    for name, how in _STEPS.items():
        table = tables.make(rows, base.embedding_dim, "lazy_adam", **how)
        table.prefetch(np.arange(rows))
        made[name] = table
    for alpha in (0.0, base.alpha):
        work = replace(base, num_embeddings=rows, alpha=alpha)
        batches, offsets = work.batches(8), work.offsets()
        grad = np.random.default_rng(5).standard_normal((work.batch_size, work.embedding_dim))
        grad = (grad * 1e-2).astype(np.float32)

        def step(table: se.EmbeddingTable, i: int) -> None:
            table.update(grad, batches[i % 8], offsets, mode="sum")  # noqa: B023

        competitors = [
            Competitor(name, lambda i, t=table: step(t, i)) for name, table in made.items()
        ]
        case = race(f"step, lazy_adam: {work.name}", competitors, settings.count(30, 2), warmup=8)
        case.facts["bytes of a record"] = {
            name: table.info()["record_bytes"] for name, table in made.items()
        }
        case.ours = "float32"
        yield case
    for table in made.values():
        table.close()
