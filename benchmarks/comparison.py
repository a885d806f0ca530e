"""Two result files held against one another: what changed beyond the noise.

A machine may be half as fast tomorrow, so the change of a competitor is divided by the drift: how
the others in the same race changed (ceilings and peers, whose code is the same).  Where ours ran
alone, there is no drift to divide by, and the change is what it is.  The band is the 95 % interval
of that ratio when both runs' samples are drawn anew (bootstrap, seeded).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.figures import markdown_table, time_text

SLOWER, FASTER, SAME = "slower", "faster", ""
_DRAWS = 1000


@dataclass(frozen=True)
class Row:
    """One competitor in one case: ratio new / old, less drift; its band; the verdict."""

    suite: str
    case: str
    who: str
    old: float
    new: float
    drift: float
    ratio: float
    low: float
    high: float
    verdict: str
    ours: bool


@dataclass(frozen=True)
class Comparison:
    rows: list[Row]
    remarks: list[str]


def compare(old: dict[str, Any], new: dict[str, Any], threshold: float = 0.1) -> Comparison:
    """All competitors that both files have in cases of the same name, so of the same workload.

    Raises ValueError where there is none.
    """
    rows: list[Row] = []
    remarks = [
        f"{key}: {old['environment'].get(key)} before, {new['environment'].get(key)} now"
        for key in ("cpu", "cores", "threads", "threading_layer", "huge_pages", "numba", "python")
        if old["environment"].get(key) != new["environment"].get(key)
    ]
    for suite, cases in new["suites"].items():
        before = {case["name"]: case for case in old["suites"].get(suite, [])}
        unknown = sum(case["name"] not in before for case in cases)
        if unknown and before:
            remarks.append(f"{suite}: {unknown} cases of other workloads, not compared")
        for case in cases:
            if case["name"] in before:
                rows += _case(suite, before[case["name"]], case, threshold)
    if not rows:
        raise ValueError("the two files have no case in common (a case is its workload)")
    return Comparison(rows, remarks)


def _case(suite: str, old: dict[str, Any], new: dict[str, Any], threshold: float) -> Iterable[Row]:
    rng = np.random.default_rng(0)
    both = [name for name in new["samples"] if old["samples"].get(name) and new["samples"][name]]
    medians = {
        name: (_bootstrap(old["samples"][name], rng), _bootstrap(new["samples"][name], rng))
        for name in both
    }
    ours = new.get("ours", "sparse_embed")
    for name in both:
        a, b = (float(np.median(case["samples"][name])) for case in (old, new))
        others = [other for other in both if other not in (name, ours)]
        drift, drifts = 1.0, np.ones(_DRAWS)
        if others:
            drift = float(np.exp(np.mean([np.log(_ratio(old, new, other)) for other in others])))
            logs = [np.log(medians[other][1] / medians[other][0]) for other in others]
            drifts = np.exp(np.mean(logs, axis=0))
        ratio = b / a / drift
        low, high = np.percentile(medians[name][1] / medians[name][0] / drifts, [2.5, 97.5])
        verdict = SAME
        if low > 1 and ratio > 1 + threshold:
            verdict = SLOWER
        elif high < 1 and ratio < 1 / (1 + threshold):
            verdict = FASTER
        yield Row(
            suite, new["name"], name, a, b, drift, ratio, float(low), float(high), verdict,
            ours is None or name == ours,
        )  # fmt: skip


def _ratio(old: dict[str, Any], new: dict[str, Any], name: str) -> float:
    return float(np.median(new["samples"][name]) / np.median(old["samples"][name]))


def _bootstrap(samples: list[float], rng: np.random.Generator) -> Any:
    """(draws,) medians of samples drawn with replacement."""
    found = np.array(samples)
    return np.median(found[rng.integers(0, len(found), (_DRAWS, len(found)))], axis=1)


def text(found: Comparison) -> str:
    head = ["suite", "case", "who", "old", "new", "drift", "new / old, less drift", ""]
    body = [
        [
            row.suite, row.case, row.who, time_text(row.old), time_text(row.new),
            f"{row.drift:.2f}", f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})", row.verdict,
        ]
        for row in found.rows
    ]  # fmt: skip
    changed = {v: sum(row.verdict == v for row in found.rows) for v in (SLOWER, FASTER)}
    return "\n".join(
        [
            *found.remarks,
            *markdown_table(head, body),
            "",
            f"{changed[SLOWER]} slower, {changed[FASTER]} faster, of {len(found.rows)}",
        ]
    )
