"""Pooled lookup from resident records: C, ours, torch, NumPy."""

from __future__ import annotations

import numpy as np

import sparse_embed as se
from benchmarks.ceilings import Ceilings
from benchmarks.harness import Case, Competitor, gate, race
from benchmarks.workloads import Workload

ABOUT = "bags of rows, summed; records with weights only and with Adam's state"


def run(quick: bool) -> list[Case]:
    cases = []
    rows = 100_000 if quick else 10_000_000
    for optimizer in (None, se.LazyAdam()):
        for alpha in (1.05, 0.0):
            work = Workload(num_embeddings=rows, alpha=alpha, batch_size=256 if quick else 4096)
            cases.append(_race(work, optimizer, 3 if quick else 40))
    return cases


def _race(work: Workload, optimizer: se.LazyAdam | None, rounds: int) -> Case:
    table = se.EmbeddingTable.create(
        None,
        num_embeddings=work.num_embeddings,
        embedding_dim=work.embedding_dim,
        optimizer=optimizer,
        cache_bytes=12 << 30,
    )
    fill(table)
    records = table._table.rows.resident.records
    batches, offsets = work.batches(8), work.offsets()
    competitors = [
        Competitor(
            "sparse_embed",
            lambda i: table.lookup(batches[i % 8], offsets, mode="sum"),
            lambda: table.lookup(batches[0], offsets, mode="sum"),
        )
    ]
    absent = {}
    try:
        native = Ceilings(work.embedding_dim, se.get_num_threads())
        competitors.append(
            Competitor(
                "C",
                lambda i: native.gather_sum(records, batches[i % 8], offsets),
                lambda: native.gather_sum(records, batches[0], offsets),
            )
        )
    except LookupError as error:
        absent["C"] = str(error)
    if optimizer is None:
        try:
            import torch
            import torch.nn.functional as functional

            torch.set_num_threads(se.get_num_threads())
            weight = torch.from_numpy(records)
            ids = [torch.from_numpy(batch) for batch in batches]
            starts = torch.from_numpy(offsets[:-1].copy())

            def by_torch(i: int) -> object:
                with torch.no_grad():
                    return functional.embedding_bag(ids[i % 8], weight, starts, mode="sum")

            competitors.append(Competitor("torch", by_torch, lambda: by_torch(0).numpy()))  # type: ignore[attr-defined]
        except ImportError:
            absent["torch"] = "not installed"
    weights = records[:, : work.embedding_dim]
    expected = np.add.reduceat(weights[batches[0]].astype(np.float64), offsets[:-1])
    # Sums of 32 float32 in another order: 32 * eps * the largest sum.
    gate(competitors, expected, 1e-5, work.name)
    state = "weights only" if optimizer is None else "training records"
    case = race(f"lookup, {state}: {work.name}", competitors, rounds)
    case.absent = absent
    table.close()
    return case


def fill(table: se.EmbeddingTable) -> None:
    """Give every row a written record, as a trained table has."""
    # A quarter of the rows in memory makes the table lay them all out by row number.
    table.prefetch(np.arange(table.num_embeddings // 4 + 1))
    table.lookup([0])
    resident = table._table.rows.resident
    assert table.info()["resident"] == "identity"
    rng = np.random.default_rng(1)
    block = rng.standard_normal((1 << 16, resident.records.shape[1])).astype(np.float32)
    np.abs(block, out=block)
    block *= np.float32(0.01)
    for begin in range(0, table.num_embeddings, len(block)):
        part = resident.records[begin : begin + len(block)]
        part[:] = block[: len(part)]
