"""Narrow tables and collections of tables on a GPU.

    narrow       bags and LazyAdam steps of the workload, in float32 and in bfloat16 with its state
    collection   26 tables, one id a feature: lookup and step of all at once, against one by one;
                 torch's EmbeddingBags, each with SparseAdam

`race` is `benchmarks.gpu.device_race` on a card; in the simulator nothing is timed but the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks.harness import Case, Competitor, Settings, gate
from benchmarks.workloads import ADS, Workload, zipf_rows

Race = Callable[[str, list[Competitor], int, dict[str, str], int], Case]

_NARROW: dict[str, dict[str, Any]] = {
    "sparse_embed": {},
    "sparse_embed, bfloat16": {"dtype": "bfloat16", "state_dtype": "bfloat16"},
}


def _upload(array: Any) -> Any:
    from sparse_embed.device import device_memory

    return device_memory(0).upload(array)


def narrow(settings: Settings, work: Workload, race: Race) -> Iterator[Case]:
    """float32 against bfloat16, on the GPU."""

    batches = work.batches(4)
    ids = [_upload(batch) for batch in batches]
    starts = _upload(work.offsets())
    shape = (work.batch_size, work.embedding_dim)
    grad = _upload(np.random.default_rng(2).standard_normal(shape).astype(np.float32))
    tables = {
        name: se.EmbeddingTable.create(
            None, num_embeddings=work.num_embeddings, embedding_dim=work.embedding_dim,
            optimizer=se.LazyAdam(1e-3), device="cuda", **how,
        )
        for name, how in _NARROW.items()
    }  # fmt: skip
    steps = [
        Competitor(name, lambda i, t=table: t.update(grad, ids[i % 4], starts, mode="sum"))
        for name, table in tables.items()
    ]
    yield race(f"LazyAdam step, narrow: {work.name}", steps, settings.count(30, 2), {}, 0)
    lookups = [
        Competitor(
            name,
            lambda i, t=table: t.lookup(ids[i % 4], starts, mode="sum"),
            lambda t=table: np.asarray(t.lookup(ids[0], starts, mode="sum")),
        )
        for name, table in tables.items()
    ]
    # The rows went different ways for a few steps of 1e-3, and bfloat16 has 8 bits.
    allowed = work.bag_size * 0.2
    gate(lookups, np.asarray(tables["sparse_embed"].lookup(ids[0], starts)), allowed, work.name)
    yield race(f"bags, narrow: {work.name}", lookups, settings.count(50, 2), {}, 0)
    for table in tables.values():
        table.close()


def collection(
    settings: Settings, work: Workload, race: Race, count: int = 26, peers: bool = True
) -> Iterator[Case]:
    """`count` tables that have the rows of `work` between them, one id a feature."""
    rows = work.num_embeddings // count
    dim, size = work.embedding_dim, work.batch_size
    rng = np.random.default_rng(3)
    batches = [
        np.concatenate([zipf_rows(rows, ADS, size, rng) for _ in range(count)]) for _ in range(4)
    ]
    offsets = np.arange(count * size + 1)
    ids, starts = [_upload(batch) for batch in batches], _upload(offsets)
    wide = rng.standard_normal((size, count * dim)).astype(np.float32)
    grad = _upload(wide)
    names = {f"c{i}": rows for i in range(count)}
    how = {"optimizer": se.LazyAdam(1e-3), "device": "cuda"}
    together = se.EmbeddingBagCollection.create(None, names, dim, **how)
    apart = se.EmbeddingBagCollection.create(None, names, dim, **how)
    parts = [[_upload(batch[t * size : (t + 1) * size]) for t in range(count)] for batch in batches]
    columns = [np.ascontiguousarray(wide[:, t * dim : (t + 1) * dim]) for t in range(count)]
    grads = [_upload(array) for array in columns]
    single = list(apart.tables.values())

    def lookup(i: int) -> Any:
        return together.lookup(ids[i % 4], starts)

    def lookup_apart(i: int) -> Any:
        return [table.lookup(parts[i % 4][t]) for t, table in enumerate(single)]

    def step(i: int) -> None:
        together.update(grad, ids[i % 4], starts)

    def step_apart(i: int) -> None:
        for t, table in enumerate(single):
            table.update(grads[t], parts[i % 4][t])

    def bags_apart() -> Any:
        return np.concatenate([np.asarray(part) for part in lookup_apart(0)], axis=1)

    step(0)
    step_apart(0)
    competitors = [
        Competitor("sparse_embed", lookup, lambda: np.asarray(lookup(0))),
        Competitor("sparse_embed, one by one", lookup_apart, bags_apart),
    ]
    name = f"{count} tables of {rows:,} x {dim}, {size:,} bags of one"
    gate(competitors, np.asarray(lookup(0)), 0, name)
    yield race(f"lookup: {name}", competitors, settings.count(30, 2), {}, wide.nbytes)
    absent: dict[str, str] = {}
    steps = [Competitor("sparse_embed", step), Competitor("sparse_embed, one by one", step_apart)]
    if peers:
        steps += _torch(rows, dim, size, batches, columns, absent)
    yield race(f"LazyAdam step: {name}", steps, settings.count(20, 2), absent, 0)
    for each in (together, apart):
        assert each.store is not None
        each.store.close()


def _torch(
    rows: int, dim: int, size: int, batches: list[Any], grads: list[Any], absent: dict[str, str]
) -> list[Competitor]:
    """Forward, backward and SparseAdam of as many EmbeddingBags."""
    from benchmarks.gpu import torch_on_gpu

    torch = torch_on_gpu(absent)
    if torch is None:
        return []
    count = len(grads)
    bags = [
        torch.nn.EmbeddingBag(rows, dim, mode="sum", sparse=True, device="cuda")
        for _ in range(count)
    ]
    optimizer = torch.optim.SparseAdam([bag.weight for bag in bags], lr=1e-3)
    tensors = [
        [torch.as_tensor(batch[t * size : (t + 1) * size], device="cuda") for t in range(count)]
        for batch in batches
    ]
    begins = torch.arange(size, device="cuda")
    upstream = [torch.as_tensor(grad, device="cuda") for grad in grads]

    def step(i: int) -> None:
        optimizer.zero_grad()
        outs = [bag(tensors[i % 4][t], begins) for t, bag in enumerate(bags)]
        torch.autograd.backward(outs, upstream)
        optimizer.step()

    return [Competitor("torch SparseAdam, with forward", step)]
