"""Results as Markdown: one table a suite, medians with spread, ratios to ours in paired rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import field, targets
from benchmarks.figures import markdown_table, ratio, ratio_text, time_text


def rows(case: dict[str, Any], copy_rate: float | None = None) -> list[list[str]]:
    """[case, competitor, median, min to max, time over ours, GB/s] of each competitor."""
    ours = case.get("ours", "sparse_embed")
    base = case["samples"].get(ours)
    found = []
    for name, samples in case["samples"].items():
        against = ratio_text(ratio(samples, base)) if base and name != ours else ""
        spread = f"{time_text(min(samples))} to {time_text(max(samples))}"
        speed = ""
        if case.get("moved_bytes"):
            rate = case["moved_bytes"] / float(np.median(samples)) / 1e9
            speed = f"{rate:.1f}" + (f" ({rate / copy_rate:.0%})" if copy_rate else "")
        found.append(
            [case["name"], name, time_text(float(np.median(samples))), spread, against, speed]
        )
    for name, reason in case["absent"].items():
        found.append([case["name"], name, "absent", reason, "", ""])
    return found


def suite(name: str, cases: Sequence[dict[str, Any]], copy_rate: float | None = None) -> str:
    """One suite's table, and its facts below."""
    body = [row for case in cases for row in rows(case, copy_rate)]
    head = ["case", "who", "median", "min to max", "time over ours (quartiles of pairs)"]
    if any(row[5] for row in body):
        head.append("GB/s (of a stream copy)" if copy_rate else "GB/s")
    else:
        body = [row[:5] for row in body]
    lines = [f"## {name}", "", *markdown_table(head, body), ""]
    facts = [(case["name"], case["facts"]) for case in cases if case["facts"]]
    for case_name, found in facts:
        lines += [f"- {case_name}: {_facts(found)}"]
    return "\n".join([*lines, ""] if facts else lines)


def _facts(found: dict[str, Any]) -> str:
    return "; ".join(f"{key} {_fact(value)}" for key, value in found.items())


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_fact(x)}" for key, x in value.items()) + "}"
    if isinstance(value, list):
        return " to ".join(_fact(x) for x in value)
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def head(data: dict[str, Any]) -> str:
    """Machine, ceilings, who is absent, and the command."""
    found = dict(data["environment"])
    peers = found.pop("peers", {})
    there = ", ".join(f"{name} {version}" for name, version in peers.items() if version != "absent")
    gone = ", ".join(name for name, version in peers.items() if version == "absent")
    lines = [f"Command: `{data['command']}`", ""]
    lines += ["Machine: " + ", ".join(f"{key} {value}" for key, value in found.items()), ""]
    if data.get("machine"):
        ceilings = ", ".join(f"{key} {value}" for key, value in data["machine"].items())
        lines += [f"Memory, measured in the same run: {ceilings}", ""]
    lines += [f"Peers: {there or 'none'}", "", f"Absent: {gone or 'none'}", ""]
    for name, reason in data.get("failed", {}).items():
        lines += [f"**{name} failed**: {reason}", ""]
    return "\n".join(lines)


def sections(text: str) -> dict[str, str]:
    """Remarks in Markdown, by the heading ("## lookup") that they belong under."""
    found: dict[str, str] = {}
    for part in ("\n" + text).split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        found[heading.strip()] = body.strip()
    return found


def markdown(
    data: dict[str, Any],
    drawn: dict[str, list[Path]] | None = None,
    remarks: dict[str, str] | None = None,
) -> str:
    """The whole result: head, what was to be reached, the field, each suite with its plots.

    `remarks` go under their headings; they are written by who looked at the numbers.
    """
    remarks = remarks or {}
    copy_rate = data.get("machine", {}).get("stream copy, GB/s")
    lines = [head(data)]
    wanted = targets.rows(data)
    if wanted:
        lines += ["## What was to be reached", "", *markdown_table(targets.HEAD, wanted), ""]
        lines += [remarks.get("What was to be reached", ""), ""]
    standing = [] if data.get("quick") else field.rows(data)
    if standing:
        about = (field.__doc__ or "").split("\n\n", 1)[1].strip()
        lines += ["## The field", "", *markdown_table(field.HEAD, standing), "", about, ""]
    for name, cases in data["suites"].items():
        # The host's rate says nothing of a card's.
        lines.append(suite(name, cases, None if name == "cuda" else copy_rate))
        if name in remarks:
            lines += [remarks[name], ""]
        for path in (drawn or {}).get(name, []):
            lines += [f"![{name}]({path.parent.name}/{path.name})", ""]
    return "\n".join(lines).rstrip() + "\n"


def merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several result files of one machine as one; a suite that is in several: the last counts."""
    found = {key: value for key, value in results[0].items() if key != "suites"}
    found["command"] = "` and `".join(result["command"] for result in results)
    found["suites"], found["failed"] = {}, {}
    for result in results:
        found["suites"].update(result["suites"])
        found["failed"].update(result.get("failed", {}))
    return found
