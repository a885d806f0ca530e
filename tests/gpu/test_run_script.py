"""run.sh without a GPU: with an interpreter that says what a machine with one would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if shutil.which("bash") is None:
    pytest.skip("no bash", allow_module_level=True)

SCRIPT = Path(__file__).with_name("run.sh")

PYTHON = """#!/usr/bin/env bash
case "$*" in
    *table.py*) exec "{python}" "$@" ;;
    *sysconfig*) echo /nowhere ;;
    *"-m sparse_embed doctor"*) echo "cuda: one card" ;;
    *check_cuda*) {card} ;;
    *"import xdist"*) exit 1 ;;
    *test_ptx*) echo "9 passed in 1.0s" ;;
    *"-m pytest"*) {tests} ;;
    *"-m benchmarks"*) cp "{json}" "$(echo "$*" | sed 's/.*--json \\([^ ]*\\) .*/\\1/')"
        echo "all agree" ;;
    *) echo "what is $*?"; exit 3 ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
tool="$2"
[[ "$3 $4" == "--error-exitcode 9" ]] || exit 2
shift 4
echo "$tool on $(echo "$@" | wc -w) words"
if [[ "$tool" == racecheck ]]; then echo "1 hazard"; exit 9; fi
echo "0 errors"
"""
JSON = """{"environment": {}, "failed": {}, "suites": {"cuda": [
{"name": "bags", "samples": {"sparse_embed": [0.002, 0.004, 0.003], "copy": [0.0015]},
 "absent": {"torch": "not installed"}, "moved_bytes": 3000000000, "facts": {}}]}}
"""


def run(tmp_path, *arguments, card="exit 0", tests="echo '5 passed, 1 skipped in 2.0s'", **given):
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "a.json").write_text(JSON, encoding="utf-8")
    for name, source in (
        (
            "python",
            PYTHON.format(python=sys.executable, card=card, tests=tests, json=tmp_path / "a.json"),
        ),
        ("compute-sanitizer", SANITIZER),
    ):
        (folder / name).write_text(source, encoding="utf-8")
        (folder / name).chmod(0o755)
    found = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": str(folder / "python"),
        "GPU_RESULTS": str(tmp_path / "results"),
        **given,
    }
    ran = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True, text=True, check=False, env=found, timeout=60,
    )  # fmt: skip
    table = ran.stdout[ran.stdout.rfind("\nwhat ") :]
    return (
        ran.returncode,
        {re.split(r"\s{2,}", line.strip())[0]: line for line in table.splitlines()},
        ran,
    )


def test_one_table_last_and_a_failure_is_one(tmp_path):
    code, table, ran = run(tmp_path)
    assert code == 1, ran.stdout + ran.stderr
    assert "passed: cuda: one card" in table["doctor"]
    assert "passed: 5 passed, 1 skipped in 2.0s" in table["tests"]
    assert "passed: 9 passed" in table["ptx"]
    assert "passed: 0 errors" in table["sanitizer memcheck operations"]
    assert "FAILED (9): 1 hazard" in table["sanitizer racecheck device_cache"]
    assert "passed: all agree" in table["benchmark"]
    assert "3.000 ms     1000 GB/s" in table["sparse_embed"]
    assert table["sparse_embed"].endswith("1.00")
    assert table["copy"].endswith("0.50")
    assert "absent: not installed" in table["torch"]
    assert ran.stdout.splitlines()[-1].startswith("logs: ")


def test_quick(tmp_path):
    code, table, ran = run(tmp_path, "--quick")
    assert code == 0, ran.stdout + ran.stderr
    assert "not run: --quick" in table["sanitizer"]
    assert "passed" in table["benchmark"]


def test_a_step_that_does_not_end_has_failed_and_the_others_run(tmp_path):
    code, table, ran = run(tmp_path, "--quick", tests="sleep 50", STEP_SECONDS="1")
    assert code == 1, ran.stdout + ran.stderr
    assert "FAILED: not over after 1 s" in table["tests"]
    assert "passed" in table["ptx"]
    assert "passed" in table["benchmark"]


def test_no_gpu_is_said(tmp_path):
    code, table, _ = run(tmp_path, card="echo 'MissingExtraError: no driver'; exit 1")
    assert code == 1
    assert "FAILED: MissingExtraError: no driver" in table["GPU"]
    assert "tests" not in table
    ran = subprocess.run(["bash", str(SCRIPT), "--fast"], capture_output=True, check=False)
    assert ran.returncode == 2
