"""Commits that fail: full disk, failed syncs, interrupts.  The store stays at its last commit."""

from __future__ import annotations

import errno

import pytest

import sparse_embed as se
from tests.crash.workload import Twin, create, open_store, picture, step
from tests.storage.injected import BROKEN, FULL, NAMES, always, nth

STOP = KeyboardInterrupt("stop")


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


def two_commits(path):
    store = create(path)
    for n in (1, 2):
        step(store, n)
        store.commit()
    return store


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("error", "name"),
    [(FULL, "allocate"), (FULL, "pwrite"), (BROKEN, "pwrite"), (BROKEN, "fdatasync")],
    ids=lambda x: x if isinstance(x, str) else errno.errorcode[x.errno],
)
def test_a_commit_that_fails(tmp_path, twin, inject, error, name, wait):
    store = two_commits(tmp_path / "m")
    step(store, 3)
    inside = picture(store)
    calls = inject(always(error, name))
    with pytest.raises(se.StoreError, match=r"journal-000001\.wal") as caught:  # noqa: PT012
        store.commit(wait=wait)
        store._core.flight.pending.wait()
        store.tables["users"].lookup([1])  # the error of a commit in flight comes at the next call
    assert caught.value.errno == error.errno
    assert picture(store) == inside == twin.picture(3)  # nothing in memory is lost
    assert store.last_commit == 2
    if name != "fdatasync":
        with pytest.raises(se.StoreError):
            store.commit()
    calls.stop()
    assert store.commit(wait=True) == 3
    step(store, 4)
    store.rollback()
    assert picture(store) == twin.picture(3)
    assert store.verify()["commits_in_journal"] == 3
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert store.last_commit == 3
        assert picture(store) == twin.picture(3)


def test_after_a_failed_commit_rollback_and_reopen_find_the_one_before(tmp_path, twin, inject):
    store = two_commits(tmp_path / "m")
    step(store, 3)
    calls = inject(always(BROKEN, "fdatasync"))
    with pytest.raises(se.StoreError):
        store.commit()
    calls.stop()
    store.rollback()
    assert picture(store) == twin.picture(2)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert store.last_commit == 2
        assert picture(store) == twin.picture(2)


def test_the_error_of_a_commit_in_flight(tmp_path, twin, inject):
    store = two_commits(tmp_path / "m")
    step(store, 3)
    calls = inject(always(FULL, "pwrite"))
    handle = store.commit(wait=False)
    with pytest.raises(se.StoreError):
        handle.wait()
    assert handle.done
    with pytest.raises(se.StoreError, match="not written"):
        handle.wait()
    calls.stop()
    store.commit()
    step(store, 4)
    calls = inject(always(FULL, "pwrite"))
    handle = store.commit(wait=False)
    with pytest.raises(se.StoreError, match=r"journal.*No space"):
        store.close()
    calls.stop()
    with pytest.raises((se.StoreError, se.StoreClosedError)):
        handle.wait()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)


def test_the_old_segment_is_not_written_to_after_a_failed_sync(tmp_path, twin, inject):
    store = two_commits(tmp_path / "m")
    step(store, 3)
    calls = inject(nth(1, BROKEN, "fdatasync"))
    with pytest.raises(se.StoreError):
        store.commit()
    assert calls.log[-1] == "truncate"
    assert store.commit() == 3
    names = sorted(p.name for p in (tmp_path / "m").glob("*.wal"))
    assert names == ["journal-000001.wal", "journal-000002.wal"]
    for n in (1, 2, 3):
        with open_store(tmp_path / "m", "r", at_commit=n) as reader:
            assert picture(reader) == twin.picture(n)
    store.close()


def test_a_failed_frame_that_cannot_be_cut_off_is_superseded(tmp_path, twin, inject):
    store = two_commits(tmp_path / "m")
    step(store, 30)
    calls = inject(always(BROKEN, "fdatasync", "truncate"))
    with pytest.raises(se.StoreError):
        store.commit()
    calls.stop()
    store.rollback()
    step(store, 3)
    assert store.commit() == 3
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)


@pytest.mark.parametrize("name", ["open", "pwrite", "fdatasync", "sync_dir"])
def test_a_new_segment_that_cannot_be_made(tmp_path, twin, inject, name):
    store = two_commits(tmp_path / "m")
    store.checkpoint()
    step(store, 3)
    for extra in ((), ("unlink",)):
        calls = inject(always(FULL, name, *extra))
        with pytest.raises(se.StoreError):
            store.commit()
        calls.stop()
    assert picture(store) == twin.picture(3)
    assert store.commit() == 3
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("number", range(1, 10))
def test_ctrl_c_in_a_commit(tmp_path, twin, inject, number, wait):
    """At every system call of a commit that needs a new segment."""
    store = two_commits(tmp_path / "m")
    store.checkpoint()
    step(store, 3)
    calls = inject(nth(number, STOP))
    stopped = False
    try:
        store.commit(wait=wait)
        if not wait:
            store._core.flight.pending.wait()
            assert store.tables["users"].lookup([1]).shape == (1, 4)
    except KeyboardInterrupt:
        stopped = True
    assert len(calls.log) >= number - 1
    assert stopped == (number <= 8)
    calls.stop()
    if stopped:
        assert store.last_commit == 2
    store.rollback()
    assert picture(store) == twin.picture(2 if stopped else 3)
    step(store, 3 if stopped else 4)
    store.commit()
    assert picture(store) == twin.picture(3 if stopped else 4)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3 if stopped else 4)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    "where", ["append", "mark_written", "settle", "rows.settle", "note_frame", "fold"]
)
def test_ctrl_c_between_the_system_calls(tmp_path, twin, monkeypatch, where, wait):
    """The frame is written, or being written, and memory has half taken note of it."""
    store = two_commits(tmp_path / "m")
    step(store, 3)
    core = store._core
    rows = core.tables["users"].rows
    owner, name = {
        "append": (core.journal, "append"),
        "mark_written": (rows, "mark_written"),
        "settle": (core.journal, "settle"),
        "rows.settle": (rows, "settle"),
        "note_frame": (rows, "note_frame"),
        "fold": (__import__("sparse_embed.storage.fold").storage.fold, "fold_in_background"),
    }[where]
    plain = getattr(owner, name)

    def interrupted(*args, **kwargs):
        plain(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        store.commit(wait=wait)
        core.flight.pending.wait()
        store.tables["users"].lookup([1])
    monkeypatch.undo()
    if where not in ("append", "fold"):
        with pytest.raises(se.StoreFailedError, match="rollback"):
            store.tables["users"].lookup([1])
    store.rollback()
    kept = 2 if where in ("append", "mark_written") else 3
    assert store.last_commit == kept
    assert picture(store) == twin.picture(kept)
    for n in (kept + 1, kept + 2):
        step(store, n)
        assert store.commit() == n
        assert picture(store) == twin.picture(n)
    store.rollback()
    assert picture(store) == twin.picture(kept + 2)
    store.close(checkpoint=False)
    for n in range(1, kept + 3):
        with open_store(tmp_path / "m", "r", at_commit=n) as store:
            assert picture(store) == twin.picture(n)


def test_closing_after_ctrl_c_in_a_commit_waits_for_its_thread(tmp_path, monkeypatch):
    """A thread that still writes must not meet a descriptor of the same number."""
    store = two_commits(tmp_path / "m")
    step(store, 3)
    journal = store._core.journal
    plain, pending = journal.append, []

    def interrupted(*args, **kwargs):
        pending.append(plain(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.commit(wait=False)
    store.close(checkpoint=False)
    assert pending[0].done


def test_ctrl_c_in_an_update_leads_to_rollback(tmp_path, twin, monkeypatch):
    from sparse_embed import ops

    store = two_commits(tmp_path / "m")
    plain = ops.update

    def interrupted(*args, **kwargs):
        plain(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(ops, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(store, 3)
    monkeypatch.undo()
    for call in (
        store.commit,
        store.checkpoint,
        store.info,
        lambda: store.tables["items"].lookup([1]),
    ):
        if call == store.checkpoint:
            continue  # folds what is committed
        with pytest.raises(se.StoreFailedError, match=r"interrupted.*rollback\(\).*commit 2"):
            call()
    store.rollback()
    assert picture(store) == twin.picture(2)
    step(store, 3)
    store.commit()
    assert picture(store) == twin.picture(3)
    store.close()


def test_ctrl_c_while_rows_are_brought_in(tmp_path, twin, monkeypatch):
    from sparse_embed.kernels import records as kernels

    store = two_commits(tmp_path / "m")
    store.rollback()
    plain = kernels.collect_missing_cpu()

    class Interrupting:
        def __index__(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(
        kernels, "collect_missing_cpu", lambda: lambda *a: (plain(*a), Interrupting())[1]
    )
    with pytest.raises(KeyboardInterrupt):
        store.tables["items"].lookup([1, 2, 3])
    monkeypatch.undo()
    with pytest.raises(se.StoreFailedError, match="moved"):
        store.tables["items"].lookup([1, 2, 3])
    store.rollback()
    assert picture(store) == twin.picture(2)
    store.close()


@pytest.mark.parametrize("number", range(1, 20))
def test_a_create_that_fails_leaves_nothing_in_the_way(tmp_path, inject, number):
    def make():
        return se.EmbeddingTable.create(
            tmp_path / "deep" / "t", num_embeddings=100, embedding_dim=4, optimizer=se.SGD(0.1)
        )

    calls = inject(nth(number, FULL))
    try:
        make().close()
        assert len(calls.log) < number
        return
    except se.StoreError as error:
        assert error.errno in (errno.ENOSPC, None) or "No space" in str(error)  # noqa: PT017
    calls.stop()
    make().close()
    se.EmbeddingTable.open(tmp_path / "deep" / "t").close()


@pytest.mark.parametrize("number", range(1, 14))
@pytest.mark.parametrize("error", [FULL, STOP], ids=["ENOSPC", "Ctrl-C"])
def test_a_table_that_cannot_be_added(tmp_path, twin, inject, number, error):
    store = two_commits(tmp_path / "m")
    calls = inject(nth(number, error))

    def add():
        store.create_table("new", num_embeddings=50, embedding_dim=3)

    try:
        add()
        failed = False
    except (se.StoreError, KeyboardInterrupt):
        failed = True
    assert failed == (len(calls.log) >= number)
    calls.stop()
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:  # with the new table or without it
        assert {"users", "items"} <= set(store.tables)
        if "new" not in store.tables:
            add()
            assert picture(store) != twin.picture(2)
        step_rows = store.tables["new"].lookup([0, 49])
        assert step_rows.shape == (2, 3)


def test_a_file_in_the_way_of_a_new_table_is_not_destroyed(tmp_path):
    import numpy as np

    store = create(tmp_path / "m")
    np.save(tmp_path / "m" / "mine.npy", np.arange(5))
    with pytest.raises(se.StoreError, match="in the way"):
        store.create_table("mine", num_embeddings=2, embedding_dim=2)
    assert np.load(tmp_path / "m" / "mine.npy").tolist() == [0, 1, 2, 3, 4]
    store.close()


def test_every_name_of_the_shim_is_a_call():
    from sparse_embed.storage import files

    public = {n for n in vars(files.SystemCalls) if not n.startswith("_")}
    assert public == set(NAMES)
