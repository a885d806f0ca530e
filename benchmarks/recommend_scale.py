"""A recommender larger than its cache: 10 million users, 1 million items, tables in files.

    python -m benchmarks.recommend_scale [--interactions 4_000_000] [--cache-mb 256] [--folder DIR]

Users and items are as skewed as in MovieLens and Gowalla (Zipf, s = 0.6: no small set of rows is
hot, so a cache cannot hide the file).  One epoch of BPR at 64 numbers a vector over a part of the
interactions; reports speed (of training, and with the commit of all that it changed), peak of
resident anonymous memory, and what lies on disk.  A small fit whose rows do not fit their cache
either comes first, so that no compiling is timed.
"""

# a program that prints

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import scipy.sparse

import sparse_embed as se
from sparse_embed.recommend import BPR, FitProgress

USERS, ITEMS, SKEW = 10_000_000, 1_000_000, 0.6


def draw(number: int, entities: int, rng: np.random.Generator) -> np.ndarray:
    """(number,) ids with P(rank) ~ rank^-s, by inverting the integral; ranks are shuffled."""
    power = 1 - SKEW
    ranks = (rng.random(number) * (entities**power - 1) + 1) ** (1 / power)
    step = 2_654_435_761 % entities | 1
    while np.gcd(step, entities) != 1:
        step += 2
    return (ranks.astype(np.int64) - 1) * step % entities


def anonymous_mb() -> float:
    """Resident memory that is not a mapped file."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def warm_up(directory: str, optimizer: Any) -> None:
    """Do all that is timed on a small scale, rows that leave their cache included."""
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, 200_000, 20_000), rng.integers(0, 200_000, 20_000)
    taken = scipy.sparse.csr_array((np.ones(20_000), pairs), shape=(200_000, 200_000))
    path = os.path.join(directory, "warm-up")
    arguments: dict[str, Any] = {"epochs": 2, "batch_size": 4096, "optimizer": optimizer}
    with BPR(**arguments, path=path, cache_bytes=1 << 20) as model:
        model.fit(taken, show_progress=False)
        for table in model.store.tables.values():
            table.trained_indices()
    shutil.rmtree(path)


@click.command()
@click.option("--interactions", type=int, default=4_000_000, show_default=True)
@click.option("--cache-mb", type=int, default=256, show_default=True, help="Of each table.")
@click.option("--batch-size", type=int, default=32_768, show_default=True)
@click.option("--folder", type=click.Path(exists=True, file_okay=False), default=None)
def main(interactions: int, cache_mb: int, batch_size: int, folder: str | None) -> None:
    """Train one epoch and report."""
    rng = np.random.default_rng(0)
    pairs = draw(interactions, USERS, rng), draw(interactions, ITEMS, rng)
    ones = np.ones(interactions, np.float32)
    matrix: Any = scipy.sparse.csr_array((ones, pairs), shape=(USERS, ITEMS))
    touched = [len(np.unique(part)) for part in pairs]
    print(f"{matrix.nnz:,} interactions, {touched[0]:,} users and {touched[1]:,} items of them")
    before, peak = anonymous_mb(), 0.0
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        path = os.path.join(directory, "model")
        optimizer = se.RowWiseAdagrad(lr=0.1)
        arguments: dict[str, Any] = {
            "epochs": 1, "batch_size": batch_size, "optimizer": optimizer, "path": path,
            "cache_bytes": cache_mb << 20, "commit_interval": 3600.0,
        }  # fmt: skip
        warm_up(directory, optimizer)
        trained = 0.0

        def watch(at: FitProgress) -> None:
            nonlocal peak, trained
            trained = time.perf_counter()
            peak = max(peak, anonymous_mb())
            if at.done // (1 << 20) != (at.done - batch_size) // (1 << 20):
                print(f"  {at.done:,} of {at.total:,}: {at.speed / 1e6:.3f} M/s", flush=True)

        began = time.perf_counter()
        model = BPR(**arguments).fit(matrix, progress=watch, show_progress=False)
        seconds = time.perf_counter() - began
        for name, took in (("until the commit", trained - began), ("commit included", seconds)):
            print(f"{matrix.nnz / took / 1e6:.3f} M interactions a second, {name}")
        touched = [len(table.trained_indices()) for table in model.store.tables.values()]
        record = -(-4 * (65 + 1) // 16) * 16  # weights and an accumulator, padded
        print(
            f"{touched[0]:,} users and {touched[1]:,} items trained (negatives too):"
            f" {sum(touched) * record / 1e6:,.0f} MB of records, cache 2 x {cache_mb} MB"
        )
        print(f"anonymous memory: {before:,.0f} MB before, {peak:,.0f} MB at most")
        began = time.perf_counter()
        model.close()
        used = sum(e.stat().st_blocks * 512 for e in os.scandir(path)) / 1e6
        print(f"closed in {time.perf_counter() - began:.1f} s; {used:,.0f} MB on disk")
        began = time.perf_counter()
        with BPR.load(path, cache_bytes=cache_mb << 20) as loaded:
            print(f"loaded in {1e3 * (time.perf_counter() - began):.1f} ms", loaded)


if __name__ == "__main__":
    main()
