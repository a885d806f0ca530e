"""Results as text: one table a suite, medians with spread, ratios to ours."""

from __future__ import annotations

from typing import Any

import numpy as np

OURS = "sparse_embed"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def rows(case: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(case, competitor, median, min to max, ratio to ours) of each competitor."""
    base = case["samples"].get(OURS)
    found = []
    for name, samples in case["samples"].items():
        median = float(np.median(samples))
        ratio = ""
        if base and name != OURS:
            pairs = np.array(samples) / np.array(base)
            low, high = np.percentile(pairs, [25, 75])
            ratio = f"{np.median(pairs):.2f} ({low:.2f} to {high:.2f})"
        spread = f"{_time(min(samples))} to {_time(max(samples))}"
        found.append((case["name"], name, _time(median), spread, ratio))
    for name, reason in case["absent"].items():
        found.append((case["name"], name, "absent", reason, ""))
    return found


def markdown(data: dict[str, Any]) -> str:
    """The whole result file as Markdown."""
    environment = ", ".join(f"{key} {value}" for key, value in data["environment"].items())
    lines = [f"Command: `{data['command']}`", "", f"Machine: {environment}", ""]
    for suite, cases in data["suites"].items():
        lines += [f"## {suite}", ""]
        lines += ["| case | who | median | min to max | time over ours (quartiles of pairs) |"]
        lines += ["|---|---|---|---|---|"]
        for case in cases:
            lines += ["| " + " | ".join(row) + " |" for row in rows(case)]
        lines.append("")
    return "\n".join(lines)


def compare(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Ratio new / old of the medians of every competitor in both; only equal cases are compared."""
    lines = ["| suite | case | who | old | new | new / old |", "|---|---|---|---|---|---|"]
    for suite, cases in new["suites"].items():
        before = {case["name"]: case for case in old["suites"].get(suite, [])}
        for case in cases:
            if case["name"] not in before:
                continue
            for name, samples in case["samples"].items():
                earlier = before[case["name"]]["samples"].get(name)
                if earlier:
                    a, b = float(np.median(earlier)), float(np.median(samples))
                    noise = (max(samples) - min(samples)) / b
                    lines.append(
                        f"| {suite} | {case['name']} | {name} | {_time(a)} | {_time(b)} | "
                        f"{b / a:.2f} (spread {noise:.0%}) |"
                    )
    return "\n".join(lines)
