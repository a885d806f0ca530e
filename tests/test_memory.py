"""Anonymous memory stays within cache_bytes, plus a constant, plus the index of unfolded rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONSTANT = 32 << 20  # staging (8 MiB), arrays of a batch, 2-MiB pages, the allocator's slack
BYTES_PER_ROW = 54  # of a row newer than the data file, at the emptiest its index can be


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
def test_memory_follows_cache_bytes(tmp_path):
    cache = 24 << 20
    done = subprocess.run(
        [sys.executable, "-m", "tests.memory_run", str(tmp_path), str(cache)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The rows are 115 MB of records; they cannot all have stayed.
    assert found["growth"] <= cache + CONSTANT + 2 * BYTES_PER_ROW * found["rows"]
