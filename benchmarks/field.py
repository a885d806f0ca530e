"""The field, row by row: what others took on an earlier machine, what they and we take here.

The earlier figures are medians on two cores of an EPYC with AVX-512 (Zen 4), the same workloads and
peers: they say how the field stands, not how fast this machine is; only the ratios of one run do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.figures import ratio, ratio_text

HEAD = ["", "earlier, ms", "here, ms", "ours here, ms", "theirs / ours here (quartiles)"]

_SKEWS = (("Zipf", "zipf(1.05)"), ("uniform", "uniform"))
_SHAPE = "10,000,000 x 64, 4096 bags x 32, "


@dataclass(frozen=True)
class Row:
    """`case` begins the name of the case; `who` is the competitor, None where it cannot be here."""

    label: str
    earlier: tuple[str, ...]
    suite: str
    case: str
    who: str | None


ROWS = (
    Row("lookup, C with the best prefetch, huge pages", ("0.82", "2.38"), "lookup",
        "weights only: " + _SHAPE, "C: gather"),
    Row("lookup, torch, table on huge pages", ("1.8", "3.5"), "lookup",
        "weights only: " + _SHAPE, "torch"),
    Row("lookup, FBGEMM", ("3.28", "7.19"), "lookup", "weights only: " + _SHAPE, "FBGEMM"),
    Row("row update alone, C, Adam on records", ("3.5", "7.4"), "update", "lazy_adam: ",
        "C: row update"),
    Row("step, Adam: torch SparseAdam", ("86", "149"), "train_step", "lazy_adam: " + _SHAPE,
        "torch"),
    Row("step, Adam: FBGEMM (none on the CPU)", ("-", "-"), "train_step", "lazy_adam: " + _SHAPE,
        None),
    Row("step, Adam: TF recommenders-addons (1M rows)", ("96", "-"), "train_step",
        "lazy_adam: " + _SHAPE, None),
    Row("step, row-wise Adagrad: FBGEMM", ("9.6", "22.4"), "train_step",
        "row_wise_adagrad: " + _SHAPE, "FBGEMM"),
    Row("step, SGD: FBGEMM", ("17.0", "30.4"), "train_step", "sgd: " + _SHAPE, "FBGEMM"),
    Row("step, SGD: torch", ("26.7", "28.2"), "train_step", "sgd: " + _SHAPE, "torch"),
    Row("step, Adagrad: FBGEMM", ("38.7", "85.6"), "train_step", "adagrad: " + _SHAPE, "FBGEMM"),
    Row("step, Adagrad: torch", ("51.6", "121"), "train_step", "adagrad: " + _SHAPE, "torch"),
    Row("26 tables, row-wise Adagrad: FBGEMM", ("5.6",), "multi_table",
        "row_wise_adagrad: 26 tables of 1,000 to 4,000,000 rows x 32, batch 2048 x 1, ", "FBGEMM"),
    Row("26 tables, row-wise Adagrad: TorchRec", ("6.8",), "multi_table",
        "row_wise_adagrad: 26 tables of 1,000 to 4,000,000 rows x 32, batch 2048 x 1, ", None),
    Row("26 tables, Adam: torch", ("25",), "multi_table",
        "lazy_adam: 26 tables of 1,000 to 4,000,000 rows x 32, batch 2048 x 1, ", "torch"),
)  # fmt: skip


def rows(data: dict[str, Any]) -> list[list[str]]:
    """Lines of the table, for the rows whose case this result has."""
    found = []
    for row in ROWS:
        cases = [
            case
            for case in data["suites"].get(row.suite, [])
            if case["name"].startswith(row.case) and case["samples"]
        ]
        for skew, earlier in zip(("Zipf", "uniform"), row.earlier, strict=False):
            ending = dict(_SKEWS)[skew]
            here = [case for case in cases if len(row.earlier) == 1 or _skewed(case, ending)]
            if here:
                label = row.label if len(row.earlier) == 1 else f"{row.label}, {skew}"
                found.append([label, earlier, *_cells(here[0], row.who)])
    return found


def _skewed(case: dict[str, Any], ending: str) -> bool:
    return bool(case["name"].endswith(ending))


def _cells(case: dict[str, Any], who: str | None) -> list[str]:
    ours = case["samples"]["sparse_embed"]
    theirs = case["samples"].get(who or "")
    mine = f"{1e3 * float(np.median(ours)):.3g}"
    if not theirs:
        return [case["absent"].get(who or "", "absent" if who else "-"), mine, ""]
    return [f"{1e3 * float(np.median(theirs)):.3g}", mine, ratio_text(ratio(theirs, ours))]
