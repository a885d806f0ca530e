"""Run as a program: train a small model, committing as it goes; go on from the last commit.

    python -m tests.torch.train_run FOLDER STEPS THREADS

Prints a line a step: its number and the bits of its loss.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import sparse_embed as se
from sparse_embed.torch import EmbeddingBag, commit, resume

EVERY = 3


def main() -> None:
    folder, steps, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    se.set_num_threads(threads)
    if (folder / "store.json").exists():
        store = se.Store.open(folder, cache_bytes=1 << 20)
    else:
        store = se.Store.create(folder)
    for seed, (name, rows) in enumerate({"words": 10**9, "users": 3000}.items()):
        if name not in store.tables:
            store.create_table(
                name,
                num_embeddings=rows,
                embedding_dim=16,
                optimizer=se.LazyAdam(0.01),
                seed=seed,
                cache_bytes=1 << 20,
            )
    torch.manual_seed(0)
    words, users = (EmbeddingBag(store.tables[n], mode="sum") for n in ("words", "users"))
    head = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 1)
    )
    model = torch.nn.ModuleList([words, users, head])
    optimizer = torch.optim.AdamW(head.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    state = resume(model, optimizer=optimizer, scheduler=scheduler) or {"step": 0}
    if "random" in state:
        torch.set_rng_state(state["random"])
    for step in range(state["step"], steps):
        data = torch.Generator().manual_seed(step)
        skewed = torch.rand(256, 40, generator=data).pow(12).mul(10**9).long()
        person = torch.randint(0, 3000, (256, 1), generator=data)
        target = (skewed[:, :1] % 2).float()
        optimizer.zero_grad()
        chance = head(torch.cat([words(skewed), users(person)], 1))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(chance, target)
        loss.backward()
        optimizer.step()
        scheduler.step()
        print(step, loss.detach().numpy().tobytes().hex(), flush=True)
        if step % EVERY == EVERY - 1:
            parts = {"optimizer": optimizer, "scheduler": scheduler}
            commit(model, **parts, step=step + 1, random=torch.get_rng_state())


if __name__ == "__main__":
    main()
