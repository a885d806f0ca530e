"""A thread whose start was interrupted runs, or does not; nobody waits for ever."""

from __future__ import annotations

import threading

import pytest

from sparse_embed.storage.background import Background


def test_a_thread_that_starts():
    done = []
    work = Background("test", lambda: done.append(threading.current_thread().name))
    work.start()
    work.wait()
    assert work.done
    assert done == ["test"]


def test_here():
    done = []
    work = Background("test", lambda: done.append(1))
    work.run()
    assert work.done
    assert done == [1]


def test_an_error_here_ends_the_wait():
    def fail():
        raise KeyboardInterrupt

    work = Background("test", fail)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    work.wait()
    assert work.done


def test_never_started():
    done = []
    work = Background("test", lambda: done.append(1))
    work.wait()
    assert work.done
    work._run()  # a thread that comes too late
    assert done == []


@pytest.mark.parametrize("before", [True, False])
def test_interrupted_while_starting(monkeypatch, before):
    plain, done = threading.Thread.start, []

    def start(self):
        if not before:
            plain(self)
            self.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    work = Background("test", lambda: done.append(1))
    with pytest.raises(KeyboardInterrupt):
        work.start()
    monkeypatch.undo()
    work.wait()
    assert work.done
    assert done == ([] if before else [1])
