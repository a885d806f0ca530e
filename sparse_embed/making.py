"""Checking the description of a new table, making stores and opening them: shared by
EmbeddingTable and Store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_embed import _validate
from sparse_embed.device import DeviceMemory, device_memory, parse_device
from sparse_embed.dtypes import as_precision
from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Initializer, Uniform
from sparse_embed.optim import Optimizer
from sparse_embed.storage import opening
from sparse_embed.storage.manifest import TableEntry, copy_metadata, is_table_name
from sparse_embed.storage.store import StoreCore, TableCore


def make_entry(
    num_embeddings: int,
    embedding_dim: int,
    dtype: str,
    init: Initializer | None,
    optimizer: Optimizer | None,
    seed: int,
    device: str,
    state_dtype: str = "float32",
    rounding: str | None = None,
) -> TableEntry:
    """Check the description of a new table."""
    check_device(device)
    rows = _validate.as_integer("num_embeddings", num_embeddings)
    dim = _validate.as_integer("embedding_dim", embedding_dim)
    if not 1 <= rows < 2**63:
        raise ArgumentError(f"num_embeddings: expected 1 <= rows < 2^63, got {rows}")
    if not 1 <= dim <= 65536:
        raise ArgumentError(f"embedding_dim: expected 1 <= columns <= 65536, got {dim}")
    precision = as_precision(dtype, state_dtype, rounding)
    start = Uniform(0.05) if init is None else init
    if not isinstance(start, Initializer):
        raise ArgumentError(f"init: expected Uniform, Normal or Zeros, got {init!r}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"optimizer: expected SGD, LazyAdam, ... or None, got {optimizer!r}")
    fields = optimizer.state_fields(dim) if optimizer is not None else ()
    if precision.state_dtype != "float32" and not fields:
        raise ArgumentError(
            f"state_dtype: there is no optimizer state to store, got {state_dtype!r}"
        )
    entry = TableEntry(
        num_embeddings=rows,
        embedding_dim=dim,
        dtype=precision.dtype,
        init=start.to_dict(),
        seed=_validate.as_seed(seed),
        optimizer=None if optimizer is None else optimizer.to_dict(),
        fields=tuple((field.name, field.lanes) for field in fields),
        state_dtype=precision.state_dtype,
        rounding=precision.rounding,
    )
    entry.layout()
    return entry


def check_device(device: object) -> DeviceMemory | None:
    """The GPU that is meant, None for the CPU.

    Raises:
        ArgumentError: not a device's name, or there are fewer GPUs.
        MissingExtraError: "cuda" without its package or driver.
    """
    index = parse_device(device)
    return None if index is None else device_memory(index)


def check_cache(cache_bytes: object) -> int | None:
    """None, or a positive number of bytes."""
    if cache_bytes is None:
        return None
    size = _validate.as_integer("cache_bytes", cache_bytes)
    if size < 1:
        raise ArgumentError(f"cache_bytes: expected at least 1, got {size}")
    return size


def check_table_name(name: object) -> str:
    """A name that may be a file's."""
    if not is_table_name(name):
        raise ArgumentError(
            "name: expected letters, digits, '_', '-' and '.', not starting with a dot or dash, "
            f"at most 100 characters, got {name!r}"
        )
    return str(name)


def create_core(
    path: str | os.PathLike[str] | None, metadata: Mapping[str, Any] | None, overwrite: bool
) -> StoreCore:
    """A new, empty store."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ArgumentError(f"metadata: expected a dict, got {type(metadata).__name__}")
    facts = copy_metadata(dict(metadata or {}))
    if path is None:
        return opening.in_memory(facts)
    return opening.create_store(check_path(path), facts, overwrite)


def check_path(path: object) -> Path:
    """A path as str or os.PathLike."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ArgumentError(f"path: expected str or os.PathLike, got {type(path).__name__}")
    if "\0" in os.fspath(path) or not os.fspath(path):
        raise ArgumentError(f"path: expected a file system path, got {os.fspath(path)!r}")
    return Path(path)


def open_core(
    path: str | os.PathLike[str],
    mode: str,
    at_commit: int | None,
    cache: int | Mapping[str, int | None] | None,
    memory: DeviceMemory | None = None,
) -> StoreCore:
    """An existing store with its tables."""
    if mode not in ("r", "r+"):
        raise ArgumentError(f'mode: expected "r+" or "r", got {mode!r}')
    if at_commit is not None:
        at_commit = _validate.as_integer("at_commit", at_commit)
    core = opening.open_store(check_path(path), mode, at_commit)
    try:
        core.attach_tables(cache, memory)
    except BaseException:
        core.release()
        raise
    return core


def table_info(table: TableCore) -> dict[str, Any]:
    """Plain facts about a table."""
    entry = table.entry
    facts: dict[str, Any] = {
        "num_embeddings": entry.num_embeddings,
        "embedding_dim": entry.embedding_dim,
        "dtype": entry.dtype,
        "state_dtype": entry.state_dtype,
        "rounding": entry.rounding or None,
        "init": entry.init,
        "seed": entry.seed,
        "optimizer": entry.optimizer,
        "lr": table.lr,
        "step": table.step,
        "record_bytes": table.rows.layout.record_bytes,
    }
    return facts | table.rows.info()
