"""DLRM in torch three times: on our tables, on torch's, and with its bags given."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

import sparse_embed as se
from benchmarks.harness import Disagreement
from benchmarks.workloads import ADS
from sparse_embed.torch import EmbeddingBagCollection

NUM_TABLES, NUM_DENSE, SKEW = 26, 13, ADS
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
            raise Disagreement(f"losses differ, {a} and {b}")
    largest = 0.0
    for name, bag in ours.bags.bags.items():
        rows = np.unique(np.concatenate([batch[1][name][0].numpy() for batch in batches]))
        found = torch.from_numpy(bag.table.lookup(rows))
        expected = theirs.bags[name].weight.detach()[rows]
        largest = max(largest, float((found - expected).abs().max()))
    return largest
