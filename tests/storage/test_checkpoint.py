"""Folding: in the foreground, in the background, interrupted, refused, repeated."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import closing

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import checkpoint, files, fold
from sparse_embed.storage.journal import Journal
from tests.crash.workload import Twin, create, open_store, picture, step
from tests.storage.injected import BROKEN, FULL, always, nth

STOP = KeyboardInterrupt("stop")


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


def some_commits(path, count=3):
    store = create(path)
    for n in range(1, count + 1):
        step(store, n)
        store.commit()
    return store


def said(path):
    return json.loads((path / "store.json").read_text())


def test_a_checkpoint_leaves_plain_files_and_no_journal(tmp_path, twin):
    store = some_commits(tmp_path / "m")
    step(store, 4)  # not committed: not folded
    store.checkpoint()
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "arrays-000003.npz",
        "items.npy",
        "lock",
        "store.json",
        "users.npy",
    ]
    assert picture(store) == twin.picture(4)
    assert (said(tmp_path / "m")["folded"], said(tmp_path / "m")["folding"]) == (3, 3)
    data = np.load(tmp_path / "m" / "users.npy", mmap_mode="r")
    assert store.commit() == 4
    with open_store(tmp_path / "m", "r", at_commit=3) as reader:
        rows = reader.tables["users"].trained_indices()
        assert np.array_equal(data["weight"][rows], reader.tables["users"].lookup(rows))
        assert picture(reader) == twin.picture(3)
    store.close()


@pytest.mark.parametrize("number", range(1, 24))
@pytest.mark.parametrize("error", [FULL, STOP], ids=["ENOSPC", "Ctrl-C"])
def test_a_checkpoint_that_fails_at_any_call(tmp_path, twin, inject, number, error):
    """The journal is kept; it can be tried again at once, and after a reopen."""
    store = some_commits(tmp_path / "m")
    store.checkpoint()
    for n in (4, 5):
        step(store, n)
        store.commit()
    calls = inject(nth(number, error))
    failed = False
    try:
        store.checkpoint()
    except (se.StoreError, KeyboardInterrupt):
        failed = True
    if not failed:
        assert number > 15
    calls.stop()
    assert picture(store) == twin.picture(5)
    with open_store(tmp_path / "m", "r") as reader:
        assert picture(reader) == twin.picture(5)
    if store._core.read_only is None:
        step(store, 6)
        assert store.commit() == 6
        store.checkpoint()
        assert picture(store) == twin.picture(6)
        store.close(checkpoint=False)
        last = 6
    else:
        assert "again" in store._core.read_only
        with pytest.raises(se.ReadOnlyError, match="sync"):
            step(store, 6)
        store.close()
        last = 5
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(last)
        assert sum(p.suffix in (".tmp", ".wal") for p in (tmp_path / "m").iterdir()) <= 1
        step(store, last + 1)
        store.commit()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(last + 1)
        assert store.verify()["rows_in_data_files"]["users"] > 0


@pytest.mark.parametrize("name", ["fsync", "sync_dir"])
def test_a_failed_sync_turns_the_store_read_only(tmp_path, twin, inject, name):
    store = some_commits(tmp_path / "m")
    inject(always(BROKEN, name)).log.clear()
    with pytest.raises(se.StoreError, match="cannot sync"):
        store.checkpoint()
    files.CALLS.stop()
    with pytest.raises(se.ReadOnlyError, match="journal is kept, open the store again"):
        store.commit()
    assert picture(store) == twin.picture(3)  # reading goes on
    store.close()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)
        store.checkpoint()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)


def test_background_checkpoints_keep_two_commits(tmp_path, twin, fold_early):
    store = create(tmp_path / "m")
    folded = []
    for n in range(1, 31):
        step(store, n)
        store.commit(wait=n % 3 != 0)
        assert picture(store) == twin.picture(n)
        facts = store.info()
        folded.append(facts["folded_commit"])
        assert facts["last_commit"] - facts["folded_commit"] >= min(n - 1, 2)
    assert len(set(folded)) > 5
    store.close(checkpoint=False)
    for n in (28, 29, 30):
        with open_store(tmp_path / "m", "r", at_commit=n) as reader:
            assert picture(reader) == twin.picture(n)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(30)


def test_training_goes_on_while_a_checkpoint_runs(tmp_path, twin, fold_early, monkeypatch):
    """Commits, rollbacks, spills and readers while the fold's thread stands still half-way."""
    go, there = threading.Event(), threading.Event()
    plain = checkpoint.write_rows

    def slow(source, name, file):
        rows = plain(source, name, file)
        there.set()
        assert go.wait(30)
        return rows

    monkeypatch.setattr(checkpoint, "write_rows", slow)
    store = create(tmp_path / "m")
    for n in range(1, 5):
        step(store, n)
        store.commit()
    assert there.wait(30)
    for n in range(5, 12):
        step(store, n)
        store.rollback()
        assert picture(store) == twin.picture(n - 1)
        step(store, n)
        store.commit(wait=n % 2 == 0)
        assert picture(store) == twin.picture(n)
        with open_store(tmp_path / "m", "r") as reader:
            assert picture(reader) in (twin.picture(n), twin.picture(n - 1))
    go.set()
    store.checkpoint()
    assert store.info()["folded_commit"] == 11
    assert picture(store) == twin.picture(11)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(11)


@pytest.fixture
def slow_fold(monkeypatch, fold_early):
    """Folds in the background stand still until this event is set."""
    go = threading.Event()
    plain = checkpoint.write_rows

    def slow(source, name, file):
        assert go.wait(30)
        return plain(source, name, file)

    monkeypatch.setattr(checkpoint, "write_rows", slow)
    return go


def test_commits_wait_for_a_checkpoint_that_cannot_keep_up(tmp_path, twin, slow_fold, monkeypatch):
    monkeypatch.setattr(fold, "_LIMIT", 2.0)
    store = some_commits(tmp_path / "m", 3)
    running = store._core.running_fold
    # Two more such commits would have to wait for it, so it begins with one commit to fold.
    assert running is not None and not running.done and running.upto == 1
    step(store, 4)
    threading.Timer(0.05, slow_fold.set).start()
    store.commit()
    assert running.finished and slow_fold.is_set()
    assert said(tmp_path / "m")["folded"] >= running.upto
    assert picture(store) == twin.picture(4)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(4)


def test_commits_wait_for_no_checkpoint_while_the_disk_has_room(
    tmp_path, twin, slow_fold, monkeypatch
):
    monkeypatch.setattr(fold, "_LIMIT", 2.0)
    monkeypatch.setattr(Journal, "used", property(lambda self: 4 << 20))  # four budgets
    store = some_commits(tmp_path / "m", 4)
    running = store._core.running_fold
    step(store, 5)
    store.commit()
    assert running is not None and not running.done
    slow_fold.set()
    store.close()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(5)


@pytest.mark.parametrize("wait", [True, False])
def test_a_full_disk_waits_for_the_room_of_a_checkpoint(tmp_path, twin, slow_fold, inject, wait):
    store = some_commits(tmp_path / "m", 4)
    running = store._core.running_fold

    def when(name, args):
        if name != "allocate" or store._core.running_fold is None:
            return None
        slow_fold.set()
        return FULL

    inject(when)
    step(store, 5)
    store.commit(wait)
    assert running.finished
    assert picture(store) == twin.picture(5)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(5)


def test_a_failed_background_checkpoint_is_logged_and_harmless(
    tmp_path, twin, fold_early, inject, caplog
):
    store = create(tmp_path / "m")
    inject(always(FULL, "pwrite_records"))
    store._core.tables["users"].rows.budget.total = 1 << 20
    for name in list(store.tables):
        store.tables[name].lookup([1])
    with caplog.at_level(logging.WARNING, "sparse_embed"):
        for n in range(1, 9):
            try:
                step(store, n)
            except se.StoreError:  # a spill: the disk is full
                store.rollback()
                break
            store.commit()
            if store._core.running_fold is not None:
                store._core.running_fold.wait()
    files.CALLS.stop()
    done = store.metadata.get("n", 0)
    assert picture(store) == twin.picture(done)
    store.close()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(done)


def test_close_waits_for_a_checkpoint_whatever_else_fails(
    tmp_path, fold_early, monkeypatch, inject
):
    go, there = threading.Event(), threading.Event()
    plain = checkpoint.write_rows

    def slow(source, name, file):
        there.set()
        assert go.wait(30)
        return plain(source, name, file)

    monkeypatch.setattr(checkpoint, "write_rows", slow)
    store = create(tmp_path / "m")
    for n in range(1, 5):
        step(store, n)
        store.commit()
    assert there.wait(30)
    fold = store._core.running_fold
    step(store, 5)
    store.commit()
    step(store, 6)
    calls = inject(always(FULL, "pwrite"))
    store.commit(wait=False)
    store._core.flight.pending.wait()
    calls.stop()
    threading.Timer(0.2, go.set).start()
    with pytest.raises(se.StoreError, match="journal"):
        store.close()
    assert fold.done
    assert fold.finished
    with open_store(tmp_path / "m") as store:
        assert store.last_commit == 5


@pytest.mark.parametrize("where", ["mark", "drop_segments", "delete", "frames"])
def test_ctrl_c_after_a_fold(tmp_path, twin, monkeypatch, where):
    """The files are folded, memory has half taken note."""
    store = some_commits(tmp_path / "m", 2)
    store.checkpoint()
    for n in (3, 4):
        step(store, n)
        store.commit()
    core = store._core
    rows = core.tables["items"].rows
    owner, name = {
        "mark": (rows.file.pages, "mark"),
        "drop_segments": (rows, "drop_segments"),
        "frames": (core.journal, "older_than"),
        "delete": (core.journal, "delete"),
    }[where]
    plain = getattr(owner, name)

    def interrupted(*args, **kwargs):
        plain(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.checkpoint()
    monkeypatch.undo()
    assert picture(store) == twin.picture(4)
    store.rollback()
    assert picture(store) == twin.picture(4)
    for n in (5, 6):
        step(store, n)
        store.commit()
        store.checkpoint()
        assert store.info()["folded_commit"] == n
        assert picture(store) == twin.picture(n)
    store.close()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(6)


def test_a_fold_reads_the_journal_never_memory(tmp_path, twin):
    store = some_commits(tmp_path / "m", 3)
    step(store, 4)
    store.checkpoint()  # with uncommitted rows in memory
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)


def test_a_killed_fold_is_repeated(tmp_path, twin, inject):
    """Reopen after every call of a checkpoint as if the process had died there."""
    import shutil

    store = some_commits(tmp_path / "m", 3)
    copies = []

    def snap(name, args):
        copies.append(tmp_path / f"copy-{len(copies)}")
        shutil.copytree(tmp_path / "m", copies[-1])

    calls = inject(snap)
    store.checkpoint()
    calls.stop()
    assert len(copies) > 10
    for path in copies:
        with open_store(path) as copy:
            assert picture(copy) == twin.picture(3)
            assert copy.last_commit == 3
    store.close()


def test_rows_reset_and_folded_are_virgin_again(tmp_path):
    with se.EmbeddingTable.create(
        tmp_path / "t", num_embeddings=100, embedding_dim=4, optimizer=se.LazyAdam(0.1)
    ) as table:
        first = table.lookup(np.arange(100))
        table.update(np.ones((50, 4), np.float32), np.arange(50))
        table.commit()
        table.checkpoint()
        table.reset(np.arange(25))
        table.commit()
        table.checkpoint()
        assert table.trained_indices().tolist() == list(range(25, 50))
    with se.EmbeddingTable.open(tmp_path / "t") as table:
        assert np.array_equal(table.lookup(np.arange(25)), first[:25])
        assert table.trained_indices().tolist() == list(range(25, 50))


def test_snapshot_at_every_stage(tmp_path, twin, inject):
    store = some_commits(tmp_path / "m", 2)
    store.snapshot(tmp_path / "a")
    store.checkpoint()
    store.snapshot(tmp_path / "b")
    step(store, 3)
    store.commit()
    step(store, 4)
    store.snapshot(tmp_path / "c")
    assert picture(store) == twin.picture(4)
    with open_store(tmp_path / "m", "r") as reader:
        reader.snapshot(tmp_path / "d")
    for name, n in (("a", 2), ("b", 2), ("c", 3), ("d", 3)):
        with open_store(tmp_path / name) as copy:
            assert copy.last_commit == n
            assert picture(copy) == twin.picture(n)
            assert copy.info()["uuid"] != store.info()["uuid"]
    calls = inject(always(FULL, "pwrite_records"))
    with pytest.raises(se.StoreError, match="No space"):
        store.snapshot(tmp_path / "e")
    calls.stop()
    assert not (tmp_path / "e").exists()
    assert picture(store) == twin.picture(4)
    store.close()


def test_overwrite_removes_our_files_and_no_others(tmp_path):
    some_commits(tmp_path / "m").close(checkpoint=False)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(se.StoreError, match=r"already a store"):
        se.Store.create(tmp_path / "m")
    with pytest.raises(se.StoreError, match=r"notes\.txt"):
        se.Store.create(tmp_path / "m", overwrite=True)
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    (tmp_path / "m" / "notes.txt").unlink()
    create(tmp_path / "m").close()
    some = some_commits(tmp_path / "n")
    some.checkpoint()
    some.close()
    store = se.Store.create(tmp_path / "n", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "n").iterdir()) == ["lock", "store.json"]
    assert store.last_commit == 0
    store.close()
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "x").write_text("")
    with pytest.raises(se.StoreError, match="not a store"):
        se.Store.create(tmp_path / "o", overwrite=True)
    (tmp_path / "p").write_text("")
    with pytest.raises(se.StoreError):
        se.Store.create(tmp_path / "p", overwrite=True)


def test_an_interrupted_archive_says_that_it_was_interrupted(tmp_path, monkeypatch):
    """np.savez closes its archive on the way out, and where a member is half written that raises
    a ValueError, which hides the KeyboardInterrupt."""

    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("Can't close the ZIP file while there is an open writing handle")

    monkeypatch.setattr(np, "savez", interrupted)
    with closing(files.Directory(tmp_path)) as directory, pytest.raises(KeyboardInterrupt):
        checkpoint.write_arrays(directory, 1, {"head": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []
