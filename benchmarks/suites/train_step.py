"""One training step: pooled forward, backward, optimizer; ours against torch and FBGEMM.

"C: floor" is what a step cannot avoid, in C: the lookup, the sort of (row, bag), the sum of each
row's gradients, and the optimizer on the records given these sums, each as its own pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import peers, tables, workloads
from benchmarks.ceilings import Ceilings, Room, best_distance, label
from benchmarks.harness import Case, Competitor, Settings, gate, race
from benchmarks.workloads import Workload

ABOUT = "forward + backward + optimizer on one batch: four optimizers, six skews"


def run(settings: Settings) -> Iterator[Case]:
    base = Workload().changed(settings)
    if settings.quick:
        base = replace(base, num_embeddings=20_000, batch_size=256, bag_size=8)
        for name in ("lazy_adam", "row_wise_adagrad"):
            yield from _cases(settings, name, [base])
        return
    uniform = replace(base, alpha=0.0)
    skews = [
        replace(base, alpha=alpha) for alpha in (workloads.ADS, workloads.BIGRAMS, workloads.USERS)
    ]
    trace = replace(base, trace="dlrm-2022")
    yield from _cases(settings, "lazy_adam", [base, uniform, *skews, trace])
    for name in ("row_wise_adagrad", "adagrad", "sgd"):
        yield from _cases(settings, name, [base, uniform])


def _cases(settings: Settings, name: str, works: list[Workload]) -> Iterator[Case]:
    shape = works[0]
    kinds, absent = peers.training_peers(name)
    small = replace(shape, num_embeddings=1000, batch_size=64, bag_size=8)
    _gate(small, name, kinds)
    table = tables.filled(shape.num_embeddings, shape.embedding_dim, name)
    others = [kind([shape.num_embeddings], shape.embedding_dim, name) for kind in kinds]
    try:
        for work in works:
            yield _race(settings, name, work, table, others, absent)
    finally:
        table.close()


def _race(
    settings: Settings,
    name: str,
    work: Workload,
    table: se.EmbeddingTable,
    others: list[peers.Tables],
    absent: dict[str, str],
) -> Case:
    batches, offsets = work.batches(8), work.offsets()
    rng = np.random.default_rng(2)
    grad = rng.standard_normal((work.batch_size, work.embedding_dim)).astype(np.float32)

    def ours(i: int) -> None:
        table.lookup(batches[i % 8], offsets, mode="sum")
        table.update(grad, batches[i % 8], offsets, mode="sum")

    competitors = [Competitor("sparse_embed", ours)]
    for other in others:
        prepared = [other.prepare([batch], offsets, grad) for batch in batches]

        def step(i: int, other: peers.Tables = other, prepared: list[Any] = prepared) -> None:
            other.step(prepared[i % 8])

        competitors.append(Competitor(other.name, step))
    unique = np.mean([len(np.unique(batch)) for batch in batches])
    lanes = {"lazy_adam": 3, "adagrad": 2, "sgd": 1, "row_wise_adagrad": 1}[name]
    facts: dict[str, Any] = {"rows touched a step": float(unique)}
    competitors += floor(table, name, work, batches, offsets, grad, facts)
    case = race(
        f"{name}: {work.name}",
        competitors,
        settings.count(12, 2),
        absent=absent,
        moved_bytes=int(4 * work.embedding_dim * (work.length + 2 * lanes * unique)),
    )
    case.facts = facts
    return case


def floor(
    table: se.EmbeddingTable,
    name: str,
    work: Workload,
    batches: list[Any],
    offsets: Any,
    grad: Any,
    facts: dict[str, Any],
) -> list[Competitor]:
    """The unavoidable in C, and the part of it that is memory traffic of the rows alone."""
    native = Ceilings(work.embedding_dim, se.get_num_threads())
    records, count = tables.records(table), len(batches)
    unique = [np.unique(batch) for batch in batches]
    rooms = [Room(batch, work.embedding_dim) for batch in batches]
    bags = np.repeat(np.arange(work.batch_size, dtype=np.int32), work.bag_size)
    native.merge(grad, batches[0], bags, rooms[0])
    near = best_distance(lambda a: native.gather_sum(records, batches[0], offsets, ahead=a))

    def update(i: int, rate: float, ahead: int) -> None:
        at = i % count
        native.update_rows(name, records, unique[at], rooms[at].sums, rate, ahead)

    far = best_distance(lambda a: update(0, 0.0, a))
    facts |= {"prefetch distances of the ceiling": [near, far]}
    expected = np.zeros((len(unique[0]), work.embedding_dim))
    where = np.searchsorted(unique[0], batches[0])
    np.add.at(expected, where, grad[bags].astype(np.float64))
    # Sums of n float32 of about 1 in another order, many of them one number again and again:
    # roundings add up, but stay far below 1, by which a gradient too few would be off.
    most = int(np.bincount(where).max())
    allowed = max(1e-5 * max(1.0, float(np.abs(expected).max())), 3e-6 * most)
    gate([Competitor("the floor's merge", print, lambda: rooms[0].sums)], expected, allowed, "C")

    def rows_only(i: int) -> None:
        native.gather_sum(records, batches[i % count], offsets, ahead=near)
        update(i, 1e-3, far)

    def all_of_it(i: int) -> None:
        native.gather_sum(records, batches[i % count], offsets, ahead=near)
        native.merge(grad, batches[i % count], bags, rooms[i % count])
        update(i, 1e-3, far)

    return [
        Competitor(label("floor"), all_of_it),
        Competitor(label("lookup and row update alone"), rows_only),
    ]


def _gate(work: Workload, name: str, kinds: list[type[peers.Tables]]) -> None:
    """One step of a small table from the same weights: all competitors, and the reference."""
    rng = np.random.default_rng(3)
    shape = (work.num_embeddings, work.embedding_dim)
    weight = rng.standard_normal(shape).astype(np.float32)
    grad = rng.standard_normal((work.batch_size, work.embedding_dim)).astype(np.float32)
    batch, offsets = work.batches(1)[0], work.offsets()

    def ours() -> Any:
        table = tables.make(*shape, name)
        table.assign(np.arange(work.num_embeddings), weight)
        table.update(grad, batch, offsets, mode="sum")
        return table.lookup(np.arange(work.num_embeddings))

    def theirs(kind: type[peers.Tables]) -> Any:
        found = kind([work.num_embeddings], work.embedding_dim, name, [weight])
        found.step(found.prepare([batch], offsets, grad))
        return found.weight()

    def floor_step() -> Any:
        native, room = Ceilings(work.embedding_dim, se.get_num_threads()), Room(batch, shape[1])
        records = np.zeros((shape[0], 4 * shape[1]), np.float32)
        records[:, : shape[1]] = weight
        bags = np.repeat(np.arange(work.batch_size, dtype=np.int32), work.bag_size)
        native.merge(grad, batch, bags, room)
        rate = peers.LR[name]
        if name == "lazy_adam":  # the first step's bias corrections
            rate *= float(np.sqrt(1 - 0.999)) / (1 - 0.9)
        native.update_rows(name, records, np.unique(batch), room.sums, rate)
        return records[:, : shape[1]]

    competitors = [
        Competitor("sparse_embed", print, ours),
        Competitor(label("floor"), print, floor_step),
        *(Competitor(kind.name, print, lambda kind=kind: theirs(kind)) for kind in kinds),
    ]
    # float32 sums in another order, then one step of at most lr.
    gate(competitors, expected_step(weight, grad, batch, offsets, name), 2e-5, name)


def expected_step(weight: Any, grad: Any, batch: Any, offsets: Any, name: str) -> Any:
    """The first step in float64, from the optimizers' formulas."""
    gradient = np.zeros(weight.shape)
    bags = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    np.add.at(gradient, batch, grad[bags].astype(np.float64))
    touched = np.unique(batch)
    g = gradient[touched]
    if name == "lazy_adam":  # the first step's bias corrections cancel the betas, but for eps
        change = g / (np.abs(g) + 1e-8 / np.sqrt(1 - 0.999))
    elif name == "adagrad":
        change = g / (np.abs(g) + 1e-10)
    elif name == "row_wise_adagrad":
        change = g / (np.sqrt(np.mean(g * g, axis=1, keepdims=True)) + 1e-10)
    else:
        change = g
    wanted = weight.astype(np.float64)
    wanted[touched] -= peers.LR[name] * change
    return wanted
