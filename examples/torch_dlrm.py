"""A small DLRM on made-up clicks whose ids are as skewed as measured ones, stopped and resumed.

    python examples/torch_dlrm.py

Categorical fields draw ids by Zipf's law with s = 0.96 (measured on ad logs); users and items by
s = 0.6 (measured on recommender data, flat).  A click depends on a hidden number of each id.
Tables and dense layers are committed together; the second half of training runs on what was read
back.
"""

# a program that prints

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sparse_embed as se
from sparse_embed.torch import EmbeddingBagCollection, commit, resume

SKEWS = {"user": 0.6, "item": 0.6, **{f"field{i}": 0.96 for i in range(8)}}
ROWS = {"user": 200_000, "item": 50_000, **{f"field{i}": 300 * 3**i for i in range(8)}}
DIM, BATCH = 16, 1024


class DLRM(nn.Module):
    """Bottom MLP on the numbers, dots of all pairs of vectors, top MLP."""

    def __init__(self, bags: EmbeddingBagCollection) -> None:
        super().__init__()
        self.bags = bags
        self.bottom = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, DIM))
        self.register_buffer("pairs", torch.triu_indices(len(ROWS) + 1, len(ROWS) + 1, 1))
        self.top = nn.Sequential(
            nn.Linear(DIM + self.pairs.shape[1], 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, numbers: Tensor, features: dict[str, Tensor]) -> Tensor:
        low = self.bottom(numbers)
        vectors = torch.stack([low, *self.bags(features).values()], 1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([low, dots], 1)).squeeze(1)


class Clicks:
    """Batches by their number: the same number, the same batch."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.steps, self.hidden = {}, {}
        for name, rows in ROWS.items():
            p = np.arange(1, rows + 1, dtype=np.float64) ** -SKEWS[name]
            self.steps[name] = np.cumsum(p / p.sum())
            self.hidden[name] = rng.standard_normal(rows)

    def __call__(self, number: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        rng = np.random.default_rng(number)
        numbers = rng.standard_normal((BATCH, 4))
        score = numbers[:, 0] - 0.5
        features = {}
        for name, steps in self.steps.items():
            ids = np.searchsorted(steps, rng.random(BATCH)).clip(max=len(steps) - 1)
            score = score + 0.7 * self.hidden[name][ids]
            features[name] = torch.from_numpy(ids)[:, None]
        clicks = rng.random(BATCH) < 1 / (1 + np.exp(-score))
        return torch.from_numpy(numbers).float(), features, torch.from_numpy(clicks).float()


def run(path: Path, steps: int, clicks: Clicks) -> None:
    """Begin, or go on where the store says."""
    torch.manual_seed(0)
    if path.exists():
        store = se.Store.open(path)
        tables = {name: store.tables[name] for name in ROWS}
        model = DLRM(EmbeddingBagCollection.over(tables))
    else:
        bags = EmbeddingBagCollection.create(path, ROWS, DIM, optimizer=se.LazyAdam(0.01))
        model = DLRM(bags)
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    state = resume(model, optimizer=optimizer) or {"step": 0}
    total = 0.0
    for step in range(state["step"], steps):
        numbers, features, target = clicks(step)
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(numbers, features), target)
        loss.backward()
        optimizer.step()
        total += loss.item()
        if step % 50 == 49:
            number = commit(model, optimizer=optimizer, step=step + 1)
            print(f"step {step + 1:4d}  loss {total / 50:.4f}  commit {number}")
            total = 0.0
    next(iter(model.bags.bags.values())).table.close()


def main() -> None:
    clicks = Clicks()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "dlrm", 150, clicks)
        print("closed, opened again")
        run(Path(folder) / "dlrm", 300, clicks)


if __name__ == "__main__":
    main()
