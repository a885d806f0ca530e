"""In which order streams work: as their calls were made, whoever made them, on whatever stream."""

from __future__ import annotations

import threading
from typing import Any

_MOST = 64  # streams that are remembered


class Order:
    """The streams of a GPU, and which has waited for which.

    Where somebody's work ends its stream is marked, for the stream may be gone later.  The default
    stream (0) is always there: it is waited for as it stands.
    """

    def __init__(self, card: Any) -> None:
        self._card = card
        self._lock = threading.Lock()
        self._time = 0  # counts ends
        self._ends: dict[int, tuple[Any, int]] = {}  # of a stream: its mark, and when
        self._seen: dict[int, int] = {}  # of a stream: the ends until then it has waited for
        self._uses = 0  # of the default stream
        self._used: dict[int, int] = {}  # of a stream: those of them it has waited for

    def follow(self, stream: int) -> None:
        """What this stream is asked next comes after all that others were asked before."""
        if stream == 0:
            self._uses += 1
            if self._seen.get(0) == self._time:
                return
        with self._lock:
            seen, time = self._seen.get(stream, -1), self._time
            for other, (mark, when) in self._ends.items():
                # Its own too: this may be another stream of the same name.
                if when > seen or (other == stream != 0):
                    mark.hold(stream)
            if stream != 0 and self._used.get(stream) != self._uses:
                self._used[stream] = self._uses
                self._card.after(stream, 0)
            self._seen[stream] = time

    def end(self, stream: int) -> None:
        """The work on this stream, which is somebody's, is done so far."""
        from sparse_embed.kernels.cuda.streams import Mark

        with self._lock:
            mark = self._ends.pop(stream)[0] if stream in self._ends else Mark()
            mark.record(stream)
            self._time += 1
            self._ends[stream] = mark, self._time  # the newest last
            if self._seen.get(stream) == self._time - 1:
                self._seen[stream] = self._time
            if len(self._ends) > _MOST:
                oldest = next(iter(self._ends))
                self._ends[oldest][0].synchronize()
                for known in (self._ends, self._seen, self._used):
                    known.pop(oldest, None)


__all__ = ["Order"]
