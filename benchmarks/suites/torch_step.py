"""A DLRM training step: our collection of tables against nn.EmbeddingBag and torch's SparseAdam.

    python benchmarks/suites/torch_step.py
    python benchmarks/suites/torch_step.py --batch 4096 --turns 30 --json torch_step.json

26 tables with the skew of categorical ad fields (Zipf, s = 0.96), 13 dense features, pairwise
interactions, two MLPs under Adam.  Three steps are timed in turn, so that a busy machine slows all:

    ours    tables of sparse_embed, trained in backward by LazyAdam
    theirs  nn.EmbeddingBag(sparse=True) and SparseAdam, the same numbers
    dense   the same model on bags that are given: what neither side can save

Before that, losses and rows of both sides are compared.  The embedding part of a step is the step
less the dense one.  Ratios are of medians; the spread is that of single turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparse_embed as se
from sparse_embed.torch import EmbeddingBagCollection

NUM_TABLES, NUM_DENSE, SKEW = 26, 13, 0.96
Batch = tuple[Tensor, dict[str, tuple[Tensor, Tensor]], Tensor]


class Dense(nn.Module):
    """DLRM without its embeddings: bottom MLP, dots of all pairs, top MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bottom = nn.Sequential(
            nn.Linear(NUM_DENSE, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
            nn.Linear(256, dim), nn.ReLU(),
        )  # fmt: skip
        pairs = torch.triu_indices(NUM_TABLES + 1, NUM_TABLES + 1, 1)
        self.register_buffer("pairs", pairs)
        self.top = nn.Sequential(
            nn.Linear(dim + pairs.shape[1], 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
            nn.Linear(256, 1),
        )  # fmt: skip

    def forward(self, numbers: Tensor, bags: list[Tensor]) -> Tensor:
        low = self.bottom(numbers)
        stacked = torch.stack([low, *bags], 1)
        dots = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([low, dots], 1)).squeeze(1)


def table_rows(total: int) -> dict[str, int]:
    """Sizes as unequal as Criteo's: from a thousand rows up, geometric."""
    sizes = np.geomspace(1.0, 1000.0, NUM_TABLES)
    return {f"c{i}": max(1000, int(s / sizes.sum() * total)) for i, s in enumerate(sizes)}


def make_batches(rows: dict[str, int], batch: int, hot: int, count: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    made: list[Batch] = []
    tables = {}
    for name, size in rows.items():
        p = np.arange(1, size + 1, dtype=np.float64) ** -SKEW
        tables[name] = np.cumsum(p / p.sum()), rng.permutation(size)
    offsets = torch.arange(0, batch * hot, hot)
    for _ in range(count):
        features = {}
        for name, (steps, order) in tables.items():
            ranks = np.searchsorted(steps, rng.random(batch * hot)).clip(max=len(order) - 1)
            features[name] = torch.from_numpy(order[ranks]), offsets
        numbers = torch.from_numpy(rng.standard_normal((batch, NUM_DENSE), np.float32))
        made.append((numbers, features, torch.from_numpy(rng.integers(0, 2, batch)).float()))
    return made


class Ours:
    def __init__(self, rows: dict[str, int], dim: int, dense: Dense) -> None:
        self.bags = EmbeddingBagCollection.create(None, rows, dim, optimizer=se.LazyAdam(1e-3))
        self.dense = dense
        self.adam = torch.optim.Adam(dense.parameters(), 1e-3)

    def step(self, batch: Batch) -> float:
        numbers, features, clicks = batch
        self.adam.zero_grad()
        chance = self.dense(numbers, list(self.bags(features).values()))
        loss = nn.functional.binary_cross_entropy_with_logits(chance, clicks)
        loss.backward()
        self.adam.step()
        return loss.item()


class Theirs:
    def __init__(self, ours: Ours) -> None:
        self.bags = nn.ModuleDict({name: bag.to_torch() for name, bag in ours.bags.bags.items()})
        self.dense = copy.deepcopy(ours.dense)
        self.adam = torch.optim.Adam(self.dense.parameters(), 1e-3)
        self.sparse = torch.optim.SparseAdam(list(self.bags.parameters()), 1e-3)

    def step(self, batch: Batch) -> float:
        numbers, features, clicks = batch
        self.adam.zero_grad()
        self.sparse.zero_grad()
        bags = [self.bags[name](*given) for name, given in features.items()]
        loss = nn.functional.binary_cross_entropy_with_logits(self.dense(numbers, bags), clicks)
        loss.backward()
        self.adam.step()
        self.sparse.step()
        return loss.item()


class DenseOnly:
    def __init__(self, ours: Ours, batch: int, dim: int) -> None:
        self.dense = copy.deepcopy(ours.dense)
        self.adam = torch.optim.Adam(self.dense.parameters(), 1e-3)
        self.bags = [torch.randn(batch, dim, requires_grad=True) for _ in range(NUM_TABLES)]

    def step(self, batch: Batch) -> float:
        numbers, _, clicks = batch
        self.adam.zero_grad()
        for bag in self.bags:
            bag.grad = None
        loss = nn.functional.binary_cross_entropy_with_logits(
            self.dense(numbers, self.bags), clicks
        )
        loss.backward()
        self.adam.step()
        return loss.item()


def check(ours: Ours, theirs: Theirs, batches: list[Batch]) -> float:
    """The gate: the same losses; returns the largest difference of a row after these steps."""
    for batch in batches:
        a, b = ours.step(batch), theirs.step(batch)
        if abs(a - b) > 1e-4 * abs(b):
            raise AssertionError(f"gate: losses differ, {a} and {b}")
    largest = 0.0
    for name, bag in ours.bags.bags.items():
        rows = np.unique(np.concatenate([batch[1][name][0].numpy() for batch in batches]))
        found = torch.from_numpy(bag.table.lookup(rows))
        expected = theirs.bags[name].weight.detach()[rows]
        largest = max(largest, float((found - expected).abs().max()))
    return largest


def measure(
    batch: int = 2048, dim: int = 64, total_rows: int = 1_000_000, hot: int = 1, turns: int = 20
) -> dict[str, Any]:
    """Milliseconds a step of the three, in turn, after two rounds of warm-up."""
    torch.manual_seed(0)
    torch.sparse.check_sparse_tensor_invariants.disable()
    rows = table_rows(total_rows)
    batches = make_batches(rows, batch, hot, 8)
    ours = Ours(rows, dim, Dense(dim))
    theirs = Theirs(ours)
    difference = check(ours, theirs, batches[:3])
    dense = DenseOnly(ours, batch, dim)
    steps: dict[str, Callable[[Batch], float]] = {
        "ours": ours.step, "theirs": theirs.step, "dense": dense.step
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step(batches[turn % len(batches)])
            if turn >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    middle = {name: statistics.median(found) for name, found in times.items()}
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    rest = {name: max(middle[name] - middle["dense"], 1e-9) for name in ("ours", "theirs")}
    return {
        "batch": batch, "dim": dim, "rows": sum(rows.values()), "hot": hot, "turns": turns,
        "torch_threads": torch.get_num_threads(), "threads": se.get_num_threads(),
        "milliseconds": middle,
        "spread": {name: [min(found), max(found)] for name, found in times.items()},
        "step_ratio": middle["theirs"] / middle["ours"],
        "step_ratio_spread": [min(ratios), max(ratios)],
        "embedding_milliseconds": rest,
        "embedding_ratio": rest["theirs"] / rest["ours"],
        "largest_row_difference": difference,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 2048), ("dim", 64), ("rows", 1_000_000), ("hot", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.batch, given.dim, given.rows, given.hot, given.turns)
    print(
        f"DLRM step, {NUM_TABLES} tables, {found['rows']:,} rows of {given.dim},"
        f" batch {given.batch} x {given.hot} ids a table, {found['threads']} threads,"
        f" {given.turns} turns"
    )
    for name, middle in found["milliseconds"].items():
        low, high = found["spread"][name]
        print(f"  {name:7s} {middle:8.2f} ms   ({low:.2f} .. {high:.2f})")
    low, high = found["step_ratio_spread"]
    print(f"  whole step   theirs / ours = {found['step_ratio']:.2f}   ({low:.2f} .. {high:.2f})")
    parts = found["embedding_milliseconds"]
    print(
        f"  less dense   theirs / ours = {found['embedding_ratio']:.2f}"
        f"   ({parts['theirs']:.2f} / {parts['ours']:.2f} ms)"
    )
    print(f"  gate: rows differ by at most {found['largest_row_difference']:.1e}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
