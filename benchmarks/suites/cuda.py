"""Tables in GPU memory against the same tables in the machine's; without a GPU, what is missing.

Here row numbers and gradients start as NumPy arrays on both sides, so a GPU's figures hold the way
there and, for lookups, back.  `benchmarks.gpu` has the races of arrays that lie on the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

import sparse_embed as se
from benchmarks import gpu, gpu_tables
from benchmarks.harness import Case, Competitor, Settings, gate, race
from benchmarks.suites.recommend import interactions
from benchmarks.workloads import Workload
from sparse_embed.errors import SparseEmbedError
from sparse_embed.recommend import BPR

ABOUT = "lookup and step of tables on a GPU, and a recommender there"

GPU = "sparse_embed on a GPU"
Races: TypeAlias = Callable[[], Iterable[Case]]
_SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


def missing() -> str | None:
    """Why there is nothing to time; None when there is a GPU that can be used."""
    try:
        se.EmbeddingTable.create(None, num_embeddings=1, embedding_dim=4, device="cuda").close()
    except SparseEmbedError as error:
        return str(error)
    except Exception as error:  # a broken driver may raise anything
        return f"CUDA cannot start ({type(error).__name__}: {error})"
    return None


def run(settings: Settings) -> Iterator[Case]:
    reason = missing()
    if reason is not None:
        yield Case("lookup and step on a GPU", absent={GPU: reason})
        return
    if _SIMULATED:
        yield from _all(_simulated(settings))
        return
    rows = 20_000 if settings.quick else 10_000_000
    works = [
        Workload(rows, 64, batch, 32) for batch in ((256,) if settings.quick else (4096, 65_536))
    ]
    rest: list[Races] = [lambda work=work: _race(settings, work) for work in works]
    size = (300, 200, 12) if settings.quick else (30_000, 10_000, 40)
    yield from _all([*gpu.cases(settings), *rest, lambda: _recommender(settings, size)])


def _all(races: Sequence[Races]) -> Iterator[Case]:
    """One after the other; what fails is raised when the others are over."""
    failed: list[Exception] = []
    for run_ in races:
        try:
            yield from run_()
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _simulated(settings: Settings) -> list[Races]:
    """Nothing to time: the gates alone."""

    def untimed(
        name: str, competitors: list[Competitor], rounds: int, absent: dict[str, str], _: int
    ) -> Case:
        return race(name, competitors, rounds, absent=absent)

    small = Workload(200, 8, 4, 3)
    return [
        lambda: _race(settings, small),
        lambda: _recommender(settings, (12, 10, 4), 4, 64),
        lambda: gpu_tables.narrow(settings, small, untimed),
        lambda: gpu_tables.collection(settings, small, untimed, 3, False),
    ]


def _recommender(
    settings: Settings,
    size: tuple[int, int, int],
    dim: int = 64,
    batch_size: int = 65_536,
) -> Iterator[Case]:
    """Two epochs of BPR on both devices: the same bits."""
    train = interactions(*size)
    how = {"embedding_dim": dim, "epochs": 2, "batch_size": batch_size, "seed": 0}

    def fit(device: str) -> BPR:
        return BPR(device=device, **how).fit(train)

    def vectors(device: str) -> Any:
        return fit(device).item_vectors()[1]

    competitors = [
        Competitor(name, lambda i, d=device: fit(d), lambda d=device: vectors(d))
        for name, device in (("sparse_embed", "cpu"), (GPU, "cuda"))
    ]
    name = f"BPR x {dim}: 2 epochs of {train.nnz:,} interactions, batches of {batch_size:,}"
    gate(competitors, vectors("cpu"), 0, name)
    yield race(name, competitors, settings.count(5, 1))


def _race(settings: Settings, work: Workload) -> Iterator[Case]:
    sides = {
        "sparse_embed": _table(work, "cpu"),
        GPU: _table(work, "cuda"),
    }
    batches, offsets = work.batches(4), work.offsets()
    shape = (work.batch_size, work.embedding_dim)
    grad = np.random.default_rng(2).standard_normal(shape).astype(np.float32)

    def lookup(table: se.EmbeddingTable, i: int) -> Any:
        return np.asarray(table.lookup(batches[i % 4], offsets, mode="sum"))

    def step(table: se.EmbeddingTable, i: int) -> None:
        table.update(grad, batches[i % 4], offsets, mode="sum")
        table.lookup(batches[i % 4][:1])  # the end of the work, not only of its launch

    for what, run_ in (("lookup", lookup), ("update", step)):
        competitors = [
            # What is looked up before keeps the race from warming the faster side by a step more.
            Competitor(
                name,
                lambda i, t=table, f=run_: f(t, i),
                lambda t=table: lookup(t, 0),
                before=lambda i, t=table: lookup(t, i + 1),
            )
            for name, table in sides.items()
        ]
        gate(competitors, lookup(sides["sparse_embed"], 0), 1e-5, f"{what}: {work.name}")
        yield race(f"{what}: {work.name}", competitors, settings.count(25, 2))
    gate(competitors, lookup(sides["sparse_embed"], 0), 1e-5, f"after steps: {work.name}")
    for table in sides.values():
        table.close()


def _table(work: Workload, device: str) -> se.EmbeddingTable:
    return se.EmbeddingTable.create(
        None,
        num_embeddings=work.num_embeddings,
        embedding_dim=work.embedding_dim,
        optimizer=se.LazyAdam(1e-3),
        device=device,
    )
