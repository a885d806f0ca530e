"""A recommender larger than its cache: 10 million users, 1 million items, tables in files.

    python -m benchmarks.recommend_scale [--interactions 4_000_000] [--cache-mb 256] [--folder DIR]
                                        [--check]

Users and items are as skewed as in MovieLens and Gowalla (Zipf, s = 0.6: no small set of rows is
hot, so a cache cannot hide the file).  One epoch of BPR at 64 numbers a vector over a part of the
interactions; reports speed (of training, and with the commit of all that it changed), peak of
resident anonymous memory, and what lies on disk.  A small fit whose rows do not fit their cache
either comes first, so that no compiling is timed.

With --check nothing is timed: the model is trained with one thread, with all of them, and by a
process that is killed on the way and one that resumes.  The three must be the same, bit for bit.
"""

# a program that prints

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import zlib
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


def drawn(interactions: int) -> Any:
    """CSR (USERS, ITEMS)."""
    rng = np.random.default_rng(0)
    pairs = draw(interactions, USERS, rng), draw(interactions, ITEMS, rng)
    ones = np.ones(interactions, np.float32)
    return scipy.sparse.csr_array((ones, pairs), shape=(USERS, ITEMS))


def train(path: str, matrix: Any, cache_mb: int, batch_size: int, threads: int, at: Any) -> None:
    """One epoch, with a commit every half second; `at` is where it stands, in a thousand."""
    se.set_num_threads(threads)
    arguments: dict[str, Any] = {
        "epochs": 1, "batch_size": batch_size, "optimizer": se.RowWiseAdagrad(lr=0.1),
        "path": path, "cache_bytes": cache_mb << 20, "commit_interval": 0.5,
    }  # fmt: skip

    def watch(state: FitProgress) -> None:
        at.value = 1000 * state.done // state.total

    BPR(**arguments).fit(matrix, progress=watch, show_progress=False, resume=True).close()


def crc(path: str, cache_mb: int) -> int:
    """Of all that was trained: which rows, and their weights."""
    found = 0
    with BPR.load(path, cache_bytes=cache_mb << 20) as model:
        for name in ("users", "items"):
            table = model.store.tables[name]
            rows = table.trained_indices()
            found = zlib.crc32(rows.tobytes(), found)
            for begin in range(0, len(rows), 1 << 16):
                found = zlib.crc32(table.lookup(rows[begin : begin + (1 << 16)]).tobytes(), found)
    return found


def check(directory: str, matrix: Any, cache_mb: int, batch_size: int) -> None:
    """Raises SystemExit where two models differ."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, int] = {}
    threads = se.get_num_threads()
    ways = {"1 thread": (1, 0), "all threads": (threads, 0), "killed, resumed": (threads, 3)}
    for name, (count, kills) in ways.items():
        path, done = os.path.join(directory, "model"), []
        for life in range(kills + 1):
            at = spawn.Value("q", 0)
            child = spawn.Process(
                target=train, args=(path, matrix, cache_mb, batch_size, count, at)
            )
            child.start()
            while child.is_alive() and (life == kills or at.value < 250 * (life + 1)):
                child.join(0.01)
            if life < kills:
                child.kill()
                done.append(at.value / 10)
            child.join()
            if life == kills and child.exitcode:
                raise SystemExit(f"{name}: the process ended with {child.exitcode}")
        found[name] = crc(path, cache_mb)
        where = f", killed at {done} %" if done else ""
        print(f"{name}: crc32 {found[name]:08x}{where}", flush=True)
        shutil.rmtree(path)
    if len(set(found.values())) != 1:
        raise SystemExit("the models differ")
    print("the same, bit for bit")


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
@click.option("--check", "checking", is_flag=True, help="Compare bits instead.")
def main(
    interactions: int, cache_mb: int, batch_size: int, folder: str | None, checking: bool
) -> None:
    """Train one epoch and report."""
    matrix = drawn(interactions)
    touched = [np.count_nonzero(np.diff(matrix.indptr)), len(np.unique(matrix.indices))]
    print(f"{matrix.nnz:,} interactions, {touched[0]:,} users and {touched[1]:,} items of them")
    if checking:
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            check(directory, matrix, cache_mb, batch_size)
        return
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
