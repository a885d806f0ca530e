"""The same bits for any number of threads and any cache, in memory, on disk, after a reopening."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(folder: object, threads: int, cache: int = 0, reopen: bool = False) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.determinism_run"]
        + [str(part) for part in (folder, threads, cache, int(reopen))],
        cwd=ROOT,
        env=os.environ | {"NUMBA_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_same_bits_everywhere(tmp_path):
    expected = run("-", 1)
    assert len(set(expected.values())) == 5
    assert run("-", 2) == expected
    assert run("-", 4) == expected
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "a", 2) == expected
    assert run(tmp_path / "b", 2, reopen=True) == expected
    # A tenth of the largest table (6000 records of 192 bytes): most rows are evicted and spilled.
    assert run(tmp_path / "c", 4, cache=115_200, reopen=True) == expected
