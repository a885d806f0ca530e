"""What durability costs: training with commits against training without, on one file-backed table.

    python benchmarks/suites/durability.py [--quick] [--folder DIR] [--steps N] [--json FILE]

All ratios are of one run on one disk.  A block of steps with commits may cost the larger of the
same block without commits and its journal bytes at the disk's sequential write rate; the ratio to
that is reported, for blocks in turn.  Stalls are the seconds that calls of `commit` took.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import sparse_embed as se
from benchmarks.harness import Case, Disagreement
from benchmarks.workloads import Workload

ABOUT = "training with a commit every n steps; commit against table size; recovery"
CHUNK = 8 << 20


@contextmanager
def _folder(where: str | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="durability-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sequential_write(path: Path, size: int) -> list[float]:
    """Seconds for each chunk of 8 MiB written past the page cache, the last with the sync."""
    memory = mmap.mmap(-1, CHUNK)
    memory.write(np.random.default_rng(0).bytes(CHUNK))
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    try:
        fd = os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:
        fd = os.open(path, flags)
    seconds = []
    try:
        os.posix_fallocate(fd, 0, size)
        for at in range(0, size, CHUNK):
            begin = time.perf_counter()
            os.pwrite(fd, memory, at)
            if at + CHUNK >= size:
                os.fdatasync(fd)
            seconds.append(time.perf_counter() - begin)
    finally:
        os.close(fd)
        path.unlink()
    return seconds


class Trainer:
    """A table, its batches, and blocks of steps on it."""

    def __init__(self, path: Path, workload: Workload, batches: int) -> None:
        self.path = path
        self.table = se.EmbeddingTable.create(
            path,
            num_embeddings=workload.num_embeddings,
            embedding_dim=workload.embedding_dim,
            optimizer=se.LazyAdam(1e-3),
        )
        self.batches = workload.batches(batches)
        self.offsets = workload.offsets()
        shape = (workload.batch_size, workload.embedding_dim)
        self.grad = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        self.at = 0

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
        """Between blocks, not timed: everything durable, no checkpoint running."""
        self.table.commit()
        self.table.checkpoint()


def training(path: Path, workload: Workload, steps: int, rounds: int, rate: float) -> list[Case]:
    """Blocks without commits and with, in turn."""
    trainer = Trainer(path, workload, batches=min(steps, 64))
    for _ in range(min(steps, 30)):
        trainer.step()
    trainer.settle()
    cases = []
    for every in (10, 100, 1000, 10_000):
        count = max(steps, every) if every <= 1000 else every
        if every > max(steps, 100):
            continue
        case = Case(f"{workload.name}, a commit every {every} steps, {count} steps")
        results: dict[str, list[dict[str, Any]]] = {}
        for _ in range(rounds):
            for name, frequency, wait in (
                ("without commits", 0, True),
                ("commit()", every, True),
                ("commit(wait=False)", every, False),
            ):
                result = trainer.block(count, frequency, wait)
                trainer.settle()
                results.setdefault(name, []).append(result)
                case.samples.setdefault(name, []).append(result["seconds"])
        plain = results.pop("without commits")
        for name, found in results.items():
            allowed = [
                max(base["seconds"], one["journal_bytes"] / rate)
                for base, one in zip(plain, found, strict=True)
            ]
            ratios = [one["seconds"] / most for one, most in zip(found, allowed, strict=True)]
            stalls = [stall for one in found for stall in one["stalls"]]
            case.facts[name] = {
                "ratio_to_allowed": float(np.median(ratios)),
                "ratio_spread": [min(ratios), max(ratios)],
                "ratio_to_no_commits": float(
                    np.median(
                        [o["seconds"] / b["seconds"] for o, b in zip(found, plain, strict=True)]
                    )
                ),
                "bound": "disk" if allowed[0] > plain[0]["seconds"] else "training",
                "journal_mb_a_block": found[0]["journal_bytes"] / 1e6,
                "stall_ms_median": 1e3 * float(np.median(stalls)),
                "stall_ms_worst": 1e3 * max(stalls),
                "staging_mb": found[-1]["staging_bytes"] / 1e6,
                "checkpoints_meanwhile": sum(one["checkpoints"] for one in found),
            }
        cases.append(case)
    _check(trainer)
    return cases


def _check(trainer: Trainer) -> None:
    """What was committed is what a new opening reads."""
    trainer.table.commit()
    rows = np.unique(trainer.batches[0])[:50_000]
    before, step = trainer.table.lookup(rows), trainer.table.step
    trainer.table.close(checkpoint=False)
    with se.EmbeddingTable.open(trainer.path) as table:
        if table.step != step or not np.array_equal(table.lookup(rows), before):
            raise Disagreement("durability: the reopened table differs")


def commit_by_table_size(folder: Path, sizes: list[int], touched: int, rounds: int) -> Case:
    """The same number of rows touched in tables of different sizes: seconds of one commit."""
    tables = {}
    for rows in sizes:
        tables[rows] = se.EmbeddingTable.create(
            folder / f"t{rows}",
            num_embeddings=rows,
            embedding_dim=64,
            optimizer=se.LazyAdam(1e-3),
            cache_bytes=512 << 20,
        )
    case = Case(f"commit of {touched:,} touched rows by table size")
    rng = np.random.default_rng(2)
    grad = np.ones((touched, 64), np.float32)
    for i in range(rounds + 1):
        for rows, table in tables.items():
            table.update(grad, rng.integers(0, rows, touched))
            begin = time.perf_counter()
            table.commit()
            if i:
                seconds = time.perf_counter() - begin
                case.samples.setdefault(f"{rows:,} rows", []).append(seconds)
    medians = [case.median(name) for name in case.samples]
    case.facts["largest / smallest table"] = medians[-1] / medians[0]
    for table in tables.values():
        table.close(checkpoint=False)
    return case


def recovery(folder: Path, frames: list[int], touched: int, rounds: int) -> Case:
    """Seconds to open a store by the size of its journal."""
    case = Case(f"opening by journal size, {touched:,} rows a commit")
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


def run(quick: bool, folder: str | None = None, steps: int | None = None) -> list[Case]:
    workload = Workload(100_000, 64, 512, 8) if quick else Workload()
    count = steps or (40 if quick else 200)
    rounds = 2 if quick else 3
    with _folder(folder) as path:
        size = (64 if quick else 2048) << 20
        disk = Case("sequential write, chunks of 8 MiB")
        disk.samples["before"] = sequential_write(path / "x", size)
        rate = size / sum(disk.samples["before"])
        cases = training(path / "t", workload, count, rounds, rate)
        disk.samples["after"] = sequential_write(path / "x", size)
        disk.facts = {
            name + ", MB/s": size / 1e6 / sum(samples) for name, samples in disk.samples.items()
        }
        sizes = [10**6, 10**7] if quick else [10**6, 10**8, 10**9]
        touched = 2000 if quick else 20_000
        cases.append(commit_by_table_size(path, sizes, touched, 3 if quick else 10))
        cases.append(recovery(path, [2, 8] if quick else [5, 20, 80], touched, rounds))
    return [disk, *cases]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", help="on the disk to measure (default: the temporary folder)")
    parser.add_argument(
        "--steps", type=int, help="of a block; more than 1000 adds longer intervals"
    )
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cases = run(asked.quick, asked.folder, asked.steps)
    for case in cases:
        print(case.name)
        for name in case.samples:
            samples = case.samples[name]
            spread = f"{1e3 * min(samples):.2f} to {1e3 * max(samples):.2f}"
            print(f"  {name:24} {1e3 * case.median(name):10.2f} ms ({spread})")
        for name, fact in case.facts.items():
            print(f"  {name}: {json.dumps(fact)}")
    if asked.json:
        asked.json.write_text(json.dumps([case.to_dict() for case in cases], indent=1) + "\n")


if __name__ == "__main__":
    main()
