"""Bad input: a named error that says what was found and wanted; nothing has changed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import sparse_embed as se

DIM = 4


@pytest.fixture
def table():
    with se.EmbeddingTable.create(
        None, num_embeddings=100, embedding_dim=DIM, optimizer=se.LazyAdam(0.1)
    ) as made:
        made.update(np.ones((3, DIM), np.float32), [1, 2, 3])
        yield made


GOOD = np.ones((2, DIM), np.float32)
CALLS = [
    # (error, message, grad, indices, keywords)
    (IndexError, r"3 of 5 indices .* \(from -7 to 101\)", None, [-7, 100, 101, 5, 6], {}),
    (IndexError, "index is out of range", GOOD, np.array([2**63, 1], np.uint64), {}),
    (ValueError, "indices: expected an integer dtype, got float64", GOOD, [1.0, 2.0], {}),
    (ValueError, "indices: expected an integer dtype, got bool", GOOD, [True, False], {}),
    (ValueError, r"shape \(L,\)", GOOD, [[1, 2]], {"offsets": [0, 1, 2]}),
    (ValueError, "non-decreasing", GOOD, [1, 2], {"offsets": [0, 2, 1, 2]}),
    (ValueError, r"offsets\[0\] = 0, got 1", GOOD, [1, 2], {"offsets": [1, 2]}),
    (ValueError, r"offsets\[-1\] = 1", GOOD, [1, 2], {"offsets": [0, 1]}),
    (ValueError, "grad: expected shape", GOOD, [1, 2, 3], {}),
    (ValueError, "grad: expected dtype float32, got float64", GOOD.astype(np.float64), [1, 2], {}),
    (ValueError, "mode: expected one of sum", GOOD, [[1], [2]], {"mode": "average"}),
    (ValueError, "max", GOOD, [[1], [2]], {"mode": "max", "per_sample_weights": [[1.0], [1.0]]}),
    (ValueError, "per_sample_weights", GOOD, [1, 2], {"per_sample_weights": [1.0, 1.0]}),
    (ValueError, "padding_idx", GOOD, [1, 2], {"padding_idx": 1.5}),
    (IndexError, "-1", GOOD, [1, -1], {}),
]


@pytest.mark.parametrize(("error", "message", "grad", "indices", "how"), CALLS)
def test_a_bad_batch_changes_nothing(table, error, message, grad, indices, how):
    before = table.lookup(np.arange(100)), table.step
    grad = np.ones((len(indices), DIM), np.float32) if grad is None else grad
    with pytest.raises(error, match=message) as caught:
        table.update(grad, indices, **how)
    assert isinstance(caught.value, se.SparseEmbedError)
    with pytest.raises(error, match=message):
        table.backward(grad, indices, **how)
    assert np.array_equal(table.lookup(np.arange(100)), before[0])
    assert table.step == before[1]


def test_not_finite(table):
    grad = GOOD.copy()
    grad[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"finite numbers, got nan at \(1, 2\)"):
        table.update(grad, [1, 2], check_finite=True)
    assert np.isfinite(table.lookup([1, 2])).all()


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("num_embeddings: expected 1", {"num_embeddings": 0}),
        ("num_embeddings: expected an integer", {"num_embeddings": 1.5}),
        ("embedding_dim", {"embedding_dim": -1}),
        ("dtype", {"dtype": "float64"}),
        ("init", {"init": 0.05}),
        ("optimizer", {"optimizer": "adam"}),
        ("seed", {"seed": -1}),
        ("cache_bytes", {"cache_bytes": 0}),
        ("device", {"device": "tpu"}),
        ("metadata", {"metadata": {"x": object()}}),
    ],
)
def test_bad_creation(tmp_path, message, change):
    arguments = {"num_embeddings": 10, "embedding_dim": DIM} | change
    with pytest.raises(se.ArgumentError, match=message):
        se.EmbeddingTable.create(tmp_path / "t", **arguments)
    assert not (tmp_path / "t").exists()


def test_cuda_says_what_is_missing():
    with pytest.raises(ImportError, match="cuda"):
        se.EmbeddingTable.create(None, num_embeddings=1, embedding_dim=1, device="cuda")


def test_no_optimizer(table):
    plain = se.EmbeddingTable.create(None, num_embeddings=10, embedding_dim=DIM)
    with pytest.raises(se.ArgumentError, match="created without one"):
        plain.update(GOOD, [1, 2])
    grad = table.backward(GOOD, [1, 2])
    other = se.EmbeddingTable.create(
        None, num_embeddings=10, embedding_dim=DIM, optimizer=se.SGD(0.1)
    )
    with pytest.raises(se.ArgumentError, match=re.escape("(100, 4) table")):
        other.apply(grad)
    with pytest.raises(se.ArgumentError, match="distinct"):
        plain.assign([1, 1], GOOD)
    with pytest.raises(se.ArgumentError, match="state"):
        plain.assign([1, 2], GOOD, state={"exp_avg": GOOD})


def test_paths(tmp_path):
    with pytest.raises(se.NotAStoreError, match="no store at"):
        se.EmbeddingTable.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(se.NotAStoreError, match=r"no store\.json"):
        se.Store.open(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(se.StoreError, match="file"):
        se.Store.open(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(se.StoreError, match=r"mine\.txt"):
            se.Store.create(tmp_path / "full", overwrite=overwrite)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    se.Store.create(tmp_path / "s").close()
    (tmp_path / "s" / "mine.txt").write_text("keep")
    with pytest.raises(se.StoreError, match="already a store"):
        se.Store.create(tmp_path / "s")
    with pytest.raises(se.ArgumentError, match="mode"):
        se.Store.open(tmp_path / "s", "w")
    with pytest.raises(se.StoreError, match="0 tables"):
        se.EmbeddingTable.open(tmp_path / "s")


def test_newer_format(tmp_path):
    se.Store.create(tmp_path / "s").close()
    text = (tmp_path / "s" / "store.json").read_text()
    (tmp_path / "s" / "store.json").write_text(text.replace('"version": 1', '"version": 7'))
    with pytest.raises(se.UnsupportedVersionError, match="version 7"):
        se.Store.open(tmp_path / "s")


def test_too_large_for_the_file_system(tmp_path):
    with pytest.raises(se.StoreError, match=r"file system|File too large|largest") as caught:
        se.EmbeddingTable.create(
            tmp_path / "t", num_embeddings=2**50, embedding_dim=64, cache_bytes=1 << 20
        )
    assert "num_embeddings" in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_second_writer_is_told_who_the_first_is(tmp_path):
    store = se.Store.create(tmp_path / "s")
    with pytest.raises(se.LockedError, match=f"process {os.getpid()}, since 20"):
        se.Store.open(tmp_path / "s")
    code = f"import sparse_embed as se; se.Store.open({str(tmp_path / 's')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"process {os.getpid()}" in done.stderr
    store.close()
    se.Store.open(tmp_path / "s").close()


def test_threads():
    with pytest.raises(se.ArgumentError, match="num_threads"):
        se.set_num_threads(0)
    with pytest.raises(se.ArgumentError, match="NUMBA_NUM_THREADS"):
        se.set_num_threads(10_000)
