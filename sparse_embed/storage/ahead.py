"""Writing ahead: rows of the next commit go to the journal before it is asked for.

Where commits are waited for, the disk would idle while training runs, and training while the disk
writes.  So rows that are changed by then are written between two steps, as parts of the commit that
is expected (frame.py); it has only what was changed after that to write, and one sync for all.

When: after a third of the steps that there were before the last commit, or later, if the disk will
be done with all rows in what is left; then once more, for what changed in the first three fifths
of that, if the disk is idle.  Not where the last commit was small, nor where it was not waited for:
the disk is busy there.

What: rows that changed since the last commit, but for those that its own frame had.  These change
often, and whatever changes after it was written is written again.  Counted with 4096 x 32
Zipf(1.05) ids and two parts a commit: 6 % more bytes with one every 10 steps and 10 % every 100; of
all rows it would be 21 and 33 %.

A part costs the step before which it is made what `commit(wait=False)` would: gathering its rows.
A commit that is waited for does that while the disk writes, so it pays only where the disk takes
twice as long; both are measured all the time.  Measured with writes held back to a rate, a commit
every 100 steps, seconds with parts of those without: 0.87 to 0.91 at 0.5 and 1 GB/s, 0.96 to 1 at
1.5, 0.89 to 1.03 at 2.  On a disk of 4 GB/s parts took a quarter longer: there they are rarely
tried.
Whatever comes in between (rollback, checkpoint, a failed write, a full disk) gives the parts up,
and their rows are as they were: changed since the last commit.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sparse_embed.storage.budget import process_budget
from sparse_embed.storage.frame import plan
from sparse_embed.storage.journal import PendingCommit
from sparse_embed.storage.rows import TakenRows

if TYPE_CHECKING:  # the store calls this module; only its type is needed here
    from sparse_embed.storage.store import StoreCore

log = logging.getLogger("sparse_embed")
WORTH = 32 << 20  # bytes of a commit, or of what is left of one: less is as well written with it
_MOST = 2  # parts of a commit
_FIRST, _NEXT = 2 / 3, 2 / 5  # of the steps that were left before, when a part is due
_GAIN = 2.0  # times as long as gathering them must the disk take for the bytes of a part
_COST = 0.2e-9  # seconds a byte that gathering takes, as long as nobody knows
_FORGET = 0.98  # what is known of it loses weight where it was too much, to be tried again
_SHARE, _LITTLE = 4, 1 << 20  # of the memory for rows a part may take so much; little ones are free
_STAGING = 64 << 20  # what is written by a thread may stage at least this much


def _room(core: StoreCore) -> int:
    """Bytes that a part may have: it is staged beside the rows, whose memory is bounded."""
    budgets = {id(table.rows.budget): table.rows.budget.total for table in core.tables.values()}
    return max(_LITTLE, sum(budgets.values()) // _SHARE)


def staging_limit() -> int:
    """Bytes that may be staged for a thread to write."""
    return max(_STAGING, process_budget().total // 3)


@dataclass
class Part:
    pending: PendingCommit
    taken: dict[str, TakenRows]


@dataclass
class Window:
    """From one commit to the next, and what was written ahead of that."""

    expected: int = 0  # steps that it will have; 0: write nothing ahead
    cost: float = _COST  # seconds a byte that a part takes before it is on its way to disk
    nbytes: int = 0  # of the last commit; the next one may be as large
    seconds_to_write: float = 0.0  # all of it, as the last one
    steps: int = 0  # so far
    left: float = 0.0  # of the steps expected: a part is due when no more of them are left
    began: float = field(default_factory=time.perf_counter)
    parts: list[Part] = field(default_factory=list)
    gathered: tuple[float, int] = (0.0, 0)  # seconds, bytes: all parts that had their memory

    @property
    def cost_now(self) -> float:
        """`cost`, with what this window says of it."""
        seconds, size = self.gathered
        return seconds / size if size else self.cost


def next_window(core: StoreCore, pending: PendingCommit, waited: bool) -> Window:
    """The one behind a commit that is about to be written, or was."""
    last, size = core.window, pending.frame.nbytes
    on_host = all(table.rows.memory is None for table in core.tables.values())
    if not (waited and on_host and size >= WORTH and pending.error is None):
        return Window(cost=last.cost_now)
    pieces = [*(part.pending for part in last.parts), pending]
    largest = max(pieces, key=lambda piece: piece.frame.frame_bytes)
    a_byte = largest.seconds / largest.frame.frame_bytes
    cost = last.cost_now
    if a_byte < _GAIN * cost:
        return Window(cost=_FORGET * cost)
    return Window(last.steps, cost, size, size * a_byte, left=_FIRST * last.steps)


def before_step(core: StoreCore) -> None:
    """Write a part if one is due."""
    window = core.window
    if window.expected and _due(window):
        _write(core, window)
    window.steps += 1


def _due(window: Window) -> bool:
    if len(window.parts) >= _MOST or not window.steps:
        return False
    left = window.expected - window.steps
    if left > window.left:
        return False
    if window.parts:
        return window.parts[-1].pending.done
    a_step = (time.perf_counter() - window.began) / window.steps
    return left * a_step <= window.seconds_to_write or left <= 1


def _write(core: StoreCore, window: Window) -> None:
    journal = core.journal
    assert journal is not None
    began, memory = time.perf_counter(), journal.staging_bytes
    join(core)
    if not window.expected:  # they had to be given up
        return
    taken = {name: table.rows.take_ahead() for name, table in core.tables.items()}
    taken = {name: its for name, its in taken.items() if its.rows.size}
    sizes = {}
    for name, its in taken.items():
        table = core.tables[name]
        sizes[name] = (table.step, table.lr, its.rows.size, table.rows.layout.record_bytes)
    meta, encoded, frame_bytes = plan(sizes, {}, {})
    if not WORTH <= frame_bytes <= _room(core):
        window.expected = 0
        return

    def fill(writer: Any) -> None:
        for name, its in taken.items():
            core.tables[name].rows.fill(writer, its)

    try:
        room = max(window.nbytes, frame_bytes)
        pending = journal.append(meta, encoded, frame_bytes, fill, False, staging_limit(), room)
    except (OSError, MemoryError) as error:
        log.info("nothing is written ahead of the next commit: %s", error)
        _give_up_for_good(core)
        return
    # Interrupted from here on, memory and flags may disagree: only rollback helps then.
    core.failed = "writing ahead of a commit was interrupted"
    for name, its in taken.items():
        core.tables[name].rows.mark_written_ahead(its)
    window.parts.append(Part(pending, taken))
    window.left = _NEXT * (window.expected - window.steps)
    if memory == journal.staging_bytes:  # memory had anew takes longer, once
        seconds, size = window.gathered
        window.gathered = (seconds + time.perf_counter() - began, size + frame_bytes)
    core.failed = None


def _sound(core: StoreCore) -> bool:
    """The journal has these parts and no others, and those that are written are whole."""
    parts = [part.pending for part in core.window.parts]
    known = core.journal.parts if core.journal is not None else []
    same = len(parts) == len(known) and all(a is b for a, b in zip(parts, known, strict=True))
    return same and all(part.error is None for part in parts if part.done)


def look(core: StoreCore) -> None:
    """If something went wrong with what is written ahead, give it up."""
    if not _sound(core):
        _give_up_for_good(core)


def join(core: StoreCore) -> tuple[Part, ...]:
    """The parts of the commit that is about to be written: all of them written, or none."""
    if core.journal is not None:
        core.journal.abandon_unowned()
    look(core)
    return tuple(core.window.parts)


def give_up(core: StoreCore) -> None:
    """Nothing is written ahead: rows of parts are changed since the last commit, as they were.

    May be repeated after an interrupt.
    """
    if core.journal is not None:
        core.journal.abandon_parts()
    if core.window.parts:
        for table in core.tables.values():
            table.rows.settle_failed()
    core.window.parts = []


def _give_up_for_good(core: StoreCore) -> None:
    """As `give_up`, and try nothing before the next commit."""
    core.window.expected = 0
    give_up(core)


def begin_again(core: StoreCore) -> None:
    """As `give_up`, and memory is as it was behind the last commit."""
    give_up(core)
    window = core.window
    core.window = replace(window, steps=0, left=_FIRST * window.expected, began=time.perf_counter())
