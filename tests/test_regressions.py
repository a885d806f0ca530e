"""What a reviewer found, each with the few lines that showed it."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import resident
from tests.cases import assert_same_bits


def one(path, rows=1000, dim=4, **how):
    how.setdefault("optimizer", se.SGD(0.5))
    return se.EmbeddingTable.create(path, num_embeddings=rows, embedding_dim=dim, **how)


@pytest.mark.parametrize("dim", [1, 7, 64, 1000])
def test_a_commit_without_rows_is_a_commit(tmp_path, dim):
    table = one(tmp_path / "t", dim=dim, optimizer=se.LazyAdam())
    table.update(np.ones((1, dim), np.float32), [1])
    table.commit()
    table.metadata["epoch"] = 1
    table.commit()
    table.close(checkpoint=False)
    table = se.EmbeddingTable.open(tmp_path / "t")
    assert (table.last_commit, table.metadata) == (2, {"epoch": 1})
    table.update(np.ones((1, dim), np.float32), [1])
    assert table.commit() == 3
    table.close(checkpoint=False)
    with se.EmbeddingTable.open(tmp_path / "t", "r") as table:
        assert (table.last_commit, table.step) == (3, 2)


def test_empty_arrays_are_committed(tmp_path):
    with se.Store.create(tmp_path / "s") as store:
        store.arrays["x"] = np.zeros((100_000, 0))
        store.arrays["y"] = np.zeros(())
        store.commit()
        store.close(checkpoint=False)
    with se.Store.open(tmp_path / "s") as store:
        assert store.arrays["x"].shape == (100_000, 0)
        assert store.arrays["y"].shape == ()


def test_batches_near_the_size_of_the_cache(tmp_path, monkeypatch):
    """Indexes grow while rows are moved out, so fewer fit than a moment ago."""
    monkeypatch.setattr(resident, "_SMALLEST", 16)
    small = one(
        tmp_path / "t", rows=10**6, dim=16, optimizer=se.LazyAdam(0.01), cache_bytes=400_000
    )
    large = one(None, rows=10**6, dim=16, optimizer=se.LazyAdam(0.01))
    rng = np.random.default_rng(0)
    touched = []
    for step in range(12):
        rows = np.unique(rng.integers(0, 10**6, 1500))
        grad = rng.standard_normal((len(rows), 16)).astype(np.float32)
        small.update(grad, rows)
        large.update(grad, rows)
        touched.append(rows)
        if step % 5 == 4:
            small.commit()
    every = np.unique(np.concatenate(touched))
    assert_same_bits(small.lookup(every), large.lookup(every))
    assert small.info()["resident_capacity"] <= 10**6
    small.close()
    one(None, rows=10**9, cache_bytes=30_000).update(
        np.ones((3000, 4), np.float32), np.arange(3000) * 7
    )


@pytest.mark.parametrize("reopened", [False, True])
def test_the_lowest_padding_idx(tmp_path, reopened):
    table = one(tmp_path / "t", rows=100)
    if reopened:
        table.close()
        table = se.EmbeddingTable.open(tmp_path / "t")
    row = table.lookup(1)
    for indices, padding in (
        (np.array([1, 2**63], np.uint64), 2**63),
        (np.array([1, -(2**63)]), -(2**63)),
    ):
        found = table.lookup(indices, padding_idx=padding)
        assert_same_bits(found, np.stack([row, np.zeros_like(row)]))
        assert_same_bits(table.lookup(indices, mode="sum", padding_idx=padding), row)
        bag = se.EmbeddingBag(table, "sum", padding_idx=padding)
        assert_same_bits(bag(indices), row)
        with pytest.raises(IndexError):
            table.lookup(indices)
    table.close()


def test_a_gradient_owns_its_arrays():
    table = one(None, rows=100)
    rows, values = np.array([1, 2]), np.ones((2, 4), np.float32)
    grad = se.SparseGrad(rows, values, 100)
    rows[1] = 10**9
    assert grad.indices.tolist() == [1, 2]
    grad.indices[1] = 10**9
    with pytest.raises(IndexError, match="1000000000"):
        table.apply(grad)
    for bad in ("x", -1, 0, 2**64, 1.5):
        with pytest.raises(se.ArgumentError, match="num_embeddings"):
            se.SparseGrad([1], values[:1], bad)


def test_lr_of_a_table_made_after_the_last_commit(tmp_path):
    store = se.Store.create(tmp_path / "s")
    a = store.create_table("a", num_embeddings=9, embedding_dim=2, optimizer=se.SGD(0.1))
    a.update(np.ones((1, 2), np.float32), [1])
    store.commit()
    store.create_table("b", num_embeddings=9, embedding_dim=2, optimizer=se.SGD(0.5))
    store.close()
    with se.Store.open(tmp_path / "s") as store:
        assert (store.tables["a"].lr, store.tables["b"].lr) == (0.1, 0.5)


def test_metadata_takes_no_rows_with_it(tmp_path):
    with se.EmbeddingTable.create(tmp_path / "t", num_embeddings=9, embedding_dim=2) as table:
        table.metadata["loss"] = np.float32(0.5)  # a number like any other
    table = se.EmbeddingTable.open(tmp_path / "t")
    assert table.metadata == {"loss": 0.5}
    table.close()
    with pytest.raises(se.ArgumentError, match="metadata"):
        _assign_and_spoil(tmp_path / "t")
    with se.EmbeddingTable.open(tmp_path / "t") as table:
        assert table.lookup(3).tolist() == [1.0, 1.0]
    huge = one(tmp_path / "huge")
    huge.metadata["words"] = "x" * (33 << 20)
    with pytest.raises(se.ArgumentError, match="arrays"):
        huge.commit()
    huge.metadata.clear()
    assert huge.commit() == 1
    huge.close()
    for bad in (5, [1], "ab"):
        with pytest.raises(se.ArgumentError, match="metadata"):
            se.Store.create(tmp_path / "other", metadata=bad)


def _assign_and_spoil(path) -> None:
    with se.EmbeddingTable.open(path) as table:
        table.assign([3], np.ones((1, 2), np.float32))
        table.metadata["x"] = object()


def test_refresh_sees_new_tables_and_refuses_another_store(tmp_path):
    store = se.Store.create(tmp_path / "s")
    store.create_table("a", num_embeddings=9, embedding_dim=2)
    store.commit()
    reader = se.Store.open(tmp_path / "s", "r")
    store.create_table("b", num_embeddings=9, embedding_dim=3)
    store.commit()
    assert reader.refresh() == 2
    assert reader.tables["b"].lookup(1).shape == (3,)
    store.close()
    with se.Store.create(tmp_path / "s", overwrite=True) as other:
        other.create_table("a", num_embeddings=9, embedding_dim=64)
    with pytest.raises(se.StoreError, match="another store"):
        reader.refresh()
    assert reader.tables["a"].lookup(1).shape == (2,)
    reader.close()


def test_a_forgotten_store_lets_go_of_its_lock(tmp_path):
    table = one(tmp_path / "t")
    del table
    gc.collect()
    se.EmbeddingTable.open(tmp_path / "t").close()


def test_bag_after_a_failed_forward(tmp_path):
    table = one(None)
    bag = se.EmbeddingBag(table, "mean", dropout=0.5)
    bag([[1, 2]])
    with pytest.raises(IndexError):
        bag([[1, 2000]])
    with pytest.raises(se.ArgumentError, match="forward"):
        bag.backward(np.ones((1, 4), np.float32))
    with pytest.raises(se.ArgumentError, match="per_sample_weights"):
        bag([[1, 2]], None, np.ones((1, 2), np.float32))


def test_names_and_paths(tmp_path):
    store = se.Store.create(None)
    for name in ("x" * 300, "a/b", "\ud800", "", 5):
        with pytest.raises(se.ArgumentError, match="name"):
            store.arrays[name] = np.zeros(2)
    with pytest.raises(se.ArgumentError, match="arrays"):
        store.arrays["x"] = [[1], [1, 2]]
    for path in (5, b"bytes", "a\0b", ""):
        with pytest.raises(se.ArgumentError, match="path"):
            se.Store.create(path)
        with pytest.raises(se.ArgumentError, match="path"):
            se.Store.open(path)
    with pytest.raises(se.ArgumentError, match="dtype"):
        one(None, dtype="bogus")
    with pytest.raises(se.ArgumentError, match="state"):
        one(None).assign([1], np.ones((1, 4), np.float32), state=5)
