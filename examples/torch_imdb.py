"""The network of the Keras IMDB tutorials on our table: Embedding(10,000, 128) of 500 words,
flattened, into one sigmoid.

    python examples/torch_imdb.py                    # made-up reviews
    python examples/torch_imdb.py pos.txt neg.txt    # yours: one text a line, two files

Made-up reviews draw words by Zipf's law with s = 1.05 (measured on IMDB); some seldom words lean to
one side, as "superb" and "dull" do.
"""

# a program that prints

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sparse_embed as se
from sparse_embed.torch import Embedding

WORDS, LENGTH, DIM = 10_000, 500, 128


def made_up(count: int = 2500) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    lean = np.where(rng.random(WORDS) < 0.2, rng.standard_normal(WORDS), 0.0)
    lean[:100] = 0  # "the", "and"
    ranks = np.arange(1, WORDS, dtype=np.float64)
    reviews = np.zeros((count, LENGTH), np.int64)  # 0 is padding
    liked = rng.random(count) < 0.5
    for k in range(count):
        p = ranks**-1.05 * np.exp(lean[1:] * (0.8 if liked[k] else -0.8))
        length = int(rng.integers(80, LENGTH))
        reviews[k, -length:] = rng.choice(WORDS - 1, length, p=p / p.sum()) + 1
    return torch.from_numpy(reviews), torch.from_numpy(liked).float()


def from_files(paths: list[str]) -> tuple[Tensor, Tensor]:
    """The 9,999 most frequent words are 1 and up, others left out; long texts lose their head."""
    lines = [Path(path).read_text("utf-8", "replace").lower().splitlines() for path in paths]
    texts = [[re.findall(r"[a-z']+", line) for line in side if line.strip()] for side in lines]
    counts = Counter(word for side in texts for text in side for word in text)
    number = {word: k + 1 for k, (word, _) in enumerate(counts.most_common(WORDS - 1))}
    everything = [text for side in texts for text in side]
    reviews = np.zeros((len(everything), LENGTH), np.int64)
    for k, text in enumerate(everything):
        known = [number[word] for word in text if word in number][-LENGTH:]
        if known:
            reviews[k, -len(known) :] = known
    liked = np.repeat([1.0, 0.0], [len(side) for side in texts]).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(reviews))
    return torch.from_numpy(reviews[order]), torch.from_numpy(liked[order])


def main() -> None:
    torch.manual_seed(0)
    reviews, liked = from_files(sys.argv[1:3]) if len(sys.argv) > 2 else made_up()
    cut = len(reviews) * 4 // 5
    words = Embedding(
        WORDS, DIM, padding_idx=0, init=se.Uniform(0.05), optimizer=se.LazyAdam(0.001)
    )
    model = nn.Sequential(words, nn.Flatten(), nn.Linear(LENGTH * DIM, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    for epoch in range(4):
        model.train()
        total = 0.0
        for batch in torch.randperm(cut).split(32):
            optimizer.zero_grad()
            chance = model(reviews[batch]).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(chance, liked[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch) / cut
        model.eval()
        with torch.no_grad():
            right = ((model(reviews[cut:]).squeeze(1) > 0) == (liked[cut:] > 0.5)).float().mean()
        print(f"epoch {epoch + 1}  loss {total:.4f}  accuracy {right.item():.3f} on held-out")


if __name__ == "__main__":
    main()
