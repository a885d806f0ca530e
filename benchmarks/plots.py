"""Plots of a result: bars against peers with the ceiling as a line; curves for cases on an axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BARS = (
    "lookup", "update", "train_step", "multi_table", "dtypes", "storage", "keys", "recommend",
    "text",
)  # fmt: skip
_CEILINGS = ("C: ", "Numba: ", "reads of the disk")
_COLOURS = {"sparse_embed": "#1f6f8b", "torch": "#e07a3f", "FBGEMM": "#8a6fb0"}
_LEFT = ("#7f9f5f", "#b0803f", "#5f7f9f", "#9f5f7f")


def draw(data: dict[str, Any], folder: Path) -> dict[str, list[Path]]:
    """Suite -> files drawn into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, list[Path]] = {}
    for suite, cases in data["suites"].items():
        flat = [case for case in cases if case["samples"] and not case["axis"]]
        if suite in BARS and flat:
            drawn.setdefault(suite, []).append(_bars(suite, flat, folder / f"{suite}.png"))
        curves = [case for case in cases if case["samples"] and case["axis"]]
        if curves:
            drawn.setdefault(suite, []).append(_curves(curves, folder / f"{suite}_curves.png"))
    return drawn


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
    return path


def _bars(suite: str, cases: Sequence[dict[str, Any]], path: Path) -> Path:
    """Median milliseconds with quartiles; the ceiling of a case is a line across its bars."""
    figure, axes = plt.subplots(figsize=(9, 1.0 + 0.62 * len(cases)))
    names: list[str] = []
    for case in cases:
        names += [name for name in case["samples"] if name not in names]
    bars = [name for name in names if not name.startswith(_CEILINGS)]
    left = iter(_LEFT * len(bars))
    colours = {name: _COLOURS.get(name) or next(left) for name in bars}
    thickness = 0.8 / max(1, len(bars))
    for place, case in enumerate(cases):
        there = [name for name in bars if case["samples"].get(name)]
        for n, name in enumerate(there):
            low, middle, high = np.percentile(np.array(case["samples"][name]) * 1e3, [25, 50, 75])
            at = place - 0.4 + (n + 0.5) * 0.8 / len(there)
            height = max(thickness, 0.8 / len(there)) * 0.92
            axes.barh(at, middle, height, color=colours[name])
            axes.hlines(at, low, high, "black", lw=0.8)
        for name, samples in case["samples"].items():
            if name.startswith(_CEILINGS) and samples:
                axes.vlines(np.median(samples) * 1e3, place - 0.45, place + 0.45, "black", lw=1.4)
    axes.set_yticks(range(len(cases)), [_short(case["name"]) for case in cases], fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds, median and quartiles; black line: the machine's ceiling")
    axes.invert_yaxis()
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in bars]
    axes.legend(handles, bars, fontsize=7, loc="best")
    axes.set_title(suite)
    return _save(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= 70 else name[:67] + "..."


def _curves(cases: Sequence[dict[str, Any]], path: Path) -> Path:
    """One panel an axis; what is behind a comma in an axis's name is a curve of its own."""
    panels: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    for case in cases:
        axis, place = case["axis"]
        panel, _, kind = axis.partition(", ")
        for name, samples in case["samples"].items():
            low, middle, high = np.percentile(np.array(samples) * 1e3, [25, 50, 75])
            label = f"{name}, {kind}" if kind else name
            panels.setdefault(panel, {}).setdefault(label, []).append((place, low, middle, high))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.2 * lines), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (panel, curves) in zip(grid.flat, panels.items(), strict=False):
        for label, points in curves.items():
            place, low, middle, high = np.array(sorted(points)).T
            (line,) = axes.plot(place, middle, "o-", ms=3, lw=1.2, label=label)
            axes.fill_between(place, low, high, alpha=0.2, color=line.get_color())
        places = [point[0] for points in curves.values() for point in points]
        if min(places) > 0 and max(places) / min(places) > 50:
            axes.set_xscale("log")
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(panel, fontsize=8)
        axes.set_ylabel("ms", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=6)
    return _save(figure, path)
