"""Numbers as text: times, ratios of paired rounds, Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))


def time_text(seconds: float) -> str:
    """With three digits and a unit."""
    for unit, scale in _UNITS:
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def ratio(samples: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of samples / base, round by round."""
    count = min(len(samples), len(base))
    low, middle, high = np.percentile(
        np.array(samples[:count]) / np.array(base[:count]), [25, 50, 75]
    )
    return float(middle), float(low), float(high)


def ratio_text(found: tuple[float, float, float]) -> str:
    middle, low, high = found
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in body]
