"""Run as a program: train far more rows than the cache holds; print how anonymous memory grew.

python -m tests.memory_run FOLDER CACHE_BYTES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import sparse_embed as se

ROWS, DIM, BATCH = 150_000, 64, 2000


def rss_anon() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon line")


def warm_up(folder: Path) -> None:
    """Everything that is loaded or allocated once: kernels, thread pools, staging buffers."""
    with se.EmbeddingTable.create(
        folder, num_embeddings=10**7, embedding_dim=DIM, optimizer=se.LazyAdam(), cache_bytes=1
    ) as table:
        for n in range(3):
            rows = np.arange(n * BATCH, (n + 1) * BATCH)
            table.update(np.ones((BATCH, DIM), np.float32), rows)
            table.lookup(rows, mode="sum")
            table.commit()


def main() -> None:
    folder, cache = Path(sys.argv[1]), int(sys.argv[2])
    warm_up(folder / "warm")
    table = se.EmbeddingTable.create(
        folder / "t",
        num_embeddings=10**9,
        embedding_dim=DIM,
        optimizer=se.LazyAdam(),
        cache_bytes=cache,
    )
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(10**9, ROWS, replace=False))
    grad = np.ones((BATCH, DIM), np.float32)
    base, peak = rss_anon(), 0
    for step in range(2 * ROWS // BATCH):
        begin = step * BATCH % ROWS
        table.update(grad, rows[begin : begin + BATCH])
        if step % 60 == 59:
            table.commit()
        peak = max(peak, rss_anon())
    table.close(checkpoint=False)
    print(json.dumps({"growth": peak - base, "rows": ROWS}))


if __name__ == "__main__":
    main()
