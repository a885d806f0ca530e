"""Tables of ours in the state a trained table has, for suites that time them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se

CACHE = 12 << 30
BLOCK = 1 << 14  # rows of `filled` repeat after so many

OPTIMIZERS: dict[str, Any] = {
    "lazy_adam": se.LazyAdam(1e-3),
    "row_wise_adagrad": se.RowWiseAdagrad(1e-2),
    "adagrad": se.Adagrad(1e-2),
    "sgd": se.SGD(1e-2),
}


def make(
    rows: int,
    dim: int,
    optimizer: str | None,
    path: Path | None = None,
    cache_bytes: int = CACHE,
    **more: Any,
) -> se.EmbeddingTable:
    """A new table, nothing written."""
    return se.EmbeddingTable.create(
        path,
        num_embeddings=rows,
        embedding_dim=dim,
        optimizer=OPTIMIZERS[optimizer] if optimizer else None,
        cache_bytes=cache_bytes,
        **more,
    )


def filled(rows: int, dim: int, optimizer: str | None) -> se.EmbeddingTable:
    """A table in memory with every record written, laid out by row number."""
    table = make(rows, dim, optimizer)
    fill(table)
    return table


def fill(table: se.EmbeddingTable) -> None:
    """Write every record of a new table in memory, laid out by row number."""
    rows = table.num_embeddings
    # A quarter of the rows in memory makes the table lay them all out by row number.
    table.prefetch(np.arange(rows // 4 + 1))
    table.lookup([0])
    resident = table._table.rows.resident
    assert table.info()["resident"] == "identity"
    rng = np.random.default_rng(1)
    block = rng.standard_normal((BLOCK, resident.records.shape[1])).astype(np.float32)
    np.abs(block, out=block)
    block *= np.float32(0.01)
    for begin in range(0, rows, len(block)):
        part = resident.records[begin : begin + len(block)]
        part[:] = block[: len(part)]


def records(table: se.EmbeddingTable) -> Any:
    """The table's memory, (slots, lanes) float32: what a ceiling works on."""
    return table._table.rows.resident.records


def weights(table: se.EmbeddingTable) -> Any:
    """(E, D) of a table laid out by row number; without a copy."""
    return records(table)[: table.num_embeddings, : table.embedding_dim]
