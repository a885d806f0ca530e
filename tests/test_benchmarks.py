"""The harness keeps its rules: what disagrees is not timed, everybody runs in every round."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import ceilings, comparison, harness, report, targets
from benchmarks.__main__ import SUITES, cli
from benchmarks.bare_commits import CHUNK, BareCommits
from benchmarks.ceilings import Ceilings, Room
from benchmarks.workloads import Workload, dlrm_counts
from sparse_embed.storage.fresh_memory import fresh_memory


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
    expected = []
    for i in range(6):
        turn = "abc"[i % 3 :] + "abc"[: i % 3]  # who begins rotates
        for name in turn:  # one's own threads are woken by another batch first
            expected += [(name, i + harness._OTHER_BATCH), (name, i)]
    assert calls[3:] == expected  # the first three are the warm-up


def test_workloads_are_seeded_and_skewed():
    zipf = Workload(num_embeddings=1000, batch_size=64, bag_size=8)
    first, second = zipf.batches(2)
    assert np.array_equal(first, zipf.batches(1)[0])
    assert not np.array_equal(first, second)
    uniform = Workload(num_embeddings=1000, batch_size=64, bag_size=8, alpha=0)
    assert len(np.unique(first)) < len(np.unique(uniform.batches(1)[0]))
    assert zipf.offsets()[-1] == len(first)


def test_ceiling_adds_what_numpy_adds():
    native = Ceilings(24, 2)
    rng = np.random.default_rng(0)
    records = rng.standard_normal((50, 80)).astype(np.float32)
    indices, offsets = rng.integers(0, 50, 90), np.array([0, 10, 10, 50, 90])
    found = native.gather_sum(records, indices, offsets)
    for b in range(4):
        rows = records[indices[offsets[b] : offsets[b + 1]], :24].astype(np.float64)
        assert found[b] == pytest.approx(rows.sum(axis=0), abs=1e-5)


@pytest.mark.parametrize("has_compiler", [True, False])
def test_ceilings_agree_in_c_and_numba(has_compiler, monkeypatch):
    if has_compiler and ceilings.language() == "Numba":
        pytest.skip("no C compiler")
    if not has_compiler:
        monkeypatch.setattr(ceilings, "_library", lambda dim: None)
        assert ceilings.language() == "Numba"
    rng, native = np.random.default_rng(1), Ceilings(8, 2)
    rows, grad = rng.integers(0, 40, 90), rng.standard_normal((30, 8)).astype(np.float32)
    bags = np.repeat(np.arange(30, dtype=np.int32), 3)
    room = Room(rows, 8)
    native.merge(grad, rows, bags, room)
    unique = np.unique(rows)
    wanted = np.zeros((len(unique), 8))
    np.add.at(wanted, np.searchsorted(unique, rows), grad[bags])
    assert room.sums == pytest.approx(wanted, abs=1e-5)
    records = rng.random((50, 32)).astype(np.float32)
    before = records.astype(np.float64)
    native.update_rows("lazy_adam", records, unique, room.sums, 0.1)
    m = 0.9 * before[unique, 8:16] + 0.1 * wanted
    v = 0.999 * before[unique, 16:24] + 0.001 * wanted**2
    assert records[unique, :8] == pytest.approx(
        before[unique, :8] - 0.1 * m / (np.sqrt(v) + 1e-8), abs=1e-4
    )
    offsets, weights = np.array([0, 2, 2, 5]), rng.random(5).astype(np.float32)
    found = native.gather_sum(records, rows[:5], offsets, weights, mean=True)
    first = np.average(records[rows[:2], :8], axis=0, weights=weights[:2])
    assert found[0] == pytest.approx(first, abs=1e-5)
    assert not found[1].any()


@pytest.mark.parametrize("has_compiler", [True, False])
def test_bare_commits_write_the_records(has_compiler, monkeypatch, tmp_path):
    """Chunk by chunk from the start of the file on, and from its start again behind its end."""
    if has_compiler and ceilings.language() == "Numba":
        pytest.skip("no C compiler")
    if not has_compiler:
        monkeypatch.setattr(ceilings, "_library", lambda dim: None)
    records = np.random.default_rng(0).standard_normal((40_000, 192)).astype(np.float32)
    bare = BareCommits(tmp_path / "bare", 4 * CHUNK, records, threads=2)
    staging = np.frombuffer(fresh_memory(bare.room(30_000)), np.uint8)
    bare.prepare(staging)
    first, second = np.arange(0, 40_000, 2), np.arange(1, 40_000, 4)  # two chunks and one
    last = second[::-1].copy()
    bare.commit(first, staging, wait=False)
    bare.commit(second, staging, wait=True)
    bare.commit(second, staging, wait=False)
    bare.commit(last, staging, wait=False)
    bare.close()
    data, a_chunk = (tmp_path / "bare").read_bytes(), CHUNK // (192 * 4 * 32) * 32
    expected = (last, first[a_chunk:], second, second)
    for at, rows in enumerate(expected):
        wanted = records[rows].tobytes()
        assert data[at * CHUNK :][: len(wanted)] == wanted


def test_the_published_histogram_is_followed():
    counts = dlrm_counts()
    # 1.103e8 rows in 788 tables; 7.6 % of the accesses to the hottest.
    assert len(counts) == pytest.approx(1.103e8 / 788, rel=0.15)
    assert counts[counts > 32768].sum() / counts.sum() == pytest.approx(0.076, rel=0.35)
    work = Workload(num_embeddings=1_000_000, trace="dlrm-2022", batch_size=4096)
    (batch,) = work.batches(1)
    assert batch.min() >= 0 and batch.max() < 1_000_000
    with pytest.raises(ValueError, match="touches"):
        Workload(num_embeddings=1000, trace="dlrm-2022").batches(1)


def _result(**suites):
    environment = {"cpu": "some", "peers": {"torch": "2", "implicit": "absent"}}
    return {
        "command": "c",
        "environment": environment,
        "suites": {name: [case.to_dict() for case in cases] for name, cases in suites.items()},
    }


def _case(ours, torch, name="weights only: x"):
    return harness.Case(name, {"sparse_embed": ours, "torch": torch}, {"x": "gone"})


def test_results_survive_the_file(tmp_path):
    data = _result(lookup=[_case([1e-3, 2e-3], [4e-3, 6e-3])], empty=[])
    harness.write(tmp_path / "a.json", data)
    assert harness.read(tmp_path / "a.json") == json.loads(json.dumps(data))
    text = report.markdown(harness.read(tmp_path / "a.json"))
    assert "| weights only: x | torch | 5 ms | 4 ms to 6 ms | 3.50" in text
    assert "| weights only: x | x | absent | gone |" in text
    assert "Absent: implicit" in text
    assert "lookup never slower than torch" in text and "reached" in text
    (tmp_path / "b.json").write_text("[]")
    asked = CliRunner().invoke(cli, ["report", str(tmp_path / "b.json")])
    assert asked.exit_code == 2 and "not a result file" in asked.output


def test_compare_flags_what_is_beyond_noise(tmp_path):
    rng = np.random.default_rng(0)

    def samples(middle):
        return (middle * (1 + 0.02 * rng.standard_normal(30))).tolist()

    old = _result(lookup=[_case(samples(1e-3), samples(4e-3))])
    cases = {
        "same": (_case(samples(1e-3), samples(4e-3)), 0),
        "the whole machine is half as fast": (_case(samples(2e-3), samples(8e-3)), 0),
        "ours is slower": (_case(samples(1.5e-3), samples(4e-3)), 1),
        "ours is faster": (_case(samples(0.6e-3), samples(4e-3)), 0),
        "another workload": (_case(samples(1e-3), samples(4e-3), "other"), 2),
    }
    harness.write(tmp_path / "old.json", old)
    for what, (case, code) in cases.items():
        harness.write(tmp_path / "new.json", _result(lookup=[case]))
        paths = [str(tmp_path / name) for name in ("old.json", "new.json")]
        asked = CliRunner().invoke(cli, ["compare", *paths])
        assert asked.exit_code == code, (what, asked.output)
    faster = comparison.compare(old, _result(lookup=[cases["ours is faster"][0]]))
    assert [row.verdict for row in faster.rows if row.ours] == [comparison.FASTER]


def test_goals_compare_the_right_sides():
    steps = "lazy_adam: 1 x 64, 4096 bags x 32, zipf(1.05)"
    case = harness.Case(steps, {"sparse_embed": [1.0, 1.0], "torch": [13.0, 13.0]})
    case.samples["C: floor"] = [0.5, 0.5]
    rows = targets.rows(_result(train_step=[case]))
    verdicts = {(row[0], row[-1]) for row in rows}
    assert ("step, Adam, Zipf", "reached") in verdicts
    assert ("step, Adam, against its floor", "**missed**") in verdicts
    case.samples["torch"] = [11.0, 11.0]
    (row, _) = targets.rows(_result(train_step=[case]))
    assert row[-1] == "**missed**; at the ceiling in C: 22.00 (22.00 to 22.00)"
    commits = harness.Case("w: a commit every 10 steps", {"commit()": [1.2], "no commits": [1.0]})
    commits.samples["allowed for commit()"] = [1.1]
    ((_, _, allowed, ours, _, _, verdict),) = targets.rows(_result(durability=[commits]))
    assert allowed.startswith("allowed") and ours.startswith("commit()") and verdict == "reached"
    commits.samples |= {"commit()": [2.2], "ceiling: commit()": [1.65]}
    ((*_, verdict),) = targets.rows(_result(durability=[commits]))
    assert verdict == "**missed**; at the ceiling: 1.50 (1.50 to 1.50)"


def test_every_suite_says_what_it_is():
    assert CliRunner().invoke(cli, ["list"]).output.count("\n") == len(SUITES)


def test_a_suite_runs_and_its_plots_are_drawn(tmp_path):
    result = tmp_path / "r.json"
    done = CliRunner().invoke(
        cli, ["run", "update", "dtypes", "cuda", "--quick", "--rounds", "2", "--json", str(result)]
    )
    assert done.exit_code == 0, done.output
    data = harness.read(result)
    assert data["quick"] and len(data["suites"]["update"]) == 2
    pytest.importorskip("matplotlib")
    text = tmp_path / "R.md"
    assert CliRunner().invoke(cli, ["report", str(result), "--output", str(text)]).exit_code == 0
    assert (tmp_path / "plots" / "update.png").stat().st_size > 1000
    assert "![update](plots/update.png)" in text.read_text()


def test_only_is_refused_where_it_would_be_ignored():
    asked = CliRunner().invoke(cli, ["run", "lookup", "--quick", "--only", "x"])
    assert asked.exit_code == 2
    assert "--only is for `run durability` alone" in asked.output
