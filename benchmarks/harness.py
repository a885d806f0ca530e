"""Race competitors: agree first, then time them turn by turn, keep every sample.

The machine drifts, so only figures of one run are compared: in each round every competitor runs
once, in an order that rotates.  Nothing is timed before all of them gave the expected result.
"""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

OURS = "sparse_embed"

# Between two competitors: worker threads of some run-times (GNU OpenMP's, for 6 ms and more) spin
# after their work.  They must neither take a core from the next competitor nor still be awake when
# their own turn comes again, where others have to wake theirs.
_PAUSE = 0.02
# Then a call that is not timed, where that is short: every one's own threads are awake, as in a
# training loop, whatever they do to be so.  On another batch, or rows would be in caches.
_SHORT = 0.25
_OTHER_BATCH = 2


class Disagreement(Exception):
    """A competitor's result is not the expected one: nothing is timed."""


@dataclass(frozen=True)
class Settings:
    """How much a suite shall do.

    Attributes:
        quick: small sizes and few rounds: the gates.
        rounds: of every race; None is what the suite finds enough.
        folder: on the disk to measure; None is the temporary folder.
        long: also what takes many minutes.
        only: a regular expression, searched in the names of cases; `durability` leaves others out.
        text: a corpus (.tsv.xz, text in the third column) for what needs real words.
        num_embeddings, embedding_dim, batch_size, bag_size, alpha: of the workloads of `lookup`,
            `update` and `train_step`; None is what the suite has.
    """

    quick: bool = False
    rounds: int | None = None
    folder: Path | None = None
    long: bool = False
    only: str | None = None
    text: Path | None = None
    num_embeddings: int | None = None
    embedding_dim: int | None = None
    batch_size: int | None = None
    bag_size: int | None = None
    alpha: float | None = None

    def wants(self, case: str) -> bool:
        """Shall a case of that name be run?"""
        return self.only is None or re.search(self.only, case) is not None

    def count(self, full: int, quick: int) -> int:
        """Rounds of a race."""
        return quick if self.quick else (self.rounds or full)


@dataclass
class Competitor:
    """`run(i)` does the timed work of round i; `check()` returns the result that must agree.

    `before(i)`, where given, is called before each run and not timed.
    """

    name: str
    run: Callable[[int], Any]
    check: Callable[[], Any] | None = None
    before: Callable[[int], Any] | None = None


@dataclass
class Case:
    """One race: samples in seconds by competitor.

    Attributes:
        absent: who is not there, and why.
        facts: anything else worth keeping.
        moved_bytes: what a run must at least read and write, where that says something.
        axis: (name of the axis, place on it) for cases that make a curve.
        ours: the competitor that the others are held against; None: nobody is.
    """

    name: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    moved_bytes: int | None = None
    axis: tuple[str, float] | None = None
    ours: str | None = OURS

    def median(self, name: str) -> float:
        return float(np.median(self.samples[name]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a tenth of a microsecond is kept."""
        samples = {name: [round(s, 7) for s in found] for name, found in self.samples.items()}
        return vars(self) | {"samples": samples}


def gate(competitors: Sequence[Competitor], expected: Any, atol: float, what: str) -> None:
    """Compare every competitor's `check()` with `expected`; raises Disagreement.

    atol is for competitors that add in another order; ours is held to bit equality by the tests.
    """
    wanted = np.asarray(expected, np.float64)
    for competitor in competitors:
        if competitor.check is None:
            continue
        found = np.asarray(competitor.check(), np.float64)
        if found.shape != wanted.shape:
            raise Disagreement(f"{what}: {competitor.name} is {found.shape}, not {wanted.shape}")
        worst = float(np.max(np.abs(found - wanted), initial=0.0))
        if not worst <= atol:
            raise Disagreement(f"{what}: {competitor.name} is off by {worst:g} (allowed {atol:g})")


def race(
    name: str,
    competitors: Sequence[Competitor],
    rounds: int,
    warmup: int = 2,
    on_round: Callable[[], None] | None = None,
    absent: dict[str, str] | None = None,
    moved_bytes: int | None = None,
    axis: tuple[str, float] | None = None,
) -> Case:
    """Time the competitors turn by turn."""
    case = Case(name, {competitor.name: [] for competitor in competitors}, dict(absent or {}))
    case.moved_bytes, case.axis = moved_bytes, axis
    short: set[str] = set()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for i in range(-warmup, rounds):
            turn = i % len(competitors)
            for competitor in [*competitors[turn:], *competitors[:turn]]:
                if competitor.before is not None:
                    competitor.before(i)
                time.sleep(_PAUSE)
                if competitor.name in short and competitor.before is None:
                    competitor.run(i + _OTHER_BATCH)
                begin = time.perf_counter()
                competitor.run(i)
                seconds = time.perf_counter() - begin
                if seconds < _SHORT:
                    short.add(competitor.name)
                if i >= 0:
                    case.samples[competitor.name].append(seconds)
            if on_round is not None:
                on_round()
    finally:
        if collecting:
            gc.enable()
    return case


def write(path: Path, data: dict[str, Any]) -> None:
    """Result files are one line a case, so that they can be read and compared as text."""
    head = {key: value for key, value in data.items() if key != "suites"}
    lines = [json.dumps(head)[:-1] + ', "suites": {']
    for at, (suite, cases) in enumerate(data["suites"].items()):
        lines.append(("," if at else "") + json.dumps(suite) + ": [")
        lines.append(",\n".join(json.dumps(case) for case in cases))
        lines.append("]")
    path.write_text("\n".join([*lines, "}}"]) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A result file.  Raises ValueError where it is none."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not {"suites", "environment"} <= set(data):
        raise ValueError(f"{path}: not a result file of `python -m benchmarks run --json`")
    return data
