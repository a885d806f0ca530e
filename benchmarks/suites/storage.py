"""Tables in files: with all rows in the cache, after a cold start, and larger than the cache.

Cold means that the kernel's pages of the data file are dropped before each round, and those of the
scratch file, where rows are that were changed and left the cache.  "reads of the disk" reads as
many records, at random places of the same file, with many threads at once and nothing else to do;
how many threads are best is tried first.  (The host of a virtual machine may have a cache of its
own below; both sides have it.)
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import tables
from benchmarks.ceilings import Ceilings
from benchmarks.harness import Case, Competitor, Settings, gate, race
from benchmarks.workloads import WORDS, Workload

ABOUT = "file-backed steps: warm, cold, and with a cache of a tenth of the table"

DISK = "reads of the disk"
_DIM = 64
_A_ROUND = 8  # batches; the first of them was asked for, and dropped again


def run(settings: Settings) -> Iterator[Case]:
    folder = Path(tempfile.mkdtemp(prefix="storage-", dir=settings.folder))
    try:
        rows = 20_000 if settings.quick else 4_000_000
        yield from _warm(settings, folder / "warm", rows)
        shutil.rmtree(folder / "warm", ignore_errors=True)
        path, rows = folder / "table", rows // 2
        _create(path, rows)
        yield _cold(settings, path, rows)
        for alpha in (WORDS, 0.0):
            for train in (False, True):
                yield _larger(settings, path, rows, alpha, train)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _weights() -> Any:
    """What `_fill` writes, again and again."""
    return np.random.default_rng(1).standard_normal((1 << 16, _DIM)).astype(np.float32)


def _fill(table: se.EmbeddingTable) -> None:
    """Give every row a record, through the public door."""
    block = _weights()
    for begin in range(0, table.num_embeddings, len(block)):
        stop = min(begin + len(block), table.num_embeddings)
        table.assign(np.arange(begin, stop), block[: stop - begin])


def _create(path: Path, rows: int) -> None:
    table = tables.make(rows, _DIM, "lazy_adam", path)
    _fill(table)
    table.commit()
    table.close()


# ---- all rows in the cache --------------------------------------------------------------------


def _warm(settings: Settings, path: Path, rows: int) -> Iterator[Case]:
    sides = {
        "in memory": tables.make(rows, _DIM, "lazy_adam"),
        "in a file": tables.make(rows, _DIM, "lazy_adam", path),
    }
    for table in sides.values():
        _fill(table)
    sides["in a file"].commit()
    for alpha in (WORDS, 0.0):
        work = Workload(rows, _DIM, 256 if settings.quick else 4096, 32, alpha)
        batches, offsets = work.batches(8), work.offsets()
        shape = (work.batch_size, _DIM)
        grad = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        competitors = [
            Competitor(name, _stepper(table, batches, offsets, grad))
            for name, table in sides.items()
        ]
        for competitor in competitors:  # which trains both from the same rows
            competitor.run(0)
        expected = [table.lookup(batches[0], offsets) for table in sides.values()]
        gate([Competitor("in a file", print, lambda e=expected: e[1])], expected[0], 0.0, work.name)
        # Several rounds first: the first change of a row after a commit marks it.
        case = race(f"warm: {work.name}", competitors, settings.count(25, 2), warmup=8)
        case.ours = "in a file"
        yield case
    for table in sides.values():
        table.close(checkpoint=False)


def _stepper(
    table: se.EmbeddingTable, batches: list[Any], offsets: Any, grad: Any
) -> Callable[[int], None]:
    def step(i: int) -> None:
        table.lookup(batches[i % len(batches)], offsets, mode="sum")
        table.update(grad, batches[i % len(batches)], offsets, mode="sum")

    return step


# ---- the disk ---------------------------------------------------------------------------------


class Disk:
    """The data file, its pages dropped at will, and random reads of its records."""

    def __init__(self, path: Path, rows: int) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._rows = rows
        self._size = (os.fstat(self._fd).st_size - 4096) // rows
        self._native = Ceilings(_DIM, 1)
        self._rng = np.random.default_rng(5)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        self.threads = 0

    def drop(self, *others: int) -> None:
        for fd in (self._fd, *others):
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, count: int, threads: int | None = None) -> None:
        at = 4096 + self._rng.choice(self._rows, count, replace=False) * self._size
        self._native.random_reads(self._fd, at, self._size, threads or self.threads)

    def tune(self, count: int) -> None:
        """Find the number of threads with the most reads a second."""
        best = float("inf")
        for threads in (4, 16, 32, 64, 128):
            seconds = []
            for _ in range(2):
                self.drop()
                begin = time.perf_counter()
                self.read(count, threads)
                seconds.append(time.perf_counter() - begin)
            if min(seconds) < best:
                best, self.threads = min(seconds), threads

    def close(self) -> None:
        os.close(self._fd)


def _cold(settings: Settings, path: Path, rows: int) -> Case:
    count = 500 if settings.quick else 20_000
    disk = Disk(path / "rows.npy", rows)
    disk.tune(count)
    rng = np.random.default_rng(6)
    opened: list[se.EmbeddingTable] = []

    some = rng.choice(rows, 100, replace=False)
    with se.EmbeddingTable.open(path, "r") as table:
        found = Competitor("sparse_embed", print, lambda: table.lookup(some))
        gate([found], _weights()[some & 0xFFFF], 0.0, "cold")

    def reopen(_: int) -> None:
        for table in opened:
            table.close(checkpoint=False)
        opened[:] = [se.EmbeddingTable.open(path, "r")]
        disk.drop()

    competitors = [
        Competitor(
            "sparse_embed",
            lambda i: opened[0].lookup(rng.choice(rows, count, replace=False)),
            before=reopen,
        ),
        Competitor(DISK, lambda i: disk.read(count), before=lambda i: disk.drop()),
    ]
    case = race(f"cold: {count:,} rows of {rows:,} x {_DIM}", competitors, settings.count(9, 1))
    case.facts |= {"rows a second": count / case.median("sparse_embed"), "threads": disk.threads}
    opened[0].close(checkpoint=False)
    disk.close()
    return case


def _larger(settings: Settings, path: Path, rows: int, alpha: float, train: bool) -> Case:
    """Batches over a table ten times the cache, the next one being prefetched."""
    work = Workload(rows, _DIM, 64 if settings.quick else 1024, 16, alpha)
    record = tables.make(2, _DIM, "lazy_adam").info()["record_bytes"]
    table = se.EmbeddingTable.open(path, cache_bytes=max(rows * record // 10, 1 << 20))
    disk = Disk(path / "rows.npy", rows)
    rounds, warmup = settings.count(10, 1), 1 if settings.quick else 5
    batches, offsets = work.batches(_A_ROUND * (rounds + warmup) + 1), work.offsets()
    unique = [np.unique(batch) for batch in batches]
    grad = np.full((work.batch_size, _DIM), 1e-3, np.float32)
    misses: list[int] = []
    sums = _weights()[batches[0] & 0xFFFF].astype(np.float64).reshape(-1, work.bag_size, _DIM)
    found = Competitor("sparse_embed", print, lambda: table.lookup(batches[0], offsets, mode="sum"))
    gate([found], sums.sum(axis=1), 1e-4, work.name)

    def steps(i: int) -> None:
        missing = 0
        first = _A_ROUND * (i + warmup)
        for n in range(first, first + _A_ROUND):
            missing += int(np.count_nonzero(table._table.rows.resident.find(unique[n]) < 0))
            table.prefetch(batches[n + 1], wait=False)
            table.lookup(batches[n], offsets, mode="sum")
            if train:
                table.update(grad, batches[n], offsets, mode="sum")
        misses.append(missing)

    def drop(_: int) -> None:
        spilled = table._table.rows._scratch._fd
        disk.drop(*([spilled] if spilled >= 0 else []))

    count = int(_A_ROUND * np.mean([len(rows) for rows in unique]))
    disk.tune(min(count, 20_000))
    competitors = [
        Competitor("sparse_embed", steps, before=drop),
        Competitor(
            DISK,
            lambda i: disk.read(max(1, misses[-1] if misses else count)),
            before=drop,
        ),
    ]
    what = "steps" if train else "lookups"
    name = f"larger than its cache, {_A_ROUND} {what}: {work.name}"
    case = race(name, competitors, rounds, warmup)
    case.facts |= {
        "rows missing a round": float(np.mean(misses[warmup:])),
        "rows of a round": count,
        "threads of the disk's reads": disk.threads,
    }
    table.close(checkpoint=False)
    disk.close()
    return case
