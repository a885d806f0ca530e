"""One writer; forks; what a dead process leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.kernels import _jit
from tests.crash.workload import Twin, create, open_store, picture, step

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def fork(child) -> int:
    """Run `child()` in a fork; its exit status is 0 when it returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks of threaded processes
        pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            child()
            status = 0
        os._exit(status)
    return pid


@pytest.fixture
def kernels_survive_a_fork():
    """What opens a store in a child needs it."""
    step(create(None), 1)
    if _jit.threading_layer() == "omp":
        pytest.skip("OpenMP does not survive a fork (`pip install tbb`)")


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_second_writer_is_told_about_the_first(tmp_path):
    store = create(tmp_path / "m")
    for _ in range(2):
        with pytest.raises(se.LockedError, match=f"process {os.getpid()}, since 20"):
            open_store(tmp_path / "m")
    with pytest.raises(se.LockedError):
        se.Store.create(tmp_path / "m", overwrite=True)
    reader = open_store(tmp_path / "m", "r")  # a reader may
    reader.close()
    store.close()
    open_store(tmp_path / "m").close()


@pytest.mark.usefixtures("kernels_survive_a_fork")
def test_another_process_is_refused_and_takes_over_later(tmp_path):
    store = create(tmp_path / "m")

    def refused():
        try:
            open_store(tmp_path / "m")
        except se.LockedError as error:
            assert f"process {os.getppid()}" in str(error)  # noqa: PT017
        else:
            raise AssertionError

    assert status_of(fork(refused)) == 0
    store.close()
    assert status_of(fork(lambda: open_store(tmp_path / "m").close())) == 0


@pytest.mark.parametrize("mode", ["r+", "r"])
def test_a_child_without_threads_is_told_and_not_killed(tmp_path, monkeypatch, mode):
    """What OpenMP does to one: opening reads the journal, which takes kernels."""
    create(tmp_path / "m").close()

    def child():
        monkeypatch.setattr(_jit._Threads, "broken_by_fork", True)
        try:
            open_store(tmp_path / "m", mode)
        except se.SparseEmbedError as error:
            assert "forked" in str(error)  # noqa: PT017
        else:
            raise AssertionError

    assert status_of(fork(child)) == 0
    open_store(tmp_path / "m").close()


def test_a_lock_file_of_a_dead_process_is_no_obstacle(tmp_path):
    create(tmp_path / "m").close()
    for said in (
        json.dumps({"pid": 1, "started": "2001-01-01"}),
        "",
        "{",
        "[" * 5000,
        json.dumps([1]),
        "\0" * 100_000,
    ):
        (tmp_path / "m" / "lock").write_text(said)
        store = open_store(tmp_path / "m")
        with pytest.raises(se.LockedError):
            open_store(tmp_path / "m")
        store.close()
    (tmp_path / "m" / "lock").unlink()
    open_store(tmp_path / "m").close()


def test_unreadable_words_in_a_held_lock_file(tmp_path):
    store = create(tmp_path / "m")
    for said in ("", "[" * 5000, '{"pid": {"a": 1}}', "\xff"):
        (tmp_path / "m" / "lock").write_text(said, encoding="latin1")
        with pytest.raises(se.LockedError, match="already open"):
            open_store(tmp_path / "m")
    store.close()


def test_a_forked_child_can_do_nothing_to_the_store(tmp_path):
    twin = Twin()
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    step(store, 2)
    handle = store.commit(wait=False)

    def child():
        table = store.tables["users"]
        for call in (
            lambda: table.lookup([1]),
            lambda: table.update(np.ones((1, 4), np.float32), [1]),
            store.commit,
            store.rollback,
            store.checkpoint,
            lambda: store.arrays.__setitem__("a", 1),
            lambda: store.create_table("x", num_embeddings=2, embedding_dim=2),
        ):
            try:
                call()
            except se.StoreClosedError as error:
                assert "forked" in str(error)  # noqa: PT017
            else:
                raise AssertionError
        store.close()
        with store:
            pass
        try:
            open_store(tmp_path / "m")  # the parent is the writer still
        except se.LockedError:
            return
        raise AssertionError

    assert status_of(fork(child)) == 0
    assert handle.wait() == 2
    with pytest.raises(se.LockedError):
        open_store(tmp_path / "m")
    step(store, 3)
    store.commit()
    assert picture(store) == twin.picture(3)
    store.close()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)


def test_a_handle_in_a_forked_child_does_not_lie(tmp_path):
    store = create(tmp_path / "m")
    step(store, 1)
    handle = store.commit(wait=False)

    def child():
        if store.last_commit == 0:
            try:
                handle.wait()
            except se.SparseEmbedError:
                return
            raise AssertionError

    assert status_of(fork(child)) == 0
    assert handle.wait() == 1
    store.close()


@pytest.mark.usefixtures("kernels_survive_a_fork")
def test_a_child_may_use_its_copy_of_a_table_in_memory():
    store = create(None)
    step(store, 1)
    expected = picture(store)

    def child():
        assert picture(store) == expected
        step(store, 2)
        assert picture(store) != expected

    assert status_of(fork(child)) == 0
    assert picture(store) == expected
    store.close()


_PARENT = """
import os, sys, time
sys.path[:0] = {path!r}
from tests.crash.workload import create, step
store = create({where!r})
step(store, 1)
store.commit()
pid = os.fork()
if pid == 0:
    time.sleep(60)
    os._exit(0)
print(pid, flush=True)
time.sleep(60)
"""


def test_the_death_of_the_writer_frees_the_lock_though_its_child_lives(tmp_path):
    code = _PARENT.format(path=sys.path, where=str(tmp_path / "m"))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    try:
        with pytest.raises(se.LockedError, match=f"process {process.pid}"):
            open_store(tmp_path / "m")
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with open_store(tmp_path / "m") as store:
            assert store.last_commit == 1
            assert picture(store) == Twin().picture(1)
    finally:
        process.stdout.close()
        os.kill(child, signal.SIGKILL)


def test_readers_hold_what_they_stand_at(tmp_path):
    store = create(tmp_path / "m")
    readers = []
    for n in range(1, 5):
        step(store, n)
        store.commit()
        readers.append(open_store(tmp_path / "m", "r"))
    assert store.info()["readers"] == []  # of other processes
    for n, reader in enumerate(readers, 1):
        store.checkpoint()
        assert store.info()["folded_commit"] == n
        reader.close()
    store.checkpoint()
    assert store.info()["folded_commit"] == 4
    store.close()


@pytest.mark.usefixtures("kernels_survive_a_fork")
def test_a_reader_killed_does_not_hold_a_checkpoint(tmp_path):
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    ready, tell = os.pipe()

    def child():
        reader = open_store(tmp_path / "m", "r")
        os.write(tell, b"x")
        time.sleep(60)
        reader.close()

    pid = fork(child)
    os.read(ready, 1)
    step(store, 2)
    store.commit()
    store.checkpoint()
    assert store.info()["folded_commit"] == 1
    assert store.info()["readers"] == [pid]
    os.kill(pid, signal.SIGKILL)
    status_of(pid)
    store.checkpoint()
    assert store.info()["folded_commit"] == 2
    assert store.info()["readers"] == []
    os.close(ready)
    os.close(tell)
    store.close()
