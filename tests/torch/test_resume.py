"""Killed at any moment and started again, training gives the losses of a run never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


def start(folder, threads):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.torch.train_run", str(folder), str(STEPS), str(threads)],
        cwd=ROOT,
        env=os.environ | {"NUMBA_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_killed_and_resumed(tmp_path, threads):
    with start(tmp_path / "whole", threads) as whole:
        out, problems = whole.communicate(timeout=300)
    assert whole.returncode == 0, problems
    expected = dict(line.split() for line in out.splitlines())
    assert len(expected) == STEPS

    moments = random.Random(threads)
    found, kills, begun = {}, 0, set()
    for _ in range(30):
        lines = moments.randint(4, 14)
        with start(tmp_path / "killed", threads) as process:
            for count, line in enumerate(process.stdout, 1):
                step, loss = line.split()
                if count == 1:
                    begun.add(step)
                assert found.setdefault(step, loss) == loss  # a repeated step repeats its loss
                if count == lines:
                    time.sleep(moments.random() * 0.01)  # in the middle of a step or a commit
                    process.send_signal(signal.SIGKILL)
            problems = process.stderr.read()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, problems
    assert found == expected
    assert kills >= 3
    assert len(begun) >= 3
