"""Run as a program: a plain torch loop over a table ten times the cache; print what memory it took.

python -m tests.torch.memory_run FOLDER CACHE_BYTES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import sparse_embed as se
from sparse_embed.torch import EmbeddingBag
from tests.memory_run import rss_anon

DIM, BATCH = 64, 4000
RECORD = 4 * DIM * 3


def loop(bag: EmbeddingBag, rows: int, epochs: int) -> tuple[list[float], int]:
    head = torch.nn.Linear(DIM, 1)
    optimizer = torch.optim.SGD(head.parameters(), 0.01)
    losses, peak = [], 0
    for epoch in range(epochs):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(epoch))
        total = 0.0
        for input in order.split(BATCH):
            spread = (input * (10**9 // rows)).view(-1, 1)
            optimizer.zero_grad()
            loss = (head(bag(spread)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(input) / rows
            peak = max(peak, rss_anon())
        bag.table.commit()
        losses.append(total)
    return losses, peak


def main() -> None:
    folder, cache = Path(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = 10 * cache // RECORD // BATCH * BATCH
    make = {"mode": "sum", "optimizer": se.LazyAdam(0.05), "init": se.Normal(0.1)}
    warm = EmbeddingBag(10**9, DIM, path=folder / "warm", cache_bytes=1, **make)
    loop(warm, 3 * BATCH, 1)
    warm.table.close()
    bag = EmbeddingBag(10**9, DIM, path=folder / "table", cache_bytes=cache, **make)
    base = rss_anon()
    losses, peak = loop(bag, rows, 2)
    facts = {"rows": rows, "table_bytes": rows * RECORD, "cache_bytes": cache}
    print(json.dumps({**facts, "base": base, "peak": peak, "losses": losses}))
    bag.table.close(checkpoint=False)


if __name__ == "__main__":
    main()
