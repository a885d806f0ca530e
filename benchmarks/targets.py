"""What was set as a goal, with what this run measured beside it.

Each goal names cases by suite and a part of the name, two competitors, and the ratio wanted:
theirs / ours at least so much, or ours / theirs at most so much.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.figures import ratio, ratio_text, time_text

HEAD = ["goal", "case", "theirs", "ours", "ratio (quartiles of pairs)", "wanted", ""]


@dataclass(frozen=True)
class Goal:
    """`wanted` > 0: theirs / ours at least that; < 0: ours / theirs at most its negative."""

    label: str
    suite: str
    case: str  # regular expression, searched in the case's name
    theirs: str  # regular expression, of the competitor's name
    wanted: float
    ours: str = "sparse_embed"


_ZIPF, _UNIFORM = r"32, zipf\(1\.05\)$", r"32, uniform$"
_BASE = r"^weights only: .*x 64, 4096 bags x "

GOALS = (
    Goal("lookup, weights only", "lookup", "^weights only: ", "^(C|Numba): ", 0.95),
    Goal("lookup, weights only", "lookup", "^weights only, ", "^(C|Numba): ", 0.95),
    Goal("lookup never slower than torch", "lookup", "^weights only", "^torch$", 1.0),
    Goal("lookup never slower than FBGEMM", "lookup", "^weights only", "^FBGEMM$", 1.0),
    Goal("lookup from training records", "lookup", "^training records: ", "^(C|Numba): ", 0.95),
    Goal("step, Adam, Zipf", "train_step", "^lazy_adam: .*" + _ZIPF, "^torch$", 12),
    Goal("step, Adam, uniform", "train_step", "^lazy_adam: .*" + _UNIFORM, "^torch$", 10),
    Goal("step, Adam, against its floor", "train_step", "^lazy_adam: ", ": floor$", -1.35),
    Goal("step, row-wise Adagrad", "train_step", "^row_wise_adagrad: ", "^FBGEMM$", 2),
    Goal("step, SGD", "train_step", "^sgd: ", "^FBGEMM$", 3),
    Goal("step, Adagrad", "train_step", "^adagrad: ", "^FBGEMM$", 5),
    Goal("26 tables, row-wise Adagrad", "multi_table", r"^row_wise.*x 1, ", "^FBGEMM$", 2),
    Goal("26 tables, Adam", "multi_table", r"^lazy_adam.*x 1, ", "^torch$", 8),
    Goal("file-backed, fits the cache", "storage", "^warm", "^in memory$", -1.10, "in a file"),
    Goal("larger than cache, of the disk's rate", "storage", "^larger", "^reads of the disk$", 0.7),
    Goal(
        "16-bit lookup, uniform",
        "dtypes",
        "^lookup.*uniform",
        "^float32$",
        1.6,
        "(bfloat16|float16)",
    ),
    Goal("int8 lookup, uniform", "dtypes", "^lookup.*uniform", "^float32$", 1.6, "int8"),
    Goal("Arrow strings", "keys", "^Arrow string to", "hash loop$", 8),
    Goal("list[str]", "keys", r"^list\[str\] to", r"hash loop$", 1.8),
    Goal("strings to pooled vectors", "keys", "^strings to pooled", "^thinc with", 4),
    Goal("out-of-vocabulary vectors", "keys", "out-of-vocabulary", "^fastText", 10),
    Goal("BPR, equal quality", "recommend", "equal quality", "^implicit$", 2),
    Goal("BPR, speed at that quality", "recommend", "speed at that quality", "^implicit$", 2),
    Goal("BPR, speed at that quality", "recommend", "speed at that quality", "^LightFM$", 5),
    Goal("BPR, equal epochs", "recommend", "equal epochs", "^implicit$", 2),
    Goal("word vectors, words a second", "text", "^skip-gram", "^fastText$", 0.8),
    Goal("classifier, time of a fit", "text", "^classifier", "^fastText$", -1.5),
    Goal("GPU bags, of the copy's rate", "cuda", "^bags on a GPU", "^copy$", 0.6),
    Goal("GPU bags, torch", "cuda", "^bags on a GPU", "^torch$", 1.0),
    Goal("GPU bags, FBGEMM", "cuda", "^bags on a GPU", "^FBGEMM$", 0.9),
    Goal("GPU step, of the copy's rate", "cuda", "^LazyAdam step on a GPU", "^copy$", 0.5),
    Goal("GPU step, torch", "cuda", "^LazyAdam step on a GPU", "^torch SparseAdam$", 8),
    Goal("commits", "durability", "a commit every", "^allowed for", -1.10),
)


def rows(data: dict[str, Any]) -> list[list[str]]:
    """A line for each goal and case that this result can speak to."""
    if data.get("quick"):
        return []  # sizes that say nothing
    found = []
    for goal in GOALS:
        for case in data["suites"].get(goal.suite, []):
            if not re.search(goal.case, case["name"]):
                continue
            for theirs, ours in _pairs(goal, case):
                a, b = case["samples"][theirs], case["samples"][ours]
                at_least = goal.wanted > 0
                pairs = ratio(a, b) if at_least else ratio(b, a)
                met = pairs[0] >= goal.wanted if at_least else pairs[0] <= -goal.wanted
                verdict = (
                    "reached" if met else "**missed**" + _at_the_ceiling(case, a, ours, at_least)
                )
                found.append([
                    goal.label, case["name"],
                    f"{theirs} {time_text(float(np.median(a)))}",
                    ("" if ours == "sparse_embed" else f"{ours} ")
                    + time_text(float(np.median(b))),
                    ratio_text(pairs),
                    f"at least {goal.wanted:g}" if at_least else f"at most {-goal.wanted:g}",
                    verdict,
                ])  # fmt: skip
    return found


def _at_the_ceiling(
    case: dict[str, Any], theirs: Sequence[float], ours: str, at_least: bool
) -> str:
    """What the ratio would be, took we no longer than the ceiling that the case has; or ""."""
    for name, samples in case["samples"].items():
        language, _, what = name.partition(": ")
        if what in ("floor", "gather", ours) and samples and samples is not theirs:
            pairs = ratio(theirs, samples) if at_least else ratio(samples, theirs)
            where = "" if language == "ceiling" else f" in {language}"
            return f"; at the ceiling{where}: {ratio_text(pairs)}"
    return ""


def _pairs(goal: Goal, case: dict[str, Any]) -> list[tuple[str, str]]:
    """(theirs, ours) of a case; with "allowed for X", ours is X."""
    names = [name for name, samples in case["samples"].items() if samples]
    found = []
    for theirs in names:
        if not re.search(goal.theirs, theirs):
            continue
        if theirs.startswith("allowed for "):
            found.append((theirs, theirs.removeprefix("allowed for ")))
            continue
        found += [
            (theirs, ours) for ours in names if re.fullmatch(re.escape(goal.ours)
            if goal.ours == "sparse_embed" else goal.ours, ours) and ours != theirs
        ]  # fmt: skip
    return found
