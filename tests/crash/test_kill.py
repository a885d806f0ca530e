"""kill -9 in small; tests/crash/kill.py runs it large."""

from __future__ import annotations

import os
import sys

import pytest

from tests.crash import interrupts, kill

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def test_ten_kills(tmp_path):
    facts = kill.run(tmp_path, kills=10, seed=3, least_acknowledged=3)
    assert facts["mismatches"] == []
    assert facts["kills"] >= 10
    assert facts["acknowledged_commits"] >= 3


@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
    facts = kill.run(tmp_path, kills=200, seed=5)
    assert facts["mismatches"] == []
    assert facts["acknowledged_commits"] >= 100
    assert len(facts["kills_while"]) >= 5


@pytest.mark.skipif(sys.platform == "win32", reason="no timers that interrupt")
def test_ctrl_c_at_random_instants(tmp_path):
    facts = interrupts.run_in_process(tmp_path, rounds=120, seed=1)
    assert facts["mismatches"] == []
    assert facts["interrupted"] >= 60
    assert facts["failed_stores"] >= 10
    assert facts["commits"] >= 5  # how many is the load's business
