"""Seeded batches of row numbers with a known skew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Workload:
    """Bags of row numbers: `alpha` 0 is uniform, else Zipf(alpha) over shuffled rows."""

    num_embeddings: int = 10_000_000
    embedding_dim: int = 64
    batch_size: int = 4096
    bag_size: int = 32
    alpha: float = 1.05
    seed: int = 0

    @property
    def name(self) -> str:
        skew = f"zipf({self.alpha:g})" if self.alpha else "uniform"
        return (
            f"{self.num_embeddings:,} x {self.embedding_dim}, "
            f"{self.batch_size} bags x {self.bag_size}, {skew}"
        )

    def batches(self, count: int) -> list[NDArray[np.int64]]:
        """`count` arrays of batch_size x bag_size row numbers."""
        rng = np.random.default_rng(self.seed)
        length = self.batch_size * self.bag_size
        if not self.alpha:
            return [rng.integers(0, self.num_embeddings, length) for _ in range(count)]
        cumulative, shuffle = _zipf(self.num_embeddings, self.alpha)
        return [
            shuffle[np.searchsorted(cumulative, rng.random(length))].astype(np.int64)
            for _ in range(count)
        ]

    def offsets(self) -> NDArray[np.int64]:
        return np.arange(0, self.batch_size * self.bag_size + 1, self.bag_size, dtype=np.int64)


@lru_cache(maxsize=2)
def _zipf(rows: int, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -alpha
    cumulative = np.cumsum(weights)
    return cumulative / cumulative[-1], np.random.default_rng(7).permutation(rows)
