"""What a new process waits for: import, first lookup, first update, with a warm compile cache."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.harness import Case

ABOUT = "import and first results of a new process; compile cache cold and warm"

_PROGRAM = """
import json, time
begin = time.perf_counter()
import sparse_embed as se
marks = {"import": time.perf_counter() - begin}
import numpy as np
table = se.EmbeddingTable.create(None, num_embeddings=10**6, embedding_dim=64,
                                 optimizer=se.LazyAdam())
rows = np.arange(1000)
bags = table.lookup(rows, np.arange(0, 1001, 10), mode="mean")
marks["import + first lookup"] = time.perf_counter() - begin
table.update(bags, rows, np.arange(0, 1001, 10), mode="mean")
marks["import + first lookup + first update"] = time.perf_counter() - begin
print(json.dumps(marks))
"""


def run(quick: bool) -> list[Case]:
    import os
    import tempfile

    cases: dict[str, Case] = {}
    with tempfile.TemporaryDirectory() as cache:
        for i in range(2 if quick else 8):
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"NUMBA_CACHE_DIR": cache},
            )
            for part, seconds in json.loads(done.stdout).items():
                case = cases.setdefault(part, Case(part))
                case.samples.setdefault("warm cache" if i else "cold cache", []).append(seconds)
    return list(cases.values())
