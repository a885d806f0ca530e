"""The two-line change: a classifier of bags of words, its table on disk, a billion rows long.

    python examples/torch_two_lines.py

The training loop is torch's own.  What changed against nn.EmbeddingBag is marked with <--.
"""

# a program that prints

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from sparse_embed.torch import EmbeddingBag  # <-- was: from torch.nn import EmbeddingBag


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        words = EmbeddingBag(10**9, 32, mode="mean", path=Path(folder) / "words.table")  # <-- path
        head = nn.Linear(32, 1)
        model = nn.ModuleList([words, head])
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(301):
            ranks = (torch.rand(128, 20) ** 6 * 20_000).long()  # a few words often, most seldom
            input = ranks * 49_999  # spread over the billion
            target = (ranks.min(dim=1).values % 2).float()  # told by the most frequent word
            optimizer.zero_grad()
            chance = head(words(input)).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(chance, target)
            loss.backward()  # trains the table, too: by its own LazyAdam
            optimizer.step()
            if step % 100 == 0:
                trained = len(words.table.trained_indices())
                print(f"step {step:4d}  loss {loss.item():.4f}  {trained:,} rows of a billion")
        words.table.commit()  # durable from here on
        on_disk = sum(f.stat().st_blocks * 512 for f in (Path(folder) / "words.table").iterdir())
        print(f"{on_disk / 1e6:.0f} MB on disk")
        words.table.close()


if __name__ == "__main__":
    main()
