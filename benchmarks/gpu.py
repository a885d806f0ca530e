"""Tables in GPU memory against the card's own copy, torch and FBGEMM on the same card.

    bags      65,536 x 32 of 64 columns, uniform over a table many times the L2 cache
    step      backward and LazyAdam of the same batch, fused; torch's EmbeddingBag and SparseAdam
    cache     a table ten times its cache, Zipf(1.05), with and without prefetch of the next batch:
              lookups alone, and steps around a stand-in for a model
    more      `benchmarks.gpu_tables`: narrow tables, collections of tables

Times are the device's, between two events on the default stream, after a warm-up; rounds take
turns.  A sample is the mean of several calls one after another, as a training loop makes them, so
that Python's share shows where it is longer than the card's; "one call" waits for each.  "copy"
moves as many bytes as the rows of the batch have, from one place of the card to another: its
samples say what the memory can do today.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import gpu_tables
from benchmarks.harness import Case, Competitor, Settings, gate
from benchmarks.workloads import Workload

_WARM_UP = 3
_CACHED = 2_000_000  # rows of the tables that do not fit their cache
_MODEL = 2 << 30  # bytes that the stand-in for a model moves, eight times
_CALLS = 24  # of a sample
_ALONE = ", one call"
_CHECKED = 32  # bags that are compared with sums in float64


def cases(settings: Settings) -> list[Callable[[], Iterable[Case]]]:
    """For a machine with a GPU; one may fail without the others."""
    base = Workload(batch_size=65_536, alpha=0.0).changed(settings)
    if settings.quick:
        base = replace(base, num_embeddings=50_000, batch_size=1024, bag_size=8)
    small = replace(base, batch_size=max(256, base.batch_size // 16))
    return [
        lambda: [_bags(settings, base)],
        lambda: [_step(settings, base)],
        lambda: _cache(settings, replace(small, alpha=1.05)),
        lambda: gpu_tables.narrow(settings, base, device_race),
        lambda: gpu_tables.collection(settings, small, device_race),
    ]


def device_race(
    name: str,
    competitors: list[Competitor],
    rounds: int,
    absent: dict[str, str],
    moved: int,
    calls: int = _CALLS,
) -> Case:
    """As `harness.race`, timed by the device's events; call j of round i is run(i * calls + j)."""
    from sparse_embed.kernels.cuda._shim import cuda

    case = Case(name, {competitor.name: [] for competitor in competitors}, dict(absent))
    case.moved_bytes = moved or None
    for i in range(-_WARM_UP, rounds):
        turn = i % len(competitors)
        for competitor in [*competitors[turn:], *competitors[:turn]]:
            if competitor.before is not None:
                competitor.before(i)
            cuda.synchronize()
            begin, end = cuda.event(), cuda.event()
            alone = calls == 1 or competitor.name.endswith(_ALONE)
            begin.record()
            for j in range(1 if alone else calls):
                competitor.run(i * calls + j)
            end.record()
            end.synchronize()
            if i >= 0:
                seconds = cuda.event_elapsed_time(begin, end) / 1e3 / (1 if alone else calls)
                case.samples[competitor.name].append(seconds)
    if moved:
        case.facts = {
            f"{name}: GB/s": round(moved / case.median(name) / 1e9, 1) for name in case.samples
        }
    return case


def _table(work: Workload, optimizer: Any, cache_bytes: int | None = None) -> se.EmbeddingTable:
    """A table on the GPU whose rows were all trained."""
    table = se.EmbeddingTable.create(
        None,
        num_embeddings=work.num_embeddings,
        embedding_dim=work.embedding_dim,
        optimizer=optimizer,
        cache_bytes=cache_bytes,
        device="cuda",
    )
    resident = table._table.rows.resident
    lanes = table._table.rows.layout.lanes
    block = np.random.default_rng(1).standard_normal((1 << 16, lanes)).astype(np.float32)
    block = np.abs(block, out=block) * np.float32(0.01)
    if table.info()["resident"] == "identity":
        for begin in range(0, work.num_embeddings, len(block)):
            rows = np.arange(begin, min(begin + len(block), work.num_embeddings))
            resident.scatter(rows, block[: len(rows)])
    return table


def _upload(arrays: Any) -> list[Any]:
    from sparse_embed.device import device_memory

    return [device_memory(0).upload(array) for array in arrays]


def _copy(nbytes: int) -> Competitor:
    """The card's own copy of so many bytes; it reads and writes them."""
    from sparse_embed.device import device_memory

    memory = device_memory(0)
    source, target = memory.zeros(nbytes // 2, np.uint8), memory.zeros(nbytes // 2, np.uint8)
    return Competitor("copy", lambda i: memory.copy(target, source))


def torch_on_gpu(absent: dict[str, str]) -> Any:
    """torch with a GPU, or None and the reason."""
    try:
        import torch
    except ImportError as error:
        absent["torch"] = f"not installed ({error})"
        return None
    if not torch.cuda.is_available():
        absent["torch"] = "this build of torch sees no GPU"
        return None
    return torch


def _bags(settings: Settings, work: Workload) -> Case:
    table = _table(work, None)
    batches, offsets = work.batches(4), work.offsets()
    ids, starts = _upload(batches), _upload([offsets])[0]
    moved = work.length * work.embedding_dim * 4
    some = batches[0][: offsets[_CHECKED]]
    rows = np.asarray(table.lookup(some), np.float64)
    expected = np.add.reduceat(rows, offsets[:_CHECKED])
    absent: dict[str, str] = {}

    def ours(i: int) -> Any:
        return table.lookup(ids[i % 4], starts, mode="sum")

    competitors = [
        Competitor("sparse_embed", ours, lambda: np.asarray(ours(0))[:_CHECKED]),
        Competitor("sparse_embed" + _ALONE, ours),
        _copy(moved),
    ]
    torch = torch_on_gpu(absent)
    if torch is not None:
        weight = torch.as_tensor(
            table.lookup(_upload([np.arange(work.num_embeddings)])[0]), device="cuda"
        )
        tensors = [torch.as_tensor(batch, device="cuda") for batch in batches]
        begins = torch.as_tensor(offsets[:-1].copy(), device="cuda")

        def by_torch(i: int) -> Any:
            with torch.no_grad():
                return torch.nn.functional.embedding_bag(tensors[i % 4], weight, begins, mode="sum")

        competitors.append(
            Competitor("torch", by_torch, lambda: by_torch(0)[:_CHECKED].cpu().numpy())
        )
        competitors.append(Competitor("torch" + _ALONE, by_torch))
        fbgemm = _fbgemm_lookup(torch, weight, work, absent)
        if fbgemm is not None:
            every = torch.as_tensor(offsets, device="cuda")

            def by_fbgemm(i: int) -> Any:
                with torch.no_grad():
                    return fbgemm(tensors[i % 4], every)

            competitors.append(
                Competitor("FBGEMM", by_fbgemm, lambda: by_fbgemm(0)[:_CHECKED].cpu().numpy())
            )
    # Sums of 32 float32 in another order: 32 * eps * the largest sum.
    gate(competitors, expected, 1e-5, work.name)
    case = device_race(
        f"bags on a GPU: {work.name}", competitors, settings.count(50, 3), absent, moved
    )
    table.close()
    return case


def _fbgemm_lookup(torch: Any, weight: Any, work: Workload, absent: dict[str, str]) -> Any:
    """FBGEMM's table on the GPU with these weights, or None and the reason."""
    try:
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        shape = (work.num_embeddings, work.embedding_dim)
        table = SplitTableBatchedEmbeddingBagsCodegen(
            [(*shape, EmbeddingLocation.DEVICE, ComputeDevice.CUDA)]
        )
        table.split_embedding_weights()[0].copy_(weight)
    except Exception as error:  # a build for the CPU fails in many ways
        absent["FBGEMM"] = f"not on this GPU ({type(error).__name__}: {error})"
        return None
    return table


def _step(settings: Settings, work: Workload) -> Case:
    table = _table(work, se.LazyAdam(1e-3))
    batches, offsets = work.batches(4), work.offsets()
    ids, starts = _upload(batches), _upload([offsets])[0]
    rng = np.random.default_rng(2)
    host_grad = rng.standard_normal((work.batch_size, work.embedding_dim)).astype(np.float32)
    grad = _upload([host_grad])[0]
    touched = float(np.mean([len(np.unique(batch)) for batch in batches]))
    record = table.info()["record_bytes"]
    moved = int(touched * 2 * record + work.length * work.embedding_dim * 4)
    absent: dict[str, str] = {}

    def ours(i: int) -> None:
        table.update(grad, ids[i % 4], starts, mode="sum")

    competitors = [
        Competitor("sparse_embed", ours),
        Competitor("sparse_embed" + _ALONE, ours),
        _copy(moved),
    ]
    torch = torch_on_gpu(absent)
    if torch is not None:
        competitors.append(_torch_step(torch, work, batches, offsets, host_grad))
    case = device_race(
        f"LazyAdam step on a GPU: {work.name}", competitors, settings.count(30, 3), absent, moved
    )
    case.facts["unique rows"] = round(touched)
    table.close()
    return case


def _torch_step(
    torch: Any, work: Workload, batches: list[Any], offsets: Any, grad: Any
) -> Competitor:
    shape = (work.num_embeddings, work.embedding_dim)
    bag = torch.nn.EmbeddingBag(*shape, mode="sum", sparse=True, device="cuda")
    optimizer = torch.optim.SparseAdam(bag.parameters(), lr=1e-3)
    tensors = [torch.as_tensor(batch, device="cuda") for batch in batches]
    begins = torch.as_tensor(offsets[:-1].copy(), device="cuda")
    upstream = torch.as_tensor(grad, device="cuda")
    waiting: dict[int, Any] = {}

    def forward(i: int) -> None:
        waiting.update(
            (k, bag(tensors[k % 4], begins)) for k in range(i * _CALLS, (i + 1) * _CALLS)
        )

    def step(k: int) -> None:
        optimizer.zero_grad()
        waiting.pop(k).backward(upstream)
        optimizer.step()

    return Competitor("torch SparseAdam", step, before=forward)


def _cache(settings: Settings, work: Workload) -> Iterator[Case]:
    """All rows resident, against a tenth of them, with and without prefetch of the next batch.

    Every round has a batch of its own, after so many that the small caches are in a steady state.
    "lookup": the rows lie in a file whose pages the kernel has, or in the host's memory once they
    left the card; prefetch is over before the clock starts.  "step": lookup, a stand-in for a model
    (the card copies for a few milliseconds), and LazyAdam; prefetch is asked for while the stand-in
    runs, inside the clock.
    """
    work = replace(work, num_embeddings=min(work.num_embeddings, _CACHED))
    rounds, fill = settings.count(20, 3), settings.count(30, 2)
    batches = work.batches(fill + _WARM_UP + rounds + 2)
    ids, starts = _upload(batches), _upload([work.offsets()])[0]
    moved = work.length * work.embedding_dim * 4

    def ready(tables: dict[str, se.EmbeddingTable], run: Any) -> None:
        for i in range(fill):
            for name, table in tables.items():
                run(name, table, i - fill - _WARM_UP)

    def at(i: int) -> int:
        return fill + _WARM_UP + i

    def lookup(_name: str, table: se.EmbeddingTable, i: int) -> Any:
        return table.lookup(ids[at(i)], starts, mode="sum")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        record = _write(path, work)
        tables = {
            name: se.EmbeddingTable.open(path, "r", cache_bytes=cache, device="cuda")
            for name, cache in _caches(work.num_embeddings * record).items()
        }
        tables["sparse_embed"].prefetch(np.arange(work.num_embeddings))
        ready(tables, lookup)
        competitors = [
            Competitor(
                name,
                lambda i, n=name, t=table: lookup(n, t, i),
                before=(lambda i, t=table: t.prefetch(batches[at(i)])) if "pre" in name else None,
            )
            for name, table in tables.items()
        ]
        case = device_race(f"cache, lookup: {work.name}", competitors, rounds, {}, moved, 1)
        case.facts["rows missing"] = _missing(tables["a tenth"], batches[-1])
        yield case
        for table in tables.values():
            table.close()
    tables = {
        name: _table(work, se.LazyAdam(1e-3), cache)
        for name, cache in _caches(work.num_embeddings * 3 * record).items()
    }
    model = _copy(_MODEL if not settings.quick else 1 << 20)

    def step(name: str, table: se.EmbeddingTable, i: int) -> None:
        bags: Any = lookup(name, table, i)
        for turn in range(8):
            model.run(turn)
        if "pre" in name:
            table.prefetch(batches[at(i) + 1])
        table.update(bags, ids[at(i)], starts, mode="sum")

    ready(tables, step)
    competitors = [
        Competitor(name, lambda i, n=name, t=table: step(n, t, i)) for name, table in tables.items()
    ]
    competitors.append(Competitor("the stand-in alone", lambda i: [model.run(t) for t in range(8)]))
    case = device_race(f"cache, step: {work.name}", competitors, rounds, {}, moved, 1)
    case.facts["rows missing"] = _missing(tables["a tenth"], batches[-1])
    yield case
    for table in tables.values():
        table.close()


def _caches(nbytes: int) -> dict[str, int | None]:
    return {"sparse_embed": None, "a tenth": nbytes // 10, "a tenth, prefetch": nbytes // 10}


def _missing(table: se.EmbeddingTable, batch: Any) -> str:
    """How much of a batch that the table has not seen is not in its cache."""
    rows = np.unique(batch)
    absent = int((table._table.rows.resident.find(rows) < 0).sum())
    return f"{absent:,} of {len(rows):,}"


def _write(path: Path, work: Workload) -> int:
    """A table on disk whose rows were all assigned; bytes of a row."""
    shape = {"num_embeddings": work.num_embeddings, "embedding_dim": work.embedding_dim}
    block = np.random.default_rng(1).random((1 << 18, work.embedding_dim), np.float32)
    with se.EmbeddingTable.create(path, **shape) as table:
        for begin in range(0, work.num_embeddings, len(block)):
            rows = np.arange(begin, min(begin + len(block), work.num_embeddings))
            table.assign(rows, block[: len(rows)])
            table.commit()
        return int(table.info()["record_bytes"])
