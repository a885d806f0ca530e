"""What the memory of this machine does, measured at the start of every run."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks.ceilings import Ceilings, best_distance, language
from sparse_embed.storage.resident import anonymous


def ceilings(quick: bool) -> dict[str, Any]:
    """GB/s of a stream copy and of random rows of 64 floats: read, and read-modify-written."""
    dim, threads = 64, se.get_num_threads()
    native = Ceilings(dim, threads)
    rows = 50_000 if quick else 2_000_000
    _, records = anonymous(rows, 3 * dim)
    records[:] = 0.01
    rng = np.random.default_rng(0)
    count = 20_000 if quick else 131_072
    indices = rng.integers(0, rows, count)
    offsets = np.arange(0, count + 1, 32)[: count // 32 + 1].copy()
    distinct = rng.permutation(rows)[: min(count, rows)]
    grad = np.zeros((len(distinct), dim), np.float32)
    half = records.reshape(-1)[: records.size // 2], records.reshape(-1)[records.size // 2 :]
    near = best_distance(lambda a: native.gather_sum(records, indices, offsets, ahead=a))

    def update(ahead: int) -> None:
        native.update_rows("lazy_adam", records, distinct, grad, 0.0, ahead)

    far = best_distance(update)
    rate = {
        "stream copy": (2 * half[0].nbytes, lambda: native.copy(half[0], half[1])),
        "random rows read": (
            4 * dim * int(offsets[-1]),
            lambda: native.gather_sum(records, indices, offsets, ahead=near),
        ),
        "random records updated": (
            4 * dim * 7 * len(distinct),
            lambda: update(far),
        ),
    }
    found: dict[str, Any] = {"language": language(), "threads": threads}
    for name, (moved, run) in rate.items():
        seconds = []
        for _ in range(3 if quick else 9):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        found[f"{name}, GB/s"] = round(moved / float(np.median(seconds)) / 1e9, 2)
    return found
