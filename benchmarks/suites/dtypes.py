"""Tables of 16-bit floats and int8 rows against float32: lookups, and steps that round.

The arithmetic is float32 everywhere, so what narrow rows save is memory traffic.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Case, Settings

ABOUT = "bfloat16, float16 and int8 tables against float32"


def run(settings: Settings) -> Iterator[Case]:
    yield Case("lookup of narrow rows", absent={"bfloat16, float16, int8": "not made yet"})
