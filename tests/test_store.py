"""Store: tables, arrays and metadata that commit together; what is durable, and what comes back."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

import sparse_embed as se
from tests.cases import assert_same_bits


def fill(store: se.Store) -> None:
    for name, dim in (("users", 8), ("items", 5)):
        store.create_table(
            name, num_embeddings=1000, embedding_dim=dim, optimizer=se.LazyAdam(0.1), seed=2
        )


def touch(store: se.Store, n: int) -> None:
    rng = np.random.default_rng(n)
    for table in store.tables.values():
        rows = rng.integers(0, 1000, 50)
        table.update(rng.standard_normal((50, table.embedding_dim)).astype(np.float32), rows)
    store.arrays["head.weight"] = rng.standard_normal((3, 4))
    store.arrays["count"] = np.int64(n)
    store.metadata["epoch"] = n


def picture(store: se.Store) -> dict:
    rows = np.arange(1000)
    found = {"metadata": json.dumps(store.metadata, sort_keys=True)}
    for name, table in store.tables.items():
        found[name] = table.lookup(rows).tobytes(), table.step, table.lr
        found[name + ".state"] = {k: v.tobytes() for k, v in table.state(rows).items()}
    found["arrays"] = {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in store.arrays.items()}
    return found


def test_commit_rollback_reopen(tmp_path):
    store = se.Store.create(tmp_path / "m", metadata={"name": "x"})
    fill(store)
    empty = picture(store)
    touch(store, 1)
    store.rollback()  # no commit yet: back to the empty tables
    assert picture(store) == empty | {"arrays": {}}
    touch(store, 1)
    assert store.commit() == 1
    first = picture(store)
    touch(store, 2)
    store.tables["users"].lr = 0.5
    assert store.commit() == 2
    second = picture(store)
    touch(store, 3)
    store.rollback()
    assert picture(store) == second
    assert store.last_commit == 2
    store.close(checkpoint=False)

    store = se.Store.open(tmp_path / "m")
    assert picture(store) == second
    store.close(checkpoint=False)
    store = se.Store.open(tmp_path / "m", at_commit=1)
    assert picture(store) == first
    touch(store, 4)
    assert store.commit() == 2  # the other commit 2 is superseded
    other = picture(store)
    store.checkpoint()
    assert picture(store) == other
    touch(store, 5)
    store.close()  # uncommitted: gone

    store = se.Store.open(tmp_path / "m", "r")
    assert picture(store) == other
    assert store.metadata == {"name": "x", "epoch": 4}
    assert store.verify()["commits_in_journal"] == 0
    with pytest.raises(se.ReadOnlyError, match="mode"):
        store.tables["users"].update(np.zeros((1, 8), np.float32), [1])
    store.close()


def test_with_commits_or_rolls_back(tmp_path):
    with se.Store.create(tmp_path / "m") as store:
        fill(store)
        touch(store, 1)
        done = picture(store)
    with se.Store.open(tmp_path / "m") as store:
        assert store.last_commit == 1
        assert picture(store) == done
    with pytest.raises(RuntimeError, match="stop"):
        _touch_and_stop(tmp_path / "m")
    with se.Store.open(tmp_path / "m") as store:
        assert store.last_commit == 1  # and an unchanged store is not committed again
        assert picture(store) == done


def _touch_and_stop(path) -> None:
    with se.Store.open(path) as store:
        touch(store, 2)
        raise RuntimeError("stop")


def test_commit_without_waiting(tmp_path):
    store = se.Store.create(tmp_path / "m")
    fill(store)
    pictures = {}
    for n in range(1, 7):
        touch(store, n)
        handle = store.commit(wait=False)
        assert isinstance(handle, se.Commit)
        pictures[handle.number] = picture(store)
        touch(store, 100 + n)  # at once: the frame must not see it
    assert handle.wait() == 6
    assert handle.done
    assert store.last_commit == 6
    store.rollback()
    assert picture(store) == pictures[6]
    store.close(checkpoint=False)
    for n in range(6, 0, -1):
        store = se.Store.open(tmp_path / "m", "r", at_commit=n)
        assert picture(store) == pictures[n]
        store.close()


def test_data_files_are_plain_npy(tmp_path):
    store = se.Store.create(tmp_path / "m")
    fill(store)
    for n in range(3):
        touch(store, n)
        store.commit()
    store.close()
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "arrays-000003.npz",
        "items.npy",
        "lock",
        "store.json",
        "users.npy",
    ]
    store = se.Store.open(tmp_path / "m")
    for name, table in store.tables.items():
        data = np.load(tmp_path / "m" / f"{name}.npy", mmap_mode="r")
        rows = table.trained_indices()
        assert len(rows) > 100
        assert_same_bits(np.asarray(data["weight"][rows]), table.lookup(rows))
        assert_same_bits(np.asarray(data["exp_avg"][rows]), table.state(rows)["exp_avg"])
        untouched = np.setdiff1d(np.arange(1000), rows)
        assert not data["weight"][untouched].any()
    store.close()


def test_snapshot(tmp_path):
    store = se.Store.create(tmp_path / "m", metadata={"a": [1, 2]})
    fill(store)
    touch(store, 1)
    store.commit()
    store.checkpoint()
    touch(store, 2)
    store.commit()
    done = picture(store)
    touch(store, 3)  # not committed: not in the copy
    store.snapshot(tmp_path / "copy")
    copy = se.Store.open(tmp_path / "copy")
    assert picture(copy) == done
    assert copy.last_commit == 2
    touch(copy, 4)
    copy.commit()
    copy.close()
    with pytest.raises(se.StoreError, match="already a store"):
        store.snapshot(tmp_path / "copy")
    store.close()


def test_closing_with_changes_is_logged(tmp_path, caplog):
    store = se.Store.create(tmp_path / "m")
    fill(store)
    touch(store, 1)
    with caplog.at_level(logging.WARNING, "sparse_embed"):
        store.close()
    assert "changes after commit 0" in caplog.text
    with pytest.raises(se.StoreClosedError, match="closed"):
        store.commit()
    store.close()


def test_memory_store_has_no_rollback(tmp_path):
    store = se.Store.create(None)
    fill(store)
    touch(store, 1)
    assert store.commit() == 1
    assert store.commit(wait=False).wait() == 2
    with pytest.raises(se.StoreError, match="memory"):
        store.rollback()
    store.checkpoint()
    now = picture(store)
    store.snapshot(tmp_path / "copy")
    with se.Store.open(tmp_path / "copy", "r") as copy:
        assert picture(copy) == now
    store.close()


def test_reader_sees_one_commit_and_refreshes(tmp_path):
    store = se.Store.create(tmp_path / "m")
    fill(store)
    touch(store, 1)
    store.commit()
    first = picture(store)
    reader = se.Store.open(tmp_path / "m", "r")
    assert picture(reader) == first
    touch(store, 2)
    store.commit()
    second = picture(store)
    store.checkpoint()  # as far as the reader allows: commit 1
    assert picture(reader) == first
    assert store.info()["folded_commit"] == 1
    assert reader.refresh() == 2
    assert picture(reader) == second
    store.checkpoint()
    assert store.info()["folded_commit"] == 2
    assert picture(reader) == second
    store.close()
    reader.close()
    with se.Store.open(tmp_path / "m") as again, pytest.raises(se.ArgumentError, match="refresh"):
        again.refresh()
