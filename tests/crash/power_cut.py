"""Cut the power at random instants of recorded runs, and open what the disk may hold.

    python tests/crash/power_cut.py --cuts 500 --seed 1

A run trains two tables and an array through commits (waited for, written ahead, and not), spills,
checkpoints (asked for and in the background), rollbacks, returns to earlier commits, reopenings,
and deaths of the process at a random call.  Every image that disk.py makes of a cut must open at a
commit: the last one acknowledged before the cut, or one that was on its way then, bit for bit as a
twin in memory that was never cut.  It is trained on, and every third recovery is recorded and cut
again.

Prints what was really visited, and fails when that was too little.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import sparse_embed as se
from sparse_embed.storage import files, fold, journal
from tests.crash.disk import Event, Killed, Recording, RecordingCalls
from tests.crash.workload import (
    SHAPES,
    SMALL_MACHINE,
    add_table,
    open_store,
    picture,
    step,
    twin,
)

MIX = {  # what a run does, by share
    "step": 0.35,
    "commit": 0.4,
    "checkpoint": 0.05,
    "rollback": 0.03,
    "reopen": 0.05,
    "rewind": 0.04,
    "kill": 0.08,
}
Steps = tuple[int, ...]
Aim = Callable[[Event], bool]
MakeCalls = Callable[[Recording, Path], RecordingCalls]


@dataclass(frozen=True)
class State:
    """A commit as the driver knows it: its number, and the steps that lead to it."""

    commit: int
    tables: tuple[str, ...]
    steps: Steps


@dataclass
class Counts:
    """What was really visited."""

    runs: int = 0
    cuts: int = 0
    second_cuts: int = 0
    trained_on: int = 0
    commits: int = 0
    commits_not_waited: int = 0
    commits_written_ahead: int = 0
    parts_given_up: int = 0
    checkpoints: int = 0
    background_checkpoints: int = 0
    spilling_steps: int = 0
    reused_segment_files: int = 0
    rollbacks: int = 0
    rewinds: int = 0
    reopenings: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    before_creation: int = 0
    states: set[State] = field(default_factory=set)
    newer_than_acknowledged: int = 0
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        facts = dict(vars(self))
        facts["states"] = len(self.states)
        facts["kills"] = sum(self.kills.values())
        facts["kills_in"] = dict(self.kills)
        facts["failures"] = len(self.failures)
        return facts


class Pictures:
    """Pictures of states, from twins in memory."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, ...], Steps], str] = {}

    def of(self, state: State) -> str:
        key = (state.tables, state.steps)
        if key not in self._known:
            self._known[key] = picture(twin(state.steps, state.tables))
        return self._known[key]


@contextmanager
def small_machine() -> Iterator[None]:
    """Few resident slots, small segments and staging, checkpoints in the background early."""
    with ExitStack() as stack:
        for owner, attribute, value in SMALL_MACHINE:
            stack.enter_context(mock.patch.object(owner, attribute, value))
        stack.enter_context(mock.patch.object(journal, "SEGMENT_BYTES", 40_000))
        yield


@contextmanager
def counted_parts(counts: Counts) -> Iterator[None]:
    """Count the commits that were written ahead, and what was given up."""
    settle, abandon = journal.Journal.settle, journal.Journal._abandon

    def settled(self: Any, pending: Any) -> None:
        counts.commits_written_ahead += bool(pending.frame.parts)
        settle(self, pending)

    def abandoned(self: Any) -> None:
        counts.parts_given_up += len(self.parts)
        abandon(self)

    with (
        mock.patch.object(journal.Journal, "settle", settled),
        mock.patch.object(journal.Journal, "_abandon", abandoned),
    ):
        yield


@contextmanager
def counted_folds(counts: Counts) -> Iterator[None]:
    """Count the checkpoints that start in the background."""
    plain = fold.fold_in_background

    def counted(core: Any) -> None:
        before = core.running_fold
        plain(core)
        counts.background_checkpoints += core.running_fold is not before

    with mock.patch.object(fold, "fold_in_background", counted):
        yield


class Run:
    """One recorded life of a store."""

    def __init__(
        self,
        folder: Path,
        rng: np.random.Generator,
        counts: Counts,
        make: MakeCalls,
        mix: dict[str, float],
    ) -> None:
        self.path = folder / "m"
        self.path.mkdir()
        self.recording = Recording()
        self.rng = rng
        self.counts = counts
        self.mix = mix
        self.calls = make(self.recording, self.path)
        self.here = State(0, (), ())  # what memory holds; `commit` is the last acknowledged
        self.acknowledged = State(0, (), ())
        self.launched: list[State] = []
        self.next_step = 1
        self.store: se.Store | None = None

    def go(self, actions: int) -> Recording:
        with mock.patch.object(files, "CALLS", self.calls):
            self._create()
            for _ in range(actions):
                self._act()
            self._close(bool(self.rng.integers(0, 2)))
        return self.recording

    def _create(self) -> None:
        self.store = se.Store.create(self.path)
        self._acknowledge(State(0, (), ()))
        for name in SHAPES:
            new = State(0, tuple(sorted((*self.acknowledged.tables, name))), ())
            self._launch(new)
            add_table(self.store, name)
            self._acknowledge(new)
            self.here = new

    def _launch(self, state: State) -> None:
        self.launched.append(state)
        self.recording.mark(("launched", state))

    def _acknowledge(self, state: State) -> None:
        self.acknowledged = state
        self.launched = []
        self.recording.mark(("acknowledged", state))

    def _notice(self) -> None:
        """A commit that was not waited for may be durable by now."""
        assert self.store is not None
        if self.launched and self.store.last_commit == self.launched[-1].commit:
            self._acknowledge(self.launched[-1])

    def _act(self) -> None:
        share = np.array(list(self.mix.values()))
        what = str(self.rng.choice(list(self.mix), p=share / share.sum()))
        if what == "kill":
            what = str(self.rng.choice(["step", "commit", "commit", "checkpoint", "reopen"]))
            self.calls.kill_in = int(self.rng.integers(0, 8 if what == "commit" else 25))
        try:
            getattr(self, "_" + what)()
            self._notice()
        except Killed:
            self._die(what)
        except se.SparseEmbedError:
            if not self.calls.dead:  # a thread died, and its last words came late
                raise
            self._die(what)
        if self.calls.dead:
            self._die(what)
        self.calls.kill_in = -1

    def _die(self, what: str) -> None:
        """The process is gone: descriptors close, what the kernel holds stays."""
        self.counts.kills[what] += 1
        if self.store is not None and self.store._core.closed is None:
            self.store._core.release()
        self.store = None
        self.calls.dead = False
        self.calls.kill_in = -1
        self._open()

    def _open(self, at: State | None = None) -> None:
        self.store = open_store(self.path, at_commit=None if at is None else at.commit)
        if at is not None:
            self.here = at
            return
        found = self._find(self.store)
        self._acknowledge(found)
        self.here = found

    def _find(self, store: se.Store) -> State:
        seen = picture(store)
        for state in (self.acknowledged, *self.launched):
            if state.commit == store.last_commit and pictures.of(state) == seen:
                return state
        raise AssertionError(f"reopened at commit {store.last_commit}: none that was expected")

    def _step(self) -> None:
        assert self.store is not None
        step(self.store, self.next_step)
        self.here = State(self.here.commit, self.here.tables, (*self.here.steps, self.next_step))
        self.next_step += 1
        spilled = self.store.info()["tables"]["users"]["spilled_bytes"]
        self.counts.spilling_steps += spilled > 0

    def _commit(self) -> None:
        assert self.store is not None
        if self.rng.random() < 0.5:
            self._step()
        wait = bool(self.rng.random() < 0.6)
        if self.launched:  # its outcome comes first
            self.store._core.finish_flight(wait=True)
            self._notice()
        new = State(self.here.commit + 1, self.here.tables, self.here.steps)
        self._launch(new)
        number = self.store.commit(wait)
        self.here = new
        if wait:
            assert number == new.commit
            self._acknowledge(new)
        self.counts.commits += 1
        self.counts.commits_not_waited += not wait

    def _checkpoint(self) -> None:
        assert self.store is not None
        self.store.checkpoint()
        self.counts.checkpoints += 1

    def _rollback(self) -> None:
        assert self.store is not None
        self.store.rollback()
        self._notice()
        # After a return to an earlier commit that is where it stands, else at the last one.
        at = self.store.last_commit
        known = [s for s in (self.acknowledged, self.rewound) if s is not None and s.commit == at]
        seen = picture(self.store)
        self.here = next(s for s in known if pictures.of(s) == seen)
        self.counts.rollbacks += 1

    rewound: State | None = None

    def _close(self, checkpoint: bool) -> None:
        assert self.store is not None
        self.store.close(checkpoint=checkpoint)
        self.store = None

    def _reopen(self) -> None:
        self._close(bool(self.rng.random() < 0.4))
        if self.launched:  # close waited for it
            self._acknowledge(self.launched[-1])
        self._open()
        self.counts.reopenings += 1

    def _rewind(self) -> None:
        """Open an earlier commit; the later ones go with the next commit, not before."""
        assert self.store is not None
        self.store._core.finish_flight(wait=True)
        self._notice()
        core = self.store._core
        kept = {frame.commit for frame in core.frames} & set(self.history)
        kept = {n for n in kept if n >= core.manifest.folding}
        self._close(False)
        if not kept or self.acknowledged.commit not in self.history:
            self._open()
            return
        at = self.history[int(self.rng.choice(sorted(kept)))]
        self._open(at)
        self.rewound = at
        self.counts.rewinds += 1

    @property
    def history(self) -> dict[int, State]:
        """Commits of the present line, by number."""
        line: dict[int, State] = {}
        for event in self.recording.events:
            if event.kind == "mark" and event.said[0] == "acknowledged":
                state = event.said[1]
                line = {n: s for n, s in line.items() if n < state.commit}
                line[state.commit] = state
        return line


pictures = Pictures()


def allowed(recording: Recording, cut: int) -> list[State]:
    """What a cut may leave: the last acknowledged commit, and those launched since."""
    states: list[State] = []
    for event in recording.events[:cut]:
        if event.kind == "mark":
            what, state = event.said
            if what == "acknowledged":
                states = [state]
            else:
                states.append(state)
    return states


def check(
    folder: Path, states: list[State], counts: Counts, rng: np.random.Generator
) -> State | None:
    """Open an image and compare; returns the state found, None before creation."""
    try:
        store = open_store(folder)
    except se.NotAStoreError:
        if states:
            raise
        counts.before_creation += 1
        return None
    try:
        seen = picture(store)
        number = store.last_commit
        found = [s for s in states or [State(0, (), ())] if s.commit == number]
        found = [s for s in found if pictures.of(s) == seen]
        if not found:
            raise AssertionError(
                f"opened at commit {number}, expected one of {[s.commit for s in states]}"
                + (
                    "; the number fits, the contents do not"
                    if number in {s.commit for s in states}
                    else ""
                )
            )
        store.verify()
        counts.states.add(found[0])
        counts.newer_than_acknowledged += bool(states) and found[0] != states[0]
        if rng.random() < 0.3 and found[0].tables:
            _train_on(store, found[0], folder, rng)
            counts.trained_on += 1
        return found[0]
    finally:
        store.close(checkpoint=False)


def _train_on(store: se.Store, found: State, folder: Path, rng: np.random.Generator) -> None:
    new = State(found.commit + 1, found.tables, (*found.steps, 1000))
    step(store, 1000)
    store.commit()
    store.close(checkpoint=bool(rng.integers(0, 2)))
    with open_store(folder) as again:
        if again.last_commit != new.commit or picture(again) != pictures.of(new):
            raise AssertionError(f"commit {new.commit} after the recovery reads wrongly")


def recover_recorded(
    folder: Path,
    found: State,
    rng: np.random.Generator,
    recording: Recording,
    make: MakeCalls = RecordingCalls,
) -> Recording:
    """Record an opening, a commit and perhaps a checkpoint on an image; all of it can be cut."""
    recording.mark(("acknowledged", found))
    with mock.patch.object(files, "CALLS", make(recording, folder)):
        store = open_store(folder)
        if found.tables:
            new = State(found.commit + 1, found.tables, (*found.steps, 2000))
            step(store, 2000)
            recording.mark(("launched", new))
            store.commit()
            recording.mark(("acknowledged", new))
        store.close(checkpoint=bool(rng.integers(0, 2)))
    return recording


def cut_at(
    recording: Recording,
    cut: int,
    folder: Path,
    counts: Counts,
    rng: np.random.Generator,
    twice: bool,
) -> None:
    """One image, opened and compared; with `twice` its recovery is cut as well."""
    image = folder / "image"
    image.mkdir()
    recording.image(cut, image, rng)
    states = allowed(recording, cut)
    keep = folder / "keep"
    if twice:
        shutil.copytree(image, keep)
    try:
        found = check(image, states, counts, rng)
        if twice and found is not None:
            base = {p.name: p.read_bytes() for p in keep.iterdir() if p.name != "lock"}
            second = recover_recorded(keep, found, rng, Recording(base))
            at = int(rng.integers(1, len(second.events) + 1))
            again = folder / "again"
            again.mkdir()
            second.image(at, again, rng)
            check(again, allowed(second, at), counts, rng)
            counts.second_cuts += 1
    except Exception as error:
        counts.failures.append(
            f"cut {cut} of {len(recording.events)}: {type(error).__name__}: {error}"
        )
    finally:
        for name in ("image", "keep", "again"):
            shutil.rmtree(folder / name, ignore_errors=True)


def _cut(recording: Recording, aim: Aim | None, rng: np.random.Generator) -> int:
    """Anywhere; or right before or after a call other than a write (rare kinds count as much as
    others); or between the launch of a commit and its acknowledgement; or only where `aim` says."""
    events = recording.events
    at = [i for i, event in enumerate(events) if i > 0 and aim is not None and aim(event)]
    if at:
        return int(rng.choice(at)) + int(rng.integers(0, 2))
    how = rng.integers(0, 3)
    if how == 0:
        return int(rng.integers(1, len(events) + 1))
    if how == 1:
        kinds: dict[str, list[int]] = {}
        for i, event in enumerate(events):
            if event.kind not in ("write", "mark") and i > 0:
                kinds.setdefault(event.kind, []).append(i)
        return int(rng.choice(kinds[str(rng.choice(sorted(kinds)))])) + int(rng.integers(0, 2))
    marks = [i for i, event in enumerate(events) if event.kind == "mark"]
    which = int(rng.integers(0, len(marks)))
    end = marks[which + 1] if which + 1 < len(marks) else len(events)
    return int(rng.integers(marks[which], end)) + 1


def explore(
    cuts: int,
    seed: int,
    make: MakeCalls = RecordingCalls,
    cuts_a_run: int = 25,
    actions: int = 40,
    folder: str | None = None,
    aim: Aim | None = None,
    mix: dict[str, float] | None = None,
) -> Counts:
    """Recorded runs, each cut `cuts_a_run` times."""
    rng = np.random.default_rng(seed)
    counts = Counts()
    with small_machine(), counted_folds(counts), counted_parts(counts):
        while counts.cuts < cuts:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                work = Path(name)
                budget = 1 << 40 if rng.random() < 0.5 else 0  # with background checkpoints?
                with mock.patch.object(journal.Journal, "used", property(lambda self, b=budget: b)):
                    run = Run(work, rng, counts, make, MIX | (mix or {}))
                    try:
                        recording = run.go(actions)
                    except Exception as error:  # a death of the process was enough
                        counts.failures.append(f"run {counts.runs + 1}: {error!r}")
                        return counts
                counts.runs += 1
                counts.reused_segment_files += sum(map(reuses, recording.events))
                for _ in range(min(cuts_a_run, cuts - counts.cuts)):
                    cut = _cut(recording, aim, rng)
                    counts.cuts += 1
                    cut_at(recording, cut, work, counts, rng, twice=counts.cuts % 3 == 0)
    return counts


def reuses(event: Event) -> bool:
    """A new segment takes the file of a folded one."""
    return event.kind == "rename" and event.name.startswith("spare-")


def visited_enough(counts: Counts, cuts: int) -> bool:
    """Without this a harness whose runs die early would find no failures either."""
    return (
        counts.commits > cuts // 5
        and counts.commits_written_ahead > 0
        and counts.parts_given_up > 0
        and counts.checkpoints > 0
        and counts.background_checkpoints > 0
        and counts.reused_segment_files > 0
        and counts.spilling_steps > 0
        and len(counts.states) > cuts // 10
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where the stores live (default: the temporary folder)")
    asked = parser.parse_args()
    began = time.monotonic()
    counts = explore(asked.cuts, asked.seed, folder=asked.folder)
    facts = counts.to_dict() | {"seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(facts, indent=1))
    for failure in counts.failures[:10]:
        print(failure)
    return 0 if visited_enough(counts, asked.cuts) and not counts.failures else 1


if __name__ == "__main__":
    raise SystemExit(main())
