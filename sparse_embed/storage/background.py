"""A function in a thread of its own, whose start may be interrupted.

Ctrl-C can fall between the making of a thread and its start, or right after it; `Thread.join`
then raises, or waits for nobody.  Here whoever comes first decides, once: the thread, which then
runs, or the one who waits, and then it never does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs `work` once: in a thread (`start`) or here (`run`)."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self.in_thread = False
        self._name = name
        self._work = work
        self._here = False
        self._claim = threading.Lock()
        self._launched = False
        self._over = threading.Event()

    def run(self) -> None:
        """Do the work now."""
        self._here = True
        self._work()

    def start(self) -> None:
        """Let a thread do it."""
        self.in_thread = True
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._launched = True

    def _run(self) -> None:
        if self._claim.acquire(blocking=False):
            try:
                self._work()
            finally:
                self._over.set()

    @property
    def done(self) -> bool:
        """Over, or never to be."""
        if self._here:
            return True
        if not self._launched and self._claim.acquire(blocking=False):
            self._over.set()
        return self._over.is_set()

    def wait(self) -> None:
        """Block until `done`."""
        if not self.done:
            self._over.wait()
