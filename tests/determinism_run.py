"""Run as a program: train tables of every optimizer and mode; print one SHA-256 per setting.

python -m tests.determinism_run FOLDER THREADS CACHE REOPEN
    FOLDER   "-" in memory, else a directory for the stores
    THREADS  kernel threads
    CACHE    cache_bytes, 0 for none
    REOPEN   1: commit, close and open again half-way
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import sparse_embed as se

ROWS, DIM, STEPS = 6000, 16, 200
OPTIMIZERS = {
    "sgd": se.SGD(0.1),
    "adagrad": se.Adagrad(0.1),
    "row_wise_adagrad": se.RowWiseAdagrad(0.1),
    "lazy_adam": se.LazyAdam(0.01),
    "row_wise_adam": se.RowWiseAdam(0.01),
}
MODES = ("sum", "mean", "sqrtn", "max", "unpooled")


def train(folder: str, cache: int, reopen: bool, name: str) -> str:
    path = None if folder == "-" else Path(folder) / name
    cache_bytes = cache or None
    table = se.EmbeddingTable.create(
        path,
        num_embeddings=ROWS,
        embedding_dim=DIM,
        optimizer=OPTIMIZERS[name],
        seed=1,
        cache_bytes=cache_bytes,
    )
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        length = 900
        indices = rng.integers(0, ROWS, length)
        indices[: length // 3] = 4321  # one id makes up a third of the batch
        rng.shuffle(indices)
        mode = MODES[step % 5]
        if mode == "unpooled":
            how = {}
            grad = rng.standard_normal((length, DIM)).astype(np.float32)
        else:
            offsets = np.sort(np.concatenate([[0, length], rng.integers(0, length, 60)]))
            how = {"offsets": offsets, "mode": mode}
            grad = rng.standard_normal((61, DIM)).astype(np.float32)
        table.update(grad, indices, **how)
        if path is not None and step % 60 == 59:
            table.commit()
        if reopen and step == STEPS // 2:
            table.commit()
            table.close()
            table = se.EmbeddingTable.open(path, cache_bytes=cache_bytes)
    digest = hashlib.sha256()
    for begin in range(0, ROWS, 1000):
        rows = np.arange(begin, begin + 1000)
        digest.update(table.lookup(rows).tobytes())
        for values in table.state(rows).values():
            digest.update(values.tobytes())
    table.close()
    return digest.hexdigest()


def main() -> None:
    folder, threads, cache, reopen = sys.argv[1:]
    se.set_num_threads(int(threads))
    print(json.dumps({name: train(folder, int(cache), reopen == "1", name) for name in OPTIMIZERS}))


if __name__ == "__main__":
    main()
