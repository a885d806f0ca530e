"""A DLRM training step: our collection of tables against nn.EmbeddingBag and torch's SparseAdam.

26 tables with the skew of categorical ad fields (Zipf, s = 0.96), 13 dense features, pairwise
interactions, two MLPs under Adam.  Three steps take turns: tables of sparse_embed trained in
backward by LazyAdam; nn.EmbeddingBag(sparse=True) and SparseAdam with the same numbers; the same
model on bags that are given, which neither side can save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Case, Competitor, Settings, race
from benchmarks.peers import torch_missing

ABOUT = "a whole DLRM step in torch: our modules against nn.EmbeddingBag + SparseAdam"


def run(settings: Settings) -> Iterator[Case]:
    if torch_missing() is not None:
        yield Case("a DLRM step", absent={"torch": str(torch_missing())})
        return
    sizes = [(64, 26_000, 1)] if settings.quick else [(2048, 1_000_000, 1), (2048, 10_000_000, 1)]
    for batch, total, hot in sizes:
        yield measure(settings, batch, 64, total, hot)


def measure(settings: Settings, batch: int, dim: int, total_rows: int, hot: int) -> Case:
    """Steps of the three in turn, after their losses and rows were compared."""
    import torch

    from benchmarks import dlrm

    torch.manual_seed(0)
    rows = dlrm.table_rows(total_rows)
    batches = dlrm.make_batches(rows, batch, hot, 8)
    ours = dlrm.Ours(rows, dim, dlrm.Dense(dim))
    theirs = dlrm.Theirs(ours)
    difference = dlrm.check(ours, theirs, batches[:3])
    dense = dlrm.DenseOnly(ours, batch, dim)
    steps: dict[str, Any] = {
        "sparse_embed": ours.step,
        "torch SparseAdam": theirs.step,
        "the dense part alone": dense.step,
    }
    competitors = [
        Competitor(name, lambda i, step=step: step(batches[i % len(batches)]))
        for name, step in steps.items()
    ]
    total = sum(rows.values())
    name = f"DLRM, {dlrm.NUM_TABLES} tables, {total:,} rows x {dim}, batch {batch} x {hot}"
    case = race(name, competitors, settings.count(12, 2))
    least = case.median("the dense part alone")
    embedding = [max(case.median(name) - least, 1e-9) for name in list(steps)[:2]]
    case.facts = {
        "largest difference of a row": difference,
        "embedding part alone, theirs / ours": embedding[1] / embedding[0],
    }
    return case
