"""Copies of a table's weights in a narrower dtype, for lookups.

int8, by row:    bias = min x,   scale = (max x - min x) / 255,   q = rint((x - bias) / scale)
                 what comes out is q scale + bias: off by scale / 2 at most, and rounding
float16,         to nearest, ties to even
bfloat16

q is computed in float64.  A row of equal numbers has scale 0, which is stored as -0.0 (a record
that begins with +0.0 was never written).  Source: FBGEMM's fused 8-bit row-wise format, with scale
and bias in front of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.dtypes import narrow
from sparse_embed.errors import ArgumentError
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.manifest import TableEntry

DTYPES = ("int8", "float16", "bfloat16")
_BLOCK_BYTES = 8 << 20
_WIDEST = 3e38


def as_entry(entry: TableEntry, dtype: object) -> TableEntry:
    """The copy's description: the same shape, init and seed; no optimizer.

    Raises:
        ArgumentError: a dtype that no copy is made in.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ArgumentError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if entry.dtype == "int8":
        raise ArgumentError("dtype: this table is an int8 copy already; copy the one it is of")
    rounding = "" if dtype == "int8" else "nearest"
    return replace(
        entry, dtype=dtype, state_dtype="float32", rounding=rounding, optimizer=None, fields=()
    )


def blocks(
    rows: IndexArray | range, layout: Layout, weights_of: Callable[[IndexArray], FloatArray]
) -> Iterator[tuple[IndexArray, FloatArray]]:
    """(row numbers, their records), some MiB at a time.

    Raises:
        ArgumentError: int8, and a weight is NaN or infinite, or a row spans more than float32 does.
    """
    step = max(1, _BLOCK_BYTES // (4 * layout.embedding_dim))
    for begin in range(0, len(rows), step):
        part = np.asarray(rows[begin : begin + step], np.int64)
        weights = weights_of(part)
        records = np.zeros((len(part), layout.lanes), np.float32)
        fields = layout.structured(records)
        if layout.precision.dtype == "int8":
            _check_finite(part, weights)
            fields["scale"], fields["bias"], fields["weight"] = quantise(weights)
        else:
            fields["weight"] = narrow(weights, layout.precision.dtype)
        layout.keep_written(records)
        yield part, records


def quantise(weights: FloatArray) -> tuple[FloatArray, FloatArray, np.ndarray]:
    """(n,) scale, (n,) bias, (n, D) uint8 of finite (n, D) weights."""
    low, high = weights.min(axis=1).astype(np.float64), weights.max(axis=1).astype(np.float64)
    scale = ((high - low) / 255).astype(np.float32)
    unit = np.where(scale > 0, scale, np.inf).astype(np.float64)
    levels = np.rint((weights - low[:, None]) / unit[:, None])
    return scale, low.astype(np.float32), np.clip(levels, 0, 255).astype(np.uint8)


def _check_finite(rows: IndexArray, weights: FloatArray) -> None:
    """255 scales must not overflow either."""
    with np.errstate(invalid="ignore"):
        span = weights.max(axis=1).astype(np.float64) - weights.min(axis=1)
    fits = np.isfinite(weights).all(axis=1) & (span <= _WIDEST)
    if not fits.all():
        raise ArgumentError(
            f"dtype: int8 holds rows of finite weights that span {_WIDEST:g} at most, and row "
            f"{rows[int(np.argmin(fits))]} is another"
        )
