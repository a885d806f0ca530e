"""A reader process that looks up all rows in a loop while a writer trains, commits, checkpoints.

    python tests/crash/readers.py --row-reads 10000000 --seed 1

Every picture that the reader takes (weights, optimizer state, steps, arrays, metadata) must be that
of a commit.  Prints what was really visited.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from sparse_embed.storage import ahead, fold, journal, resident
from sparse_embed.storage.journal import Journal
from tests.crash.workload import (
    FEW_SLOTS,
    SHAPES,
    Twin,
    create,
    open_store,
    part_is_due,
    picture,
    step,
    steps_done,
)

ROWS = 2 * sum(rows for rows, _ in SHAPES.values())  # a picture reads weights, then state


def picture_of(path: str) -> str:
    with open_store(path, "r") as store:
        return picture(store)


def _read(path: str, pipe: Connection, seed: int) -> None:
    """The reader: sends (steps, picture, row reads, generation) until told to stop."""
    resident._SMALLEST = FEW_SLOTS
    rng = np.random.default_rng(seed)
    store = open_store(path, "r")
    seen: dict[int, set[str]] = {}
    reads = opens = 0
    while not pipe.poll():
        for _ in range(rng.integers(1, 4)):  # the same commit, while the writer goes on
            seen.setdefault(steps_done(store), set()).add(picture(store))
            reads += ROWS
        opens += 1
        if rng.random() < 0.5:
            store.refresh()
        else:
            store.close()
            store = open_store(path, "r")
        if opens % 20 == 0:
            pipe.send(reads)
    store.close()
    pipe.recv()
    pipe.send((reads, opens, seen))
    pipe.close()


def run(path: Path, row_reads: int, seed: int, seconds: float = 600) -> dict[str, Any]:
    """Train beside a reader until it has read that many rows."""
    smallest, budget, size = resident._SMALLEST, fold._JOURNAL_BUDGET, Journal.used
    worth, journal.WORTH = journal.WORTH, 0
    resident._SMALLEST = FEW_SLOTS
    fold._JOURNAL_BUDGET = 1 << 20  # so much may be kept of files that are used again
    limit, fold._LIMIT = fold._LIMIT, float("inf")
    rule = ahead.WORTH, ahead._GAIN, ahead._due
    ahead.WORTH, ahead._GAIN, ahead._due = 0, 0.0, part_is_due
    Journal.used = property(lambda self: 1 << 40)  # type: ignore[assignment]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    rng = np.random.default_rng(seed)
    store = create(path)
    process = context.Process(target=_read, args=(str(path), there, seed))
    process.start()
    there.close()
    n = reads = ahead_of = 0
    commits = {0}
    folded: set[int] = set()
    began = time.monotonic()
    try:
        while reads < row_reads and time.monotonic() - began < seconds:
            n += 1
            step(store, n)
            ahead_of += len(store._core.window.parts) > 0
            if rng.random() < 0.7:
                commits.add(n)  # before: the reader may see it at once
                store.commit(wait=bool(rng.random() < 0.5))
            if rng.random() < 0.05:
                store.checkpoint()
            folded.add(store._core.manifest.folded)
            while here.poll():
                reads = here.recv()
        here.send("stop")
        while isinstance(found := here.recv(), int):
            pass
        process.join()
    finally:
        store.close()
        if process.is_alive():
            process.kill()
        resident._SMALLEST, fold._JOURNAL_BUDGET = smallest, budget
        fold._LIMIT = limit
        Journal.used = size  # type: ignore[method-assign]
        journal.WORTH = worth
        ahead.WORTH, ahead._GAIN, ahead._due = rule
    reads, opens, seen = found
    twin = Twin()
    wrong = [at for at in sorted(seen) if at not in commits or seen[at] != {twin.picture(at)}]
    return {
        "row_reads": reads,
        "opens_and_refreshes": opens,
        "states": len(seen),
        "mismatches": wrong,
        "steps": n,
        "commits": len(commits) - 1,
        "steps_with_parts": ahead_of,
        "checkpoints": len(folded) - 1,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--row-reads", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = run(Path(folder) / "m", asked.row_reads, asked.seed)
    print(json.dumps(facts))
    return 1 if facts["mismatches"] or facts["row_reads"] < asked.row_reads else 0


if __name__ == "__main__":
    raise SystemExit(main())
