"""Seeded batches of row numbers with a known skew: uniform, Zipf, or as measured on real traffic.

Measured skews (maximum-likelihood exponent of popularity ~ rank ** -s over the observed ranks):

    text words           s = 1.05   IMDb reviews 1.063, English Wikinews 1.039
    ad fields            s = 0.96   Criteo sample, (field, value) pairs 0.958
    character n-grams    s = 0.94   IMDb 0.941, Wikinews 0.936
    word bigrams         s = 0.83   IMDb 0.845, Wikinews 0.815; 7 of 10 occur once
    users and items      s = 0.6    MovieLens 1M 0.57 and 0.64, Gowalla 0.57 and 0.58

`DLRM_2022` is no power law but the histogram that Meta published of one production batch: 788
tables, 1.405e9 accesses of 1.103e8 rows (github.com/facebookresearch/dlrm_datasets,
embedding_bag/2022/locality_stats.txt, MIT licence): by how often a row is accessed, the share of
rows and the share of accesses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS, ADS, NGRAMS, BIGRAMS, USERS = 1.05, 0.96, 0.94, 0.83, 0.6

# (most accesses of a row, share of the accesses that go to such rows); the bins double from 1.
# Rows accessed more than 32,768 times take the last 7.6 %.
DLRM_2022 = (
    (1, 0.027), (2, 0.023), (4, 0.040), (8, 0.068), (16, 0.105), (32, 0.120), (64, 0.099),
    (128, 0.070), (256, 0.059), (512, 0.054), (1024, 0.040), (2048, 0.072), (4096, 0.064),
    (8192, 0.047), (16384, 0.021), (32768, 0.017), (131072, 0.076),
)  # fmt: skip
DLRM_2022_ACCESSES, DLRM_2022_TABLES, DLRM_2022_BATCH = 1_405_163_864, 788, 131_072


@dataclass(frozen=True)
class Workload:
    """Bags of row numbers over shuffled rows.

    Attributes:
        alpha: 0 is uniform, else Zipf(alpha).
        trace: "dlrm-2022" draws by the published histogram, whatever `alpha` is.
    """

    num_embeddings: int = 10_000_000
    embedding_dim: int = 64
    batch_size: int = 4096
    bag_size: int = 32
    alpha: float = WORDS
    trace: str | None = None
    seed: int = 0

    @property
    def skew(self) -> str:
        return self.trace or (f"zipf({self.alpha:g})" if self.alpha else "uniform")

    @property
    def name(self) -> str:
        return (
            f"{self.num_embeddings:,} x {self.embedding_dim}, "
            f"{self.batch_size} bags x {self.bag_size}, {self.skew}"
        )

    @property
    def length(self) -> int:
        """Row numbers in a batch."""
        return self.batch_size * self.bag_size

    def changed(self, settings: Any) -> Workload:
        """With what the command line asks for."""
        names = ("num_embeddings", "embedding_dim", "batch_size", "bag_size", "alpha")
        given = {name: getattr(settings, name) for name in names}
        return replace(self, **{name: x for name, x in given.items() if x is not None})

    def batches(self, count: int) -> list[NDArray[np.int64]]:
        """`count` arrays of batch_size x bag_size row numbers."""
        return list(self.draw(count))

    def draw(self, count: int) -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng(self.seed)
        if not self.alpha and not self.trace:
            for _ in range(count):
                yield rng.integers(0, self.num_embeddings, self.length)
            return
        cumulative, shuffle = _popularity(self.num_embeddings, self.alpha, self.trace)
        for _ in range(count):
            ranks = np.searchsorted(cumulative, rng.random(self.length))
            yield shuffle[np.minimum(ranks, len(cumulative) - 1)].astype(np.int64)

    def offsets(self) -> NDArray[np.int64]:
        return np.arange(0, self.length + 1, self.bag_size, dtype=np.int64)


def zipf_rows(rows: int, alpha: float, count: int, rng: np.random.Generator) -> Any:
    """`count` row numbers from the continuous law, alpha 0: uniform.

    Quick, and without a list of all rows: ranks are spread over the rows by a multiplication.
    """
    if not alpha:
        return rng.integers(0, rows, count)
    top = float(rows + 1) ** (1 - alpha)
    ranks = ((top - 1) * rng.random(count) + 1) ** (1 / (1 - alpha))
    ranks = np.minimum(ranks.astype(np.int64) - 1, rows - 1)
    return (ranks * 2_654_435_761 + 12_345) % rows  # a prime: every row has one rank


@lru_cache(maxsize=2)
def _popularity(
    rows: int, alpha: float, trace: str | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Running sum of the shares of ranks 0, 1, ..., and which row has which rank."""
    rng = np.random.default_rng(7)
    if trace is None:
        weights = np.arange(1, rows + 1, dtype=np.float64) ** -alpha
        shuffle = rng.permutation(rows)
    else:
        weights = dlrm_counts()
        if len(weights) > rows:
            raise ValueError(f"{trace}: touches {len(weights):,} rows, the table has {rows:,}")
        shuffle = np.unique(rng.integers(0, rows, len(weights)))  # a few clash: a few are dropped
        weights = weights[: len(shuffle)]
        rng.shuffle(shuffle)
    cumulative = np.cumsum(weights)
    return cumulative / cumulative[-1], shuffle


def dlrm_counts() -> NDArray[np.float64]:
    """Accesses of each row that one average table of the published batch touches, most first."""
    total = DLRM_2022_ACCESSES / DLRM_2022_TABLES
    counts = []
    low = 0
    for high, share in DLRM_2022:
        middle = high if high <= 2 else np.sqrt((low + 1) * high)
        counts.append(np.full(max(1, round(total * share / middle)), middle))
        low = high
    return np.concatenate(counts[::-1])
