"""A commit that was not waited for."""

from __future__ import annotations

from sparse_embed.storage.store import StoreCore


class Commit:
    """Handle of `commit(wait=False)`.

    `number` is the commit's; `done` says whether its fate is known; `wait()` blocks until it is
    durable and raises its error.
    """

    def __init__(self, core: StoreCore, number: int) -> None:
        self._core = core
        self.number = number

    @property
    def done(self) -> bool:
        """Durable, or failed: `wait` tells which."""
        return self._core.flight_state(self.number) != "pending"

    def wait(self) -> int:
        """Block until the commit is on disk; returns its number.

        Raises:
            StoreError: it was not written.
        """
        self._core.wait_for(self.number)
        return self.number

    def __repr__(self) -> str:
        return f"Commit({self.number}, {self._core.flight_state(self.number)})"
