"""A thread whose start was interrupted runs, or does not; nobody waits for ever."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from sparse_embed.storage.background import Background


def test_a_thread_that_starts():
    done = []
    work = Background(lambda: done.append(threading.get_ident()))
    work.start()
    work.wait()
    assert work.done
    assert done not in ([], [threading.get_ident()])


def test_here():
    done = []
    work = Background(lambda: done.append(1))
    work.run()
    assert work.done
    assert done == [1]


def test_an_error_here_ends_the_wait():
    def fail():
        raise KeyboardInterrupt

    work = Background(fail)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    work.wait()
    assert work.done


def test_never_started():
    done = []
    work = Background(lambda: done.append(1))
    work.wait()
    assert work.done
    work._run()  # a thread that comes too late
    assert done == []


@pytest.mark.parametrize("before", [True, False])
def test_interrupted_while_starting(monkeypatch, before):
    done, over = [], threading.Event()

    def start(function, arguments):
        if not before:
            threading.Thread(target=function, args=arguments).start()
            over.wait()
        raise KeyboardInterrupt

    def work_():
        done.append(1)
        over.set()

    monkeypatch.setattr(_thread, "start_new_thread", start)
    work = Background(work_)
    with pytest.raises(KeyboardInterrupt):
        work.start()
    monkeypatch.undo()
    work.wait()
    assert work.done
    assert done == ([] if before else [1])


def _interrupt_at(instruction: int, call: Callable[[], object]) -> bool:
    """Call it, with Ctrl-C before its n-th instruction; did it come so far?"""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == instruction:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_interrupted_anywhere_while_starting():
    """By KeyboardInterrupt and nothing else, and it runs or it does not."""
    for instruction in range(1, 100):
        done = []
        work = Background(lambda done=done: done.append(1))
        interrupted = _interrupt_at(instruction, work.start)
        work.wait()
        assert work.done
        assert done in ([], [1])
        if not interrupted:
            assert done == [1]
            break
    assert not interrupted
    assert instruction > 5


def test_interrupted_anywhere_while_waiting():
    """What an interrupt leaves locked, the thread or the next wait would wait for without end."""
    for instruction in range(1, 120):
        gate = threading.Event()
        work = Background(lambda gate=gate: gate.wait())
        work.start()
        assert _interrupt_at(instruction, work.wait)
        gate.set()
        work.wait()
        assert work.done


def test_interrupted_anywhere_while_giving_up():
    done, instruction = [], 0
    interrupted = True
    while interrupted:
        instruction += 1
        work = Background(lambda: done.append(1))
        interrupted = _interrupt_at(instruction, work.wait)
        work.wait()
        assert work.done
    assert instruction > 10
    assert done == []
