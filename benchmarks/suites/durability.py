"""What durability costs: training with commits against training without, on one file-backed table.

A block of steps with commits is allowed the larger of the same block without commits and its
journal bytes at the disk's sequential write rate of the same round, to a new file; "allowed for X"
is that time for each round of X.  Half of the steps without commits come before the others, half
behind them: a machine is not as fast all the time.  (The journal writes over its own old files
where it can, which disks may do faster: "again".)  Commits that are waited for are written ahead in
part, and rows that change again are written twice: what is allowed counts the bytes that the block
that does not wait has written in the same round.  Stalls are the seconds that calls of `commit`
took.

"ceiling: X" is the same block with commits that do nothing but copy the changed records, by a
kernel in C, write and sync them (bare_commits.py): records that training changes must be copied
before it goes on, and writing takes memory's time and the processors' from training.  It needs
16 GiB of disk.

"disk held to": the same on a slower disk, by writes that are held back; no checkpoint runs beside.

Each block comes twice.  By itself: everything is folded before, untimed, all of the journal's files
are kept, and the journal may grow until the block is over.  "checkpoints beside": as by default, so
a checkpoint runs in the background once the journal is due; the journal is then what the block
before has left.  "going on": of a block that does not wait, the part between the first commit and
the last, for each of which the bytes of one commit are written; the whole also has steps before
that nothing is written beside, and a last commit that nothing is trained beside.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks import tables
from benchmarks.bare_commits import CHUNK, BareCommits, open_direct
from benchmarks.harness import Case, Disagreement, Settings
from benchmarks.held_back import held_to
from benchmarks.workloads import Workload, zipf_rows
from sparse_embed.storage import fold
from sparse_embed.storage.checkpoint import Fold
from sparse_embed.storage.fresh_memory import fresh_memory

ABOUT = "training with a commit every n steps; commit against table size; recovery"
_BATCHES = 500  # distinct ones; longer blocks go round
_LONGEST = 1000  # steps without commits; the time of a longer block is a multiple
_NONE, _WAIT, _GO = "no commits", "commit()", "commit(wait=False)"
_BESIDE, _ON = ", checkpoints beside", ", going on"
_ALLOWED, _CEILING = "allowed for ", "ceiling: "
_RATES = (0.5e9, 1e9)  # bytes a second that the disk is held to
_ALL = 1 << 50
_BARE = 16  # times what the disk is measured with is the file of bare commits


@contextmanager
def _folder(where: Path | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="durability-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _journal_may_have(size: int) -> Iterator[None]:
    """No checkpoint begins by itself before the journal is so large."""
    usual, fold._JOURNAL_BUDGET = fold._JOURNAL_BUDGET, size
    try:
        yield
    finally:
        fold._JOURNAL_BUDGET = usual


def sequential_write(path: Path, size: int) -> tuple[list[float], list[float]]:
    """Seconds for each chunk of 8 MiB written past the page cache, the last with the sync: to a new
    file, and over it again."""
    memory = fresh_memory(CHUNK)
    memory.write(np.random.default_rng(0).bytes(CHUNK))
    fd = open_direct(path)
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
        begin = time.perf_counter()
        stalls, ends, sizes, folds = [], [begin], [], set[Fold]()
        again = parts = 0
        for n in range(1, steps + 1):
            self.step()
            if every and n % every == 0:
                stall = time.perf_counter()
                self.table.commit(wait)
                ends.append(time.perf_counter())
                stalls.append(ends[-1] - stall)
                frame = core.flight.pending.frame if core.flight else core.frames[-1]
                sizes.append(frame.nbytes)
                again += frame.nbytes * core.journal.segments[frame.segment].header.reused
                parts += len(frame.parts)
                folds.update({core.running_fold} - {None})
        core.finish_flight(wait=True)
        return {
            "seconds": time.perf_counter() - begin,
            "stalls": stalls,
            "sizes": sizes,
            "needed": sum(sizes),
            "parts": parts / max(1, len(sizes)),
            "again": again / max(1, sum(sizes)),
            "going on": ends[-1] - ends[1] if len(ends) > 2 else None,
            "last": time.perf_counter() - ends[-1],
            "folds": folds,
            "staging_bytes": int(core.journal._staging.bytes.size),
        }

    def bare_block(self, bare: BareCommits, steps: int, every: int, wait: bool) -> dict[str, Any]:
        """As `block`, by commits as bare as can be."""
        windows = {}  # rows that change up to a commit, by the batch that follows
        for n in range(self.at + every, self.at + steps + 1, every):
            if n % len(self.batches) not in windows:
                changed = np.zeros(self.table.num_embeddings, bool)
                for at in range(n - every, n):
                    changed[self.batches[at % len(self.batches)]] = True
                windows[n % len(self.batches)] = np.flatnonzero(changed)
        largest = max(rows.size for rows in windows.values())
        staging = self.table._core.journal._staging.reserve(bare.room(largest))
        begin = time.perf_counter()
        ends = []
        for n in range(1, steps + 1):
            self.step()
            if n % every == 0:
                bare.commit(windows[self.at % len(self.batches)], staging, wait)
                ends.append(time.perf_counter())
        bare.settle()
        return {"seconds": time.perf_counter() - begin, "going on": ends[-1] - ends[0]}

    def bare_commits(self, path: Path, size: int) -> BareCommits:
        """Of this table."""
        records = self.table._core.tables["rows"].rows.resident.records
        bare = BareCommits(path, size, records, se.get_num_threads())
        bare.prepare(self.table._core.journal._staging.reserve(CHUNK))
        return bare

    def settle(self, empty: bool = False) -> None:
        """Between blocks, not timed: everything durable, no checkpoint running any more.

        None is asked for, unless the journal shall be empty.
        """
        self.table.commit()
        fold.finish_fold(self.table._core, wait=True)
        if empty:
            self.table.checkpoint()
        self.table.commit()  # of nothing: what it expects of the next one is nothing, too


@dataclass(frozen=True)
class Disk:
    """Bytes a second, written in order: to a new file, and over it again."""

    new: float
    again: float

    @staticmethod
    def measured(folder: Path, size: int) -> Disk:
        new, again = sequential_write(folder / "x", size)
        return Disk(size / sum(new), size / sum(again))


@dataclass(frozen=True)
class Plan:
    """A block of `steps` with a commit every so many, in so many rounds."""

    every: int
    steps: int
    rounds: int
    only_alone: bool = False  # neither with checkpoints beside nor with a slower disk

    def name(self, workload: Workload) -> str:
        return f"{workload.name}: a commit every {self.every} steps, blocks of {self.steps} steps"


def training(folder: Path, workload: Workload, plans: list[Plan], trial: int) -> Iterator[Case]:
    """Blocks without commits and with, in turn; `trial`: bytes that the disk is measured with."""
    batches = min(max(plan.steps for plan in plans), _BATCHES)
    trainer = Trainer(folder / "t", workload, batches)
    longest = plans[-1]
    with _journal_may_have(_ALL):  # staging is had beforehand, too
        trainer.block(min(longest.steps // 3, _LONGEST), min(longest.every, _LONGEST), False)
    bare = trainer.bare_commits(folder / "bare", _BARE * trial)
    for plan in plans:
        case = Case(plan.name(workload), ours=None)
        found: dict[str, list[dict[str, Any]]] = {}
        disks = []
        for turn in range(plan.rounds):
            trainer.settle(empty=True)
            disks.append(Disk.measured(folder, trial))
            with _plain(trainer, plan, case):
                for name in (_WAIT, _GO) if turn % 2 else (_GO, _WAIT):
                    found.setdefault(name, []).append(_alone(trainer, plan, name))
                    found.setdefault(_CEILING + name, []).append(_bare(trainer, bare, plan, name))
                    if plan.only_alone:
                        continue
                    beside = trainer.block(plan.steps, plan.every, name == _WAIT)
                    trainer.settle()  # and what a checkpoint took is known
                    found.setdefault(name + _BESIDE, []).append(beside)
        _hold(case, found, disks)
        if found[_GO][0]["going on"]:
            _hold_going_on(case, found, disks, 1 - plan.every / plan.steps)
        yield case
        for rate in () if plan.only_alone else _RATES:
            yield _held(trainer, bare, plan, workload, rate, disks[-1])
    bare.close()
    _check(trainer)


def _held(
    trainer: Trainer, bare: BareCommits, plan: Plan, workload: Workload, rate: float, disk: Disk
) -> Case:
    """One round with a slower disk, without checkpoints."""
    case = Case(f"{plan.name(workload)}, disk held to {rate / 1e9:g} GB/s", ours=None)
    found = {}
    with _plain(trainer, plan, case):
        for name in (_GO, _WAIT):
            found[name] = [_alone(trainer, plan, name, rate)]
            found[_CEILING + name] = [_bare(trainer, bare, plan, name, rate)]
    held = min(rate, disk.again)  # what it takes for new files does not show: all of them are old
    _hold(case, found, [Disk(held, held)])
    return case


@contextmanager
def _plain(trainer: Trainer, plan: Plan, case: Case) -> Iterator[None]:
    """Half of the steps without commits before what is in here, half of them behind."""
    half = min(plan.steps, _LONGEST) // 2
    seconds = trainer.block(half, 0, True)["seconds"]
    yield
    seconds += trainer.block(half, 0, True)["seconds"]
    case.samples.setdefault(_NONE, []).append(seconds * plan.steps / (2 * half))
    if plan.steps > _LONGEST:
        case.facts[_NONE] = f"{plan.steps / _LONGEST:g} times a block of {_LONGEST} steps"


def _alone(trainer: Trainer, plan: Plan, name: str, rate: float = 0.0) -> dict[str, Any]:
    """A block with no checkpoint in it; `rate`: that the disk is held to."""
    with _journal_may_have(_ALL):
        trainer.settle(empty=True)
        with held_to(rate) if rate else nullcontext():
            return trainer.block(plan.steps, plan.every, name == _WAIT)


def _bare(
    trainer: Trainer, bare: BareCommits, plan: Plan, name: str, rate: float = 0.0
) -> dict[str, Any]:
    """The same with the least that a commit can be."""
    with _journal_may_have(_ALL):
        trainer.settle()
        with held_to(rate) if rate else nullcontext():
            block = trainer.bare_block(bare, plan.steps, plan.every, name == _WAIT)
        trainer.settle()
        return block


def _hold(case: Case, found: dict[str, list[dict[str, Any]]], disks: list[Disk]) -> None:
    """The seconds of each round; of blocks without checkpoints also what is allowed."""
    case.facts["disk MB/s, new file"] = [disk.new / 1e6 for disk in disks]
    case.facts["disk MB/s, again"] = [disk.again / 1e6 for disk in disks]
    for name, blocks in found.items():
        case.samples[name] = [one["seconds"] for one in blocks]
        if name.startswith(_CEILING):
            continue
        waiting = name in (_WAIT, _WAIT + _BESIDE)
        for one, plain in zip(blocks, found[_GO], strict=True):
            one["needed"] = min(one["needed"], plain["needed"]) if waiting else one["needed"]
        case.facts[name] = _facts(case, name, blocks, disks)
        if not name.endswith(_BESIDE):
            case.samples[_ALLOWED + name] = [
                max(seconds, one["needed"] / disk.new)
                for seconds, one, disk in zip(case.samples[_NONE], blocks, disks, strict=True)
            ]


def _hold_going_on(
    case: Case, found: dict[str, list[dict[str, Any]]], disks: list[Disk], share: float
) -> None:
    """The same for the part between the first commit and the last, with this share of the steps."""
    name, blocks = _GO + _ON, found[_GO]
    case.samples[name] = [one["going on"] for one in blocks]
    case.samples[_ALLOWED + name] = [
        max(share * plain, sum(one["sizes"][:-1]) / disk.new)
        for plain, one, disk in zip(case.samples[_NONE], blocks, disks, strict=True)
    ]
    case.samples[_CEILING + name] = [one["going on"] for one in found[_CEILING + _GO]]


def _facts(
    case: Case, name: str, blocks: list[dict[str, Any]], disks: list[Disk]
) -> dict[str, Any]:
    stalls = [stall for one in blocks for stall in one["stalls"]]
    sizes = [sum(one["sizes"]) for one in blocks]
    plain = case.samples[_NONE]
    disk = [one["needed"] / of.new for one, of in zip(blocks, disks, strict=True)]
    folds = set[Fold]().union(*(one["folds"] for one in blocks))
    facts = {
        "of what is allowed": [
            one["seconds"] / max(both) for one, *both in zip(blocks, plain, disk, strict=True)
        ],
        "bound by": "the disk" if sum(disk) > sum(plain) else "training",
        "of training and disk one after the other": [
            one["seconds"] / sum(both) for one, *both in zip(blocks, plain, disk, strict=True)
        ],
        "journal MB a block": sizes[0] / 1e6,
        "of it over old files": [one["again"] for one in blocks],
        "of it written twice": [1 - one["needed"] / sum(one["sizes"]) for one in blocks],
        "parts a commit": [one["parts"] for one in blocks],
        "rows a commit": blocks[0]["needed"] / 768 / len(blocks[0]["stalls"]),
        "journal MB/s": sizes[0] / 1e6 / blocks[0]["seconds"],
        "stall ms, median": 1e3 * float(np.median(stalls)),
        "stall ms, worst": 1e3 * max(stalls),
        "s behind the last commit": max(one["last"] for one in blocks),
        "staging MB": max(one["staging_bytes"] for one in blocks) / 1e6,
        "checkpoints": len(folds),
    }
    if folds:  # all of them, also what they did after the block
        facts["checkpoints: processor s"] = sum(one.processor_seconds for one in folds)
        facts["checkpoints: MB of records"] = sum(one.record_bytes for one in folds) / 1e6
    return facts


def _check(trainer: Trainer) -> None:
    """What was committed is what a new opening reads."""
    trainer.table.commit()
    rows = np.unique(trainer.batches[0])[:50_000]
    before, step = trainer.table.lookup(rows), trainer.table.step
    trainer.table.close(checkpoint=False)
    with se.EmbeddingTable.open(trainer.path) as table:
        if table.step != step or not np.array_equal(table.lookup(rows), before):
            raise Disagreement("durability: the reopened table differs")


def _touching(count: int) -> str:
    return f"a commit of {count:,} touched rows"


def _opening(touched: int) -> str:
    return f"opening by journal size, {touched:,} rows a commit"


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
        case = Case(_touching(count), ours=None, axis=("rows touched", count))
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
    case = Case(_opening(touched), ours=None)
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
        with _journal_may_have(_ALL):
            for _ in range(count):
                rows = rng.integers(0, 10_000_000, touched)
                table.update(np.ones((touched, 64), np.float32), rows)
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
        # Several commits a block: what the last one writes has no step behind it to hide in.
        few = settings.rounds or 2
        plans = [Plan(10, 200, rounds), Plan(100, 1000, rounds), Plan(1000, 4000, few)]
        if quick:
            plans = [Plan(5, 20, 2)]
        elif settings.long:
            plans.append(Plan(10_000, 20_000, settings.rounds or 1, only_alone=True))
        plans = [plan for plan in plans if settings.wants(plan.name(workload))]
        if plans:
            yield from training(path, workload, plans, size // 2)
        disk.samples["after"], disk.samples["after, again"] = sequential_write(path / "x", size)
        disk.facts = {
            name + ", MB/s": size / 1e6 / sum(samples) for name, samples in disk.samples.items()
        }
        yield disk
        sizes = [10**6, 10**7] if quick else [10**6, 10**8, 10**9]
        touched = [200, 2000] if quick else [200, 2000, 20_000, 100_000]
        touched = [count for count in touched if settings.wants(_touching(count))]
        if touched:
            yield from commit_by_table_size(path, sizes, touched, 3 if quick else 10)
        count = 2000 if quick else 20_000
        if settings.wants(_opening(count)):
            yield recovery(path, [2, 8] if quick else [5, 20, 80, 320], count, rounds)
