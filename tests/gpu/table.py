"""The table at the end of run.sh: python tests/gpu/table.py OUTCOMES CUDA_JSON

OUTCOMES has a line for each thing that was run: what, outcome and seconds, tabs between.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

Row = tuple[str, str, str]


def ran(path: Path) -> list[Row]:
    """What was run."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        what, outcome, seconds = line.split("\t")
        rows.append((what, outcome, f"{seconds} s"))
    return rows


def measured(path: Path) -> list[Row]:
    """Medians of a result file of the benchmarks, if there is one that can be read."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    rows: list[Row] = []
    for cases in data["suites"].values():
        for case in cases:
            rows += _of_case(case)
    return rows + [("failed", text, "") for text in data["failed"].values()]


def _of_case(case: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [(case["name"], "", "")]
    medians = {name: statistics.median(times) for name, times in case["samples"].items() if times}
    first = next(iter(medians.values()), 0.0)
    for name, seconds in medians.items():
        speed = ""
        if case["moved_bytes"]:
            speed = f"{case['moved_bytes'] / seconds / 1e9:8.0f} GB/s"
        rows.append((f"  {name}", f"{seconds * 1e3:10.3f} ms {speed}", f"{seconds / first:.2f}"))
    return rows + [(f"  {name}", f"absent: {why}", "") for name, why in case["absent"].items()]


def text(rows: list[Row]) -> str:
    """Columns under one another."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>8}".rstrip() for a, b, c in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    head: Row = ("what", "outcome", "seconds")
    numbers = measured(Path(sys.argv[2]))
    times: list[Row] = [("", "", ""), ("on this card", "median", "times")] if numbers else []
    sys.stdout.write(text([head, *ran(Path(sys.argv[1])), *times, *numbers]) + "\n")
