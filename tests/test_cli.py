"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed import __version__
from sparse_embed.cli import main


@pytest.fixture
def run(monkeypatch, capfd):
    """run("info", path) -> (exit code, stdout, stderr)"""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparse-embed", *map(str, arguments)])
        # The process keeps its own fault handler: pytest has one.
        monkeypatch.setattr("faulthandler.enable", lambda: None)
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capfd.readouterr()
        return int(exit_.value.code or 0), out, err

    return call


@pytest.fixture
def run_json(run):
    """run_json("info", path) -> the object; asserts exit code 0 and an empty stderr."""

    def call(*arguments: object) -> dict:
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, ""), err
        return json.loads(out)

    return call


@pytest.fixture
def table(tmp_path) -> Path:
    """Rows 3 to 12 of 1,000,000 hold 4 numbers each: their row number in column 0, ones else."""
    path = tmp_path / "items.table"
    with se.EmbeddingTable.create(path, num_embeddings=1_000_000, embedding_dim=4) as table:
        values = np.ones((10, 4), np.float32)
        values[:, 0] = np.arange(3, 13)
        table.assign(np.arange(3, 13), values)
    return path


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    names = "demo create info verify lookup nearest export quantize import train recommend keys"
    for name in [*names.split(), "doctor"]:
        assert f"\n  {name} " in out
        assert run(name, "--help")[0] == 0


def test_version(run):
    assert run("--version") == (0, f"sparse-embed {__version__}\n", "")


def test_help_starts_no_numba():
    """Start-up stays quick: nothing heavy is imported before a command needs it."""
    code = (
        "import sys, sparse_embed.cli\n"
        "sys.argv = ['sparse-embed', '--help']\n"
        "try: sparse_embed.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'numpy', 'scipy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "sparse_embed", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"sparse-embed {__version__}\n"), done.stderr


def test_create_and_info(run, run_json, tmp_path):
    path = tmp_path / "t"
    made = run_json(
        *("create", path, "--num-embeddings", "1_000_000_000", "--embedding-dim", 64),
        *("--optimizer", "adagrad", "--lr", 0.5, "--init", "normal:0.01", "--seed", 7),
    )
    assert made["num_embeddings"] == 10**9
    with se.EmbeddingTable.open(path, mode="r") as table:
        assert table.optimizer == se.Adagrad(0.5)
        assert table.init == se.Normal(0.01)
        assert table.seed == 7
    facts = run_json("info", path)
    assert facts["tables"]["rows"]["embedding_dim"] == 64
    code, out, _ = run("info", path)
    assert code == 0
    assert "1,000,000,000" in out
    code, _, err = run("create", path, "--num-embeddings", 5, "--embedding-dim", 2)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert run("create", path, "--num-embeddings", 5, "--embedding-dim", 2, "--overwrite")[0] == 0


def test_narrow_tables(run, run_json, tmp_path):
    path, copy = tmp_path / "t", tmp_path / "c"
    made = run_json(
        *("create", path, "--num-embeddings", 100, "--embedding-dim", 4, "--dtype", "bfloat16"),
        *("--state-dtype", "bfloat16", "--rounding", "nearest"),
    )
    assert (made["dtype"], made["state_dtype"]) == ("bfloat16", "bfloat16")
    with se.EmbeddingTable.open(path) as table:
        table.assign([3, 5], np.ones((2, 4), np.float32))
    code, out, _ = run("info", path)
    assert code == 0
    assert "bfloat16" in out
    assert "nearest" in out
    found = run_json("quantize", path, copy)
    assert (found["dtype"], found["optimizer"]) == ("int8", None)
    assert run_json("lookup", copy, 5)["vectors"] == [[1.0, 1.0, 1.0, 1.0]]
    assert run("quantize", path, copy)[0] == 1
    assert run("quantize", path, copy, "--dtype", "float16", "--overwrite")[0] == 0
    again = ("quantize", copy, tmp_path / "d", "--dtype", "int4")
    assert run(*again)[0] == 2


@pytest.mark.parametrize(
    "extra", [["--init", "gaussian:1"], ["--init", "uniform:x"], ["--init", "uniform:-1"]]
)
def test_a_bad_initializer_is_a_usage_error(run, tmp_path, extra):
    code, _, err = run(
        "create", tmp_path / "t", "--num-embeddings", 5, "--embedding-dim", 2, *extra
    )
    assert code == 2
    assert "--init" in err
    assert not (tmp_path / "t").exists()


def test_lookup(run, run_json, table):
    found = run_json("lookup", table, 5, 3)
    assert found == {"indices": [5, 3], "vectors": [[5, 1, 1, 1], [3, 1, 1, 1]]}
    code, out, _ = run("lookup", table, 5)
    assert code == 0
    assert out == "row 5:  5.000000  1.000000  1.000000  1.000000\n"
    code, _, err = run("lookup", table, 1_000_000)
    assert code == 1
    assert "1000000" in err
    assert "Traceback" not in err


def test_nearest(run, run_json, table):
    found = run_json("nearest", table, 5, "-k", 3, "--metric", "euclidean")
    assert found["nearest"] == [[5, 4, 6]]
    assert found["scores"] == [[0, 1, 1]]
    code, out, _ = run("nearest", table, 5, "-k", 2)
    assert code == 0
    assert "cosine" in out


def test_nearest_says_what_it_takes(run, table):
    code, _, err = run("nearest", table, "five")
    assert code == 2
    assert err.rstrip().endswith("expected row numbers, got 'five'")
    with se.Store.open(table) as store:
        store.metadata["model"] = {"name": "TextClassifier"}
    code, _, err = run("nearest", table, "five")
    assert code == 2
    assert "this store holds a TextClassifier" in " ".join(err.split())


def test_export_and_import(run_json, table, tmp_path):
    assert run_json("export", table, tmp_path / "x.npy")["rows"] == 10
    made = run_json("import", tmp_path / "x.npy", tmp_path / "copy")
    assert made["rows"] == 10
    assert made["num_embeddings"] == 13
    with se.EmbeddingTable.open(tmp_path / "copy", mode="r") as copy:
        np.testing.assert_array_equal(copy.lookup([3, 12])[:, 0], [3, 12])
        np.testing.assert_array_equal(copy.trained_indices(), np.arange(3, 13))
    np.save(tmp_path / "plain.npy", np.eye(3))
    assert run_json("import", tmp_path / "plain.npy", tmp_path / "plain")["num_embeddings"] == 3


def test_import_refuses_what_is_no_matrix(run, tmp_path):
    np.save(tmp_path / "ints.npy", np.arange(4))
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("ints", "text", "objects"):
        code, _, err = run("import", tmp_path / f"{name}.npy", tmp_path / "t")
        assert code == 1
        assert f"{name}.npy" in err
        assert not (tmp_path / "t").exists()


def test_verify_finds_damage(run, run_json, table):
    assert run_json("verify", table)["ok"] is True
    description = table / "store.json"
    description.write_bytes(description.read_bytes().replace(b"1000000", b"1000001", 1))
    code, out, err = run("verify", table)
    assert code == 1
    assert out == ""
    assert "store.json" in err


@pytest.mark.parametrize("command", ["info", "verify"])
def test_no_store(run, tmp_path, command):
    code, out, err = run(command, tmp_path / "nothing")
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_several_tables(run, run_json, tmp_path):
    with se.Store.create(tmp_path / "two") as store:
        for name in ("a", "b"):
            store.create_table(name, num_embeddings=4, embedding_dim=2, init=se.Zeros())
    code, _, err = run("lookup", tmp_path / "two", 1)
    assert code == 2
    assert "a, b" in err
    assert run("lookup", tmp_path / "two", 1, "--table", "c")[0] == 2
    assert run_json("lookup", tmp_path / "two", 1, "--table", "b")["vectors"] == [[0, 0]]


def test_train_and_recommend(run, run_json, tmp_path):
    lines = [f"u{u},i{i}" for u in range(16) for i in range(16) if (u + i) % 2 == 0 and u != i]
    (tmp_path / "taken.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    model = tmp_path / "model"
    facts = run_json(
        *("train", "recommender", tmp_path / "taken.csv.gz", "-o", model),
        *("--embedding-dim", 8, "--epochs", 60, "--evaluate"),
    )
    assert (facts["users"], facts["items"], facts["interactions"]) == (16, 16, 112)
    quality = facts["quality"]
    assert set(quality) == {"popularity", "model"}
    found = run_json("recommend", model, "u3", "-k", 4)
    # One of its items was held out, and nothing odd is left besides its own number.
    assert {"i3"} < set(found["items"])
    assert len(found["items"]) == 4
    everything = run_json("recommend", model, "u3", "-k", 8, "--all")["items"]
    assert {int(item[1:]) % 2 for item in everything} == {1}
    code, out, _ = run("recommend", model, "u3")
    assert code == 0
    assert "i3" in out
    code, _, err = run("recommend", model, "nobody")
    assert code == 1
    assert "'nobody'" in err
    assert run("train", "recommender", tmp_path / "taken.csv.gz", "-o", model)[0] == 1
    other = ("train", "recommender", tmp_path / "taken.csv.gz", "-o", tmp_path / "other")
    code, _, err = run(*other, "--device", "gpu")
    assert code == 2
    assert 'expected "cpu", "cuda" or "cuda:N"' in err
    assert not (tmp_path / "other").exists()


def test_other_objectives_hashed_users_and_resume(run, run_json, tmp_path):
    lines = [f"u{u};i{i}" for u in range(16) for i in range(16) if (u + i) % 2 == 0 and u != i]
    (tmp_path / "taken.csv").write_text("\n".join(lines))
    command = ["train", "recommender", tmp_path / "taken.csv", "-o", tmp_path / "model"]
    command += ["--objective", "softmax", "--epochs", 2, "--hash-users", 1000, "--batch-size", 64]
    facts = run_json(*command, "--embedding-dim", 8)
    assert facts["objective"] == "softmax"
    assert (facts["users"], facts["items"]) == (16, 16)
    first = run_json("recommend", tmp_path / "model", "u3")
    assert len(first["items"]) == 9
    assert run("recommend", tmp_path / "model", "nobody")[0] == 1
    assert run_json(*command, "--embedding-dim", 8, "--resume")["users"] == 16
    assert run_json("recommend", tmp_path / "model", "u3") == first
    code, _, err = run(*command, "--embedding-dim", 16, "--resume")
    assert code == 2
    assert "embedding_dim" in err


def test_recommend_needs_a_model(run, table):
    code, _, err = run("recommend", table, "ann")
    assert code == 1
    assert "expected a recommender" in err


def test_doctor(run, run_json):
    facts = run_json("doctor")
    assert facts["threads"]["layer"] in ("tbb", "omp", "workqueue")
    assert facts["packages"]["numba"]
    assert run("doctor")[0] == 0


def test_usage_errors(run):
    assert run("frobnicate")[0] == 2
    assert run("create")[0] == 2
    assert run("lookup", "somewhere", "three")[0] == 2


def test_interrupt(run, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparse_embed.cli.cli.main", stop)
    assert run("doctor") == (130, "", "interrupted\n")


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("sparse_embed.cli.cli.main", lambda **_: 1 // 0)
    monkeypatch.setattr("faulthandler.enable", lambda: None)
    with pytest.raises(ZeroDivisionError):
        main()


def test_keys(run, run_json, tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("".join(f"key {k % 700}\n" for k in range(1000)))
    found = run_json("keys", path, "--num-embeddings", 1000)
    assert (found["keys"], found["distinct"], found["num_embeddings"]) == (1000, 700, 1000)
    assert found["collisions"] > 0
    assert run_json("keys", path, "--words")["distinct"] == 701
    (tmp_path / "keys.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert run_json("keys", tmp_path / "keys.gz", "--num-embeddings", 1000) == found
    code, out, _ = run("keys", path, "--num-embeddings", 1000)
    assert code == 0
    assert "key " in out
    (tmp_path / "empty").write_text("\n")
    assert run("keys", tmp_path / "empty")[0] == 1
