"""The harness keeps its rules: what disagrees is not timed, everybody runs in every round."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import harness, report
from benchmarks.__main__ import cli
from benchmarks.ceilings import Ceilings
from benchmarks.workloads import Workload


def test_gate_refuses_what_disagrees():
    right = harness.Competitor("right", lambda i: None, lambda: np.array([1.0, 2.0]))
    wrong = harness.Competitor("wrong", lambda i: None, lambda: np.array([1.0, 2.1]))
    nan = harness.Competitor("nan", lambda i: None, lambda: np.array([1.0, np.nan]))
    harness.gate([right], [1.0, 2.0], 1e-6, "case")
    for bad in (wrong, nan):
        with pytest.raises(harness.Disagreement, match=bad.name):
            harness.gate([right, bad], [1.0, 2.0], 1e-6, "case")


def test_race_is_interleaved_and_keeps_samples():
    calls: list[tuple[str, int]] = []
    competitors = [
        harness.Competitor(name, lambda i, name=name: calls.append((name, i))) for name in "abc"
    ]
    case = harness.race("case", competitors, rounds=6, warmup=1)
    assert {name: len(samples) for name, samples in case.samples.items()} == dict.fromkeys("abc", 6)
    for i in range(6):
        turn = [name for name, at in calls if at == i]
        assert sorted(turn) == list("abc")
        assert turn[0] == "abc"[i % 3]  # who begins rotates


def test_workloads_are_seeded_and_skewed():
    zipf = Workload(num_embeddings=1000, batch_size=64, bag_size=8)
    first, second = zipf.batches(2)
    assert np.array_equal(first, zipf.batches(1)[0])
    assert not np.array_equal(first, second)
    uniform = Workload(num_embeddings=1000, batch_size=64, bag_size=8, alpha=0)
    assert len(np.unique(first)) < len(np.unique(uniform.batches(1)[0]))
    assert zipf.offsets()[-1] == len(first)


def test_ceiling_adds_what_numpy_adds():
    try:
        native = Ceilings(24, 2)
    except LookupError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    records = rng.standard_normal((50, 80)).astype(np.float32)
    indices, offsets = rng.integers(0, 50, 90), np.array([0, 10, 10, 50, 90])
    found = native.gather_sum(records, indices, offsets)
    for b in range(4):
        rows = records[indices[offsets[b] : offsets[b + 1]], :24].astype(np.float64)
        assert found[b] == pytest.approx(rows.sum(axis=0), abs=1e-5)


def test_results_survive_the_file(tmp_path):
    case = harness.Case("c", {"sparse_embed": [1e-3, 2e-3], "torch": [4e-3, 6e-3]}, {"x": "gone"})
    harness.write(tmp_path / "a.json", "command", {"suite": [case]})
    data = harness.read(tmp_path / "a.json")
    text = report.markdown(data)
    assert "| c | torch | 5 ms | 4 ms to 6 ms | 3.50" in text
    assert "| c | x | absent | gone |" in text
    data["suites"]["suite"][0]["samples"]["torch"] = [8e-3, 12e-3]
    (tmp_path / "b.json").write_text(json.dumps(data))
    compared = CliRunner().invoke(
        cli, ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    )
    assert compared.exit_code == 0
    assert "2.00" in compared.output
    assert CliRunner().invoke(cli, ["list"]).output.count("\n") == 5
