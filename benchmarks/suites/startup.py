"""What a user waits for and pays for before any step: import, compiler, memory, disk.

Each time is of a process of its own.  With the cold cache every kernel is compiled; compile time is
what the same calls took less with the warm one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Case, Settings

ABOUT = "import and first results of a new process, cold and warm; memory overhead; install size"

_PROGRAM = """
import json, os, time
clock = time.perf_counter
def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
begin = clock()
import sparse_embed as se
se.EmbeddingTable, se.LazyAdam
marks = {"import": clock() - begin}
import numpy as np
rows, offsets = np.arange(1000), np.arange(0, 1001, 10)
def part(name, work):
    start = clock()
    result = work()
    marks[name] = clock() - start
    return result
table = part("first create", lambda: se.EmbeddingTable.create(
    None, num_embeddings=10**6, embedding_dim=64, optimizer=se.LazyAdam()))
bags = part("first lookup", lambda: table.lookup(rows, offsets, mode="mean"))
part("first update", lambda: table.update(bags, rows, offsets, mode="mean"))
part("first hashing of strings", lambda: se.KeyHasher(1000)(["a", "b"]))
marks["from start to a trained batch"] = clock() - begin
memory = None
if os.path.exists("/proc/self/status"):
    del table, bags
    before = resident()
    table = se.EmbeddingTable.create(None, num_embeddings=10**9, embedding_dim=64,
                                     optimizer=se.LazyAdam(), cache_bytes=1 << 30)
    made = resident()
    count, size = ROWS, table.info()["record_bytes"]
    table.update(np.ones((count, 64), np.float32), np.arange(count) * 1009)
    memory = {"after import and first steps": before, "for an empty table of 1e9 rows":
              made - before, "bytes a trained row": (resident() - made) / count,
              "bytes of its record": size}
print(json.dumps([marks, memory]))
"""


def run(settings: Settings) -> Iterator[Case]:
    cases: dict[str, Case] = {}
    memory = None
    program = _PROGRAM.replace("ROWS", "10_000" if settings.quick else "500_000")
    with tempfile.TemporaryDirectory() as cache:
        variables = {} if settings.quick else {"NUMBA_CACHE_DIR": cache}  # quick: warm alone
        for i in range(int(settings.quick), 1 + settings.count(7, 1)):
            done = subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | variables,
            )
            marks, memory = json.loads(done.stdout)
            for part, seconds in marks.items():
                case = cases.setdefault(part, Case(part, ours=None))
                case.samples.setdefault("warm cache" if i else "cold cache", []).append(seconds)
        compiled = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
    for part, case in cases.items():
        if part != "import" and "cold cache" in case.samples:
            case.facts["compile seconds"] = case.median("cold cache") - case.median("warm cache")
        yield case
    footprint = Case("memory and disk", ours=None)
    footprint.facts = {"compiled kernels of these calls, MB": compiled / 1e6} | installed()
    if memory is not None:
        footprint.facts["memory"] = {
            key: value if key.startswith("bytes") else f"{value / 2**20:.1f} MiB"
            for key, value in memory.items()
        }
    yield footprint


def installed() -> dict[str, float]:
    """MB on disk of the package, and of what it cannot do without (with their requirements)."""
    package = Path(__file__).parents[2] / "sparse_embed"
    own = sum(file.stat().st_size for file in package.rglob("*.py"))
    seen: set[str] = set()
    waiting = ["numba", "numpy", "scipy", "mmh3", "click", "rich"]
    sizes: dict[str, float] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        places = [Path(str(found.locate_file(file))) for file in found.files or []]
        sizes[name] = sum(place.stat().st_size for place in places if place.is_file())
        for requirement in found.requires or []:
            if ";" not in requirement:
                waiting.append(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower())
    return {
        "sparse_embed, source, MB": own / 1e6,
        "dependencies, MB": sum(sizes.values()) / 1e6,
        "of these numba and llvmlite, MB": (sizes.get("numba", 0) + sizes.get("llvmlite", 0)) / 1e6,
    }
