"""What durability costs: training with commits against training without, on one file-backed table.

A block of steps with commits is allowed the larger of the same block without commits and its
journal bytes at the disk's sequential write rate of the same run, to a new file; "allowed for X" is
that time for each round of X.  (The journal writes over its own old files where it can, which disks
may do faster: "again".)  Stalls are the seconds that calls of `commit` took.  Blocks take turns;
between them everything becomes durable, untimed; checkpoints run in the background when they are
due.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import tables
from benchmarks.harness import Case, Disagreement, Settings
from benchmarks.workloads import Workload, zipf_rows
from sparse_embed.storage import fold

ABOUT = "training with a commit every n steps; commit against table size; recovery"
CHUNK = 8 << 20
_BATCHES = 500  # distinct ones; longer blocks go round
_LONGEST = 1000  # steps of a block without commits
_WAIT, _GO = "commit()", "commit(wait=False)"


@contextmanager
def _folder(where: Path | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="durability-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sequential_write(path: Path, size: int) -> tuple[list[float], list[float]]:
    """Seconds for each chunk of 8 MiB written past the page cache, the last with the sync: to a new
    file, and over it again."""
    memory = mmap.mmap(-1, CHUNK)
    memory.write(np.random.default_rng(0).bytes(CHUNK))
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    try:
        fd = os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:
        fd = os.open(path, flags)
    passes: tuple[list[float], list[float]] = ([], [])
    try:
        os.posix_fallocate(fd, 0, size)
        for seconds in passes:
            for at in range(0, size, CHUNK):
                begin = time.perf_counter()
                os.pwrite(fd, memory, at)
                if at + CHUNK >= size:
                    os.fdatasync(fd)
                seconds.append(time.perf_counter() - begin)
    finally:
        os.close(fd)
        path.unlink()
    return passes


class Trainer:
    """A table, its batches, and blocks of steps on it."""

    def __init__(self, path: Path, workload: Workload, batches: int) -> None:
        self.path = path
        self.table = se.EmbeddingTable.create(
            path,
            num_embeddings=workload.num_embeddings,
            embedding_dim=workload.embedding_dim,
            optimizer=se.LazyAdam(1e-3),
            cache_bytes=tables.CACHE,
        )
        rng = np.random.default_rng(workload.seed)
        shape = (workload.num_embeddings, workload.alpha, workload.length)
        self.batches = [zipf_rows(*shape, rng) for _ in range(batches)]
        self.offsets = workload.offsets()
        shape = (workload.batch_size, workload.embedding_dim)
        self.grad = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        self.at = 0
        for begin in range(0, workload.num_embeddings, 1 << 20):  # memory is had beforehand
            stop = min(begin + (1 << 20), workload.num_embeddings)
            self.table.prefetch(np.arange(begin, stop))

    def step(self) -> None:
        self.table.update(self.grad, self.batches[self.at % len(self.batches)], self.offsets)
        self.at += 1

    def block(self, steps: int, every: int, wait: bool) -> dict[str, Any]:
        """Seconds for `steps` with a commit every `every` of them (0: none), and what it wrote."""
        core = self.table._core
        stalls, journal_bytes, folds = [], 0, set()
        begin = time.perf_counter()
        for n in range(1, steps + 1):
            self.step()
            if every and n % every == 0:
                stall = time.perf_counter()
                self.table.commit(wait)
                stalls.append(time.perf_counter() - stall)
                frame = core.flight.pending.frame if core.flight else core.frames[-1]
                journal_bytes += frame.frame_bytes
                folds.add(core.manifest.folded)
        core.finish_flight(wait=True)
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "stalls": stalls,
            "journal_bytes": journal_bytes,
            "checkpoints": max(len(folds) - 1, 0),
            "staging_bytes": int(core.journal._staging.bytes.size),
        }

    def settle(self) -> None:
        """Between blocks, not timed: everything durable, no checkpoint running any more.

        None is asked for: those that the journal's size makes due run inside the blocks.
        """
        self.table.commit()
        fold.finish_fold(self.table._core, wait=True)


def training(
    path: Path, workload: Workload, plan: list[tuple[int, int, int]], rate: float
) -> Iterator[Case]:
    """Blocks without commits and with, in turn; plan: (commit every, steps a block, rounds)."""
    trainer = Trainer(path, workload, batches=min(max(steps for _, steps, _ in plan), _BATCHES))
    for _ in range(min(30, len(trainer.batches))):
        trainer.step()
    trainer.settle()
    plain: list[dict[str, Any]] = []
    for every, steps, rounds in plan:
        case = Case(f"{workload.name}: a commit every {every} steps, blocks of {steps} steps")
        case.ours = None
        results: dict[str, list[dict[str, Any]]] = {}
        kinds = [("no commits", 0, True), *((name, every, name == _WAIT) for name in (_WAIT, _GO))]
        if steps > _LONGEST:  # the time without commits: that of the blocks before, made longer
            factor = steps / plan[plan.index((every, steps, rounds)) - 1][1]
            results["no commits"] = [{"seconds": factor * plain[0]["seconds"]}] * rounds
            case.facts["no commits"] = f"{factor:g} times the blocks before"
            kinds = kinds[1:]
        for turn in range(rounds):
            first = turn % len(kinds)
            for name, frequency, wait in [*kinds[first:], *kinds[:first]]:
                results.setdefault(name, []).append(trainer.block(steps, frequency, wait))
                trainer.settle()
        plain = results["no commits"]
        case.samples = {name: [one["seconds"] for one in found] for name, found in results.items()}
        for name in (_WAIT, _GO):
            allowed = [
                max(base["seconds"], one["journal_bytes"] / rate)
                for base, one in zip(plain, results[name], strict=True)
            ]
            case.samples[f"allowed for {name}"] = allowed
            case.facts[name] = _facts(results[name], plain, allowed)
        yield case
    _check(trainer)


def _facts(
    found: list[dict[str, Any]], plain: list[dict[str, Any]], allowed: list[float]
) -> dict[str, Any]:
    stalls = [stall for one in found for stall in one["stalls"]]
    journal = found[0]["journal_bytes"]
    return {
        "bound by": "the disk" if allowed[0] > plain[0]["seconds"] else "training",
        "journal MB a block": journal / 1e6,
        "rows a commit": journal / 768 / len(found[0]["stalls"]),
        "journal MB/s": journal / 1e6 / found[0]["seconds"],
        "stall ms, median": 1e3 * float(np.median(stalls)),
        "stall ms, worst": 1e3 * max(stalls),
        "staging MB": max(one["staging_bytes"] for one in found) / 1e6,
        "checkpoints meanwhile": sum(one["checkpoints"] for one in found),
    }


def _check(trainer: Trainer) -> None:
    """What was committed is what a new opening reads."""
    trainer.table.commit()
    rows = np.unique(trainer.batches[0])[:50_000]
    before, step = trainer.table.lookup(rows), trainer.table.step
    trainer.table.close(checkpoint=False)
    with se.EmbeddingTable.open(trainer.path) as table:
        if table.step != step or not np.array_equal(table.lookup(rows), before):
            raise Disagreement("durability: the reopened table differs")


def commit_by_table_size(
    folder: Path, sizes: list[int], touched: list[int], rounds: int
) -> Iterator[Case]:
    """The same number of rows touched in tables of different sizes: seconds of one commit."""
    sized = {
        rows: se.EmbeddingTable.create(
            folder / f"t{rows}",
            num_embeddings=rows,
            embedding_dim=64,
            optimizer=se.LazyAdam(1e-3),
            cache_bytes=512 << 20,
        )
        for rows in sizes
    }
    rng = np.random.default_rng(2)
    for count in touched:
        case = Case(f"a commit of {count:,} touched rows", ours=None, axis=("rows touched", count))
        grad = np.ones((count, 64), np.float32)
        for i in range(-1, rounds):
            for rows, table in sized.items():
                table.update(grad, rng.integers(0, rows, count))
                begin = time.perf_counter()
                table.commit()
                if i >= 0:
                    seconds = time.perf_counter() - begin
                    case.samples.setdefault(f"table of {rows:,} rows", []).append(seconds)
        first, *_, last = (case.median(name) for name in case.samples)
        case.facts["largest / smallest table"] = last / first
        yield case
    for table in sized.values():
        table.close(checkpoint=False)


def recovery(folder: Path, frames: list[int], touched: int, rounds: int) -> Case:
    """Seconds to open a store by the size of its journal."""
    case = Case(f"opening by journal size, {touched:,} rows a commit", ours=None)
    for count in frames:
        path = folder / f"r{count}"
        table = se.EmbeddingTable.create(
            path,
            num_embeddings=10_000_000,
            embedding_dim=64,
            optimizer=se.LazyAdam(1e-3),
            cache_bytes=512 << 20,
        )
        rng = np.random.default_rng(3)
        for _ in range(count):
            table.update(np.ones((touched, 64), np.float32), rng.integers(0, 10_000_000, touched))
            table.commit()
        size = table.info()["journal_bytes"]
        table.close(checkpoint=False)
        name = f"{count} commits, {size / 1e6:.0f} MB"
        for _ in range(rounds):
            begin = time.perf_counter()
            table = se.EmbeddingTable.open(path, cache_bytes=512 << 20)
            case.samples.setdefault(name, []).append(time.perf_counter() - begin)
            if table.last_commit != count:
                raise Disagreement(f"durability: opened at {table.last_commit}, not {count}")
            table.close(checkpoint=False)
        case.facts[name + ", GB/s"] = size / 1e9 / case.median(name)
    return case


def run(settings: Settings) -> Iterator[Case]:
    quick = settings.quick
    workload = Workload(100_000, 64, 512, 8) if quick else Workload()
    rounds = settings.count(3, 1)
    with _folder(settings.folder) as path:
        size = (64 if quick else 2048) << 20
        disk = Case("sequential write, chunks of 8 MiB", ours=None)
        disk.samples["before"], disk.samples["before, again"] = sequential_write(path / "x", size)
        rate = size / sum(disk.samples["before"])
        # Several commits a block: what the last one writes has no step behind it to hide in.
        plan = [(10, 100, rounds), (100, 1000, 1), (1000, 3000, 1), (10_000, 10_000, 1)]
        if quick:
            plan = [(5, 20, rounds)]
        elif not settings.long:
            plan.pop()
        yield from training(path / "t", workload, plan, rate)
        disk.samples["after"], disk.samples["after, again"] = sequential_write(path / "x", size)
        disk.facts = {
            name + ", MB/s": size / 1e6 / sum(samples) for name, samples in disk.samples.items()
        }
        yield disk
        sizes = [10**6, 10**7] if quick else [10**6, 10**8, 10**9]
        touched = [200, 2000] if quick else [200, 2000, 20_000, 100_000]
        yield from commit_by_table_size(path, sizes, touched, 3 if quick else 10)
        yield recovery(path, [2, 8] if quick else [5, 20, 80], 2000 if quick else 20_000, rounds)
