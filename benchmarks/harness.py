"""Race competitors: agree first, then time them turn by turn, keep every sample.

The machine drifts, so only figures of one run are compared: in each round every competitor runs
once, in an order that rotates.  Nothing is timed before all of them gave the expected result.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class Disagreement(Exception):
    """A competitor's result is not the expected one: nothing is timed."""


@dataclass
class Competitor:
    """`run(i)` does the timed work of round i.  `check()` returns the result that must agree."""

    name: str
    run: Callable[[int], Any]
    check: Callable[[], Any] | None = None


@dataclass
class Case:
    """One race: samples in seconds by competitor."""

    name: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return float(np.median(self.samples[name]))

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


def gate(competitors: Sequence[Competitor], expected: Any, atol: float, what: str) -> None:
    """Compare every competitor's `check()` with `expected`; raises Disagreement.

    atol is for competitors that add in another order; ours is held to bit equality by the tests.
    """
    for competitor in competitors:
        if competitor.check is None:
            continue
        found = np.asarray(competitor.check(), np.float64)
        wanted = np.asarray(expected, np.float64)
        worst = float(np.max(np.abs(found - wanted), initial=0.0))
        if found.shape != wanted.shape or not worst <= atol:
            raise Disagreement(f"{what}: {competitor.name} is off by {worst:g} (allowed {atol:g})")


def race(
    name: str,
    competitors: Sequence[Competitor],
    rounds: int,
    warmup: int = 2,
    on_round: Callable[[], None] | None = None,
) -> Case:
    """Time the competitors turn by turn."""
    case = Case(name, {competitor.name: [] for competitor in competitors})
    for i in range(-warmup, rounds):
        turn = i % len(competitors)
        for competitor in [*competitors[turn:], *competitors[:turn]]:
            begin = time.perf_counter()
            competitor.run(i)
            seconds = time.perf_counter() - begin
            if i >= 0:
                case.samples[competitor.name].append(seconds)
        if on_round is not None:
            on_round()
    return case


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    import numba

    import sparse_embed
    from sparse_embed.kernels._jit import get_num_threads, threading_layer

    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": get_num_threads(),
        "threading_layer": threading_layer(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "sparse_embed": sparse_embed.__version__,
        "commit": revision or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def write(path: Path, command: str, suites: dict[str, list[Case]]) -> None:
    data = {
        "command": command,
        "environment": environment(),
        "suites": {name: [case.to_dict() for case in cases] for name, cases in suites.items()},
    }
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
