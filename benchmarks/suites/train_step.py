"""One training step: pooled forward, backward, optimizer; ours against torch, beside the ceiling.

The ceiling is C's lookup plus C's Adam on merged gradients that it is given: what the memory allows
when sorting and adding gradients cost nothing.
"""

from __future__ import annotations

import numpy as np

import sparse_embed as se
from benchmarks.ceilings import Ceilings
from benchmarks.harness import Case, Competitor, gate, race
from benchmarks.suites.lookup import fill
from benchmarks.workloads import Workload

ABOUT = "forward + backward + LazyAdam (and others) on one batch; torch EmbeddingBag + SparseAdam"

OPTIMIZERS = {
    "lazy_adam": se.LazyAdam(1e-3),
    "row_wise_adagrad": se.RowWiseAdagrad(1e-2),
    "adagrad": se.Adagrad(1e-2),
    "sgd": se.SGD(1e-2),
}


def run(quick: bool) -> list[Case]:
    rows = 100_000 if quick else 10_000_000
    batch = 256 if quick else 4096
    cases = []
    for name in ["lazy_adam"] if quick else OPTIMIZERS:
        for alpha in (1.05, 0.0):
            work = Workload(num_embeddings=rows, alpha=alpha, batch_size=batch)
            cases.append(_race(work, name, 3 if quick else 15))
    return cases


def _race(work: Workload, name: str, rounds: int) -> Case:
    optimizer = OPTIMIZERS[name]
    table = se.EmbeddingTable.create(
        None,
        num_embeddings=work.num_embeddings,
        embedding_dim=work.embedding_dim,
        optimizer=optimizer,
        cache_bytes=12 << 30,
    )
    fill(table)
    batches, offsets = work.batches(8), work.offsets()
    rng = np.random.default_rng(2)
    grad = rng.standard_normal((work.batch_size, work.embedding_dim)).astype(np.float32)

    def ours(i: int) -> None:
        table.lookup(batches[i % 8], offsets, mode="sum")
        table.update(grad, batches[i % 8], offsets, mode="sum")

    # Agree on one step of a small table first, weights compared.
    small = Workload(num_embeddings=1000, batch_size=64, bag_size=8, alpha=work.alpha)
    competitors = [Competitor("sparse_embed", ours, lambda: _one_step(small, optimizer))]
    absent: dict[str, str] = {}
    step = _torch_step(work, name, batches, offsets, grad, absent)
    if step is not None:
        competitors.append(Competitor("torch", step, lambda: _one_torch_step(small, name)))
    expected = _one_step(small, optimizer)
    gate(competitors, expected, 1e-5, name)  # float32 sums in another order, then one step
    if name == "lazy_adam":
        _add_ceiling(competitors, absent, table, work, batches, offsets)
    case = race(f"{name}: {work.name}", competitors, rounds)
    case.absent = absent
    table.close()
    return case


def _add_ceiling(
    competitors: list[Competitor],
    absent: dict[str, str],
    table: se.EmbeddingTable,
    work: Workload,
    batches: list[np.ndarray],
    offsets: np.ndarray,
) -> None:
    try:
        native = Ceilings(work.embedding_dim, se.get_num_threads())
    except LookupError as error:
        absent["C: lookup + row update"] = str(error)
        return
    records = table._table.rows.resident.records
    unique = [np.unique(batch) for batch in batches]
    merged = np.zeros((max(len(rows) for rows in unique), work.embedding_dim), np.float32)

    def ceiling(i: int) -> None:
        native.gather_sum(records, batches[i % 8], offsets)
        native.adam_rows(records, unique[i % 8], merged, 1e-3)

    competitors.append(Competitor("C: lookup + row update", ceiling))


def _start(work: Workload) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((work.num_embeddings, work.embedding_dim)).astype(np.float32)
    grad = rng.standard_normal((work.batch_size, work.embedding_dim)).astype(np.float32)
    return weight, grad, work.batches(1)[0]


def _one_step(work: Workload, optimizer: object) -> np.ndarray:
    weight, grad, batch = _start(work)
    table = se.EmbeddingTable.create(
        None,
        num_embeddings=work.num_embeddings,
        embedding_dim=work.embedding_dim,
        optimizer=optimizer,  # type: ignore[arg-type]
    )
    table.assign(np.arange(work.num_embeddings), weight)
    table.update(grad, batch, work.offsets(), mode="sum")
    return table.lookup(np.arange(work.num_embeddings))


def _torch_optimizer(name: str, parameters: object) -> object:
    import torch

    makers = {
        "lazy_adam": lambda: torch.optim.SparseAdam(parameters, lr=1e-3),
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr=1e-2),
        "sgd": lambda: torch.optim.SGD(parameters, lr=1e-2),
    }
    return makers[name]() if name in makers else None


def _one_torch_step(work: Workload, name: str) -> np.ndarray:
    import torch

    weight, grad, batch = _start(work)
    bag = torch.nn.EmbeddingBag.from_pretrained(
        torch.from_numpy(weight), freeze=False, mode="sum", sparse=True
    )
    optimizer = _torch_optimizer(name, list(bag.parameters()))
    bag(torch.from_numpy(batch), torch.from_numpy(work.offsets()[:-1].copy())).backward(
        torch.from_numpy(grad)
    )
    optimizer.step()  # type: ignore[attr-defined]
    return np.asarray(bag.weight.detach().numpy())


def _torch_step(
    work: Workload,
    name: str,
    batches: list[np.ndarray],
    offsets: np.ndarray,
    grad: np.ndarray,
    absent: dict[str, str],
) -> object:
    try:
        import torch
    except ImportError:
        absent["torch"] = "not installed"
        return None
    torch.set_num_threads(se.get_num_threads())
    if _torch_optimizer(name, [torch.nn.Parameter(torch.zeros(1))]) is None:
        absent["torch"] = f"has no {name}"
        return None
    bag = torch.nn.EmbeddingBag(
        work.num_embeddings,
        work.embedding_dim,
        mode="sum",
        sparse=True,
        _weight=torch.zeros(work.num_embeddings, work.embedding_dim),
    )
    optimizer = _torch_optimizer(name, list(bag.parameters()))
    ids = [torch.from_numpy(batch) for batch in batches]
    starts, upstream = torch.from_numpy(offsets[:-1].copy()), torch.from_numpy(grad)

    def step(i: int) -> None:
        optimizer.zero_grad()  # type: ignore[attr-defined]
        bag(ids[i % 8], starts).backward(upstream)
        optimizer.step()  # type: ignore[attr-defined]

    return step
