"""Cost against the table's size: the same rows in tables a thousand times apart.

A row's first weights depend on its number alone, so all tables must end with the same bits.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks.harness import Case, Disagreement, Settings

ABOUT = "create + open + update + commit + close of the same 10 batches, 10^6 against 10^9 rows"


def run(settings: Settings) -> Iterator[Case]:
    rounds, batch = settings.count(5, 1), 500 if settings.quick else 20_000
    sizes = (10**6, 10**8, 10**9)
    parts = ("create", "open", "update", "commit", "close", "total", "fold, per 4-KiB page")
    cases = {
        part: Case(f"{part}: 10 batches of {batch:,} ids below 10^6", ours=None) for part in parts
    }
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=settings.folder))
    try:
        for round_ in range(-1, rounds):
            expected = None
            for size in sizes:
                times, found = _once(folder / "table", size, batch)
                if not np.array_equal(found, found if expected is None else expected):
                    raise Disagreement(f"rows of {size:.0e} are not those of {sizes[0]:.0e}")
                expected = found
                for part, seconds in times.items():
                    if round_ >= 0:
                        cases[part].samples.setdefault(f"{size:.0e} rows", []).append(seconds)
    finally:
        shutil.rmtree(folder)
    yield from cases.values()


def _once(path: Path, size: int, batch: int) -> tuple[dict[str, float], Any]:
    """Seconds of each part, and the rows that were trained, as they are read from the file."""
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 10**6, batch) for _ in range(10)]
    grad = rng.standard_normal((batch, 64)).astype(np.float32)
    clock = time.perf_counter
    marks = [clock()]
    table = se.EmbeddingTable.create(
        path, num_embeddings=size, embedding_dim=64, optimizer=se.LazyAdam(1e-3)
    )
    marks.append(clock())
    table.close(checkpoint=False)
    table = se.EmbeddingTable.open(path)
    marks.append(clock())
    for indices in batches:
        table.update(grad, indices)
    marks.append(clock())
    table.commit()
    marks.append(clock())
    table.close(checkpoint=False)
    marks.append(clock())
    parts = ("create", "open", "update", "commit", "close")
    times = dict(zip(parts, np.diff(marks).tolist(), strict=True))
    times["total"] = marks[-1] - marks[0]
    with se.EmbeddingTable.open(path) as table:
        begin = clock()
        table.checkpoint()
        seconds = clock() - begin
        trained = table.lookup(np.concatenate(batches))
    pages = (path / "rows.npy").stat().st_blocks / 8
    times["fold, per 4-KiB page"] = seconds / pages
    shutil.rmtree(path)
    return times, trained
