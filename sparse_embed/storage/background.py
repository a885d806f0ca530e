"""A function in a thread of its own, whose start and end may be interrupted.

Ctrl-C can fall between the making of a thread and its start, or right after it; `Thread.join`
then raises, or waits for nobody.  Here whoever comes first decides, once: the thread, which then
runs, or the one who waits, and then it never does.

Nor can `threading.Event` tell of the end: its methods take a lock in Python code, and an interrupt
in there leaves it taken for ever (2 of 50 runs of tests/crash/interrupts.py hung).  Here two
attributes decide, each set in one step; a lock only wakes who waits.  `threading.Thread.start`
waits for such an Event, too: an interrupt in there came out as a RuntimeError (once in some 12,000
rounds).  Hence the plain thread.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Literal

_LOOK = 0.05  # seconds between two looks of one whose wake-up call an interrupt swallowed


class Background:
    """Runs `work` once: in a thread (`start`) or here (`run`)."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.in_thread = False
        self._work = work
        self._here = False
        self._launched = False
        self._claim: dict[str, Literal["thread", "waiter"]] = {}
        self._over = False
        self._call = threading.Lock()  # released when it is over
        self._call.acquire()

    def run(self) -> None:
        """Do the work now."""
        self._here = True
        self._work()

    def start(self) -> None:
        """Let a thread do it."""
        self.in_thread = True
        _thread.start_new_thread(self._run, ())
        self._launched = True

    def _run(self) -> None:
        if self._claim.setdefault("by", "thread") == "thread":
            try:
                self._work()
            finally:
                self._over = True
                self._call.release()

    @property
    def done(self) -> bool:
        """Over, or never to be."""
        if self._here:
            return True
        if not self._launched and self._claim.setdefault("by", "waiter") == "waiter":
            return True
        return self._over

    def wait(self) -> None:
        """Block until `done`."""
        while not self.done:
            self._call.acquire(timeout=_LOOK)
