"""A table ten times larger than the cache trains in a plain torch loop, in the cache's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).resolve().parents[2]
CONSTANT = 40 << 20  # staging (8 MiB), tensors and gradients of a batch, 2-MiB pages, slack
BYTES_PER_ROW = 2 * 54  # see tests/test_memory.py


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
def test_ten_times_the_cache(tmp_path):
    cache = 12 << 20
    done = subprocess.run(
        [sys.executable, "-m", "tests.torch.memory_run", str(tmp_path), str(cache)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["table_bytes"] > 9.5 * cache
    growth = found["peak"] - found["base"]
    assert growth <= cache + CONSTANT + BYTES_PER_ROW * found["rows"]
    assert growth < found["table_bytes"] * 0.7
    assert found["losses"][1] < 0.5 * found["losses"][0]
