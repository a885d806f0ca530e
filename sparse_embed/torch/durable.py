"""Model and tables as one: what `commit` makes durable together, `resume` brings back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_embed._typing import AnyArray
from sparse_embed.errors import ArgumentError
from sparse_embed.store import Arrays
from sparse_embed.table import EmbeddingTable
from sparse_embed.torch.table_module import TableModule, table_modules


def commit(model: nn.Module, *, wait: bool = True, **parts: Any) -> Any:
    """Make a model durable: its tables and, as arrays of their store, everything else, in one.

    Args:
        model: its tables must be in one store.
        wait: as in EmbeddingTable.commit.
        parts: what else belongs to this moment.  Objects with `state_dict()` (optimizers,
            schedulers) by that; else tensors, numbers, strings, None, in lists, tuples and dicts.

    Returns:
        the number of the commit; with wait=False a Commit.
    """
    table = _only_store(model)
    TableModule._references = False
    try:
        whole = {"model": model.state_dict()}
    finally:
        TableModule._references = True
    for name, part in parts.items():
        whole[name] = part.state_dict() if hasattr(part, "state_dict") else part
    tensors: dict[str, AnyArray] = {}
    tree = _pack(whole, "torch", tensors)
    arrays = Arrays(table._core)
    for name in [name for name in arrays if name.startswith("torch.") and name not in tensors]:
        del arrays[name]
    for name, array in tensors.items():
        arrays[name] = array
    table.metadata["torch"] = tree
    number = table.commit(wait)
    for module in table_modules(model):
        module._link.changed_after = -1
    return number


def resume(model: nn.Module, **parts: Any) -> dict[str, Any] | None:
    """Bring a model on an opened store to where `commit` left it.

    Args:
        model: made as the committed one was, on the tables of that store.
        parts: objects with `load_state_dict`, under the names that `commit` had for them.

    Returns:
        the other parts, by name; None when the store has no such commit.

    Raises:
        ArgumentError: a part is not in the store.
    """
    table = _only_store(model)
    if "torch" not in table.metadata:
        return None
    whole = _unpack(table.metadata["torch"], Arrays(table._core))
    missing = sorted(set(parts) - set(whole))
    if missing:
        raise ArgumentError(f"parts: expected names of {sorted(whole)}, got {missing}")
    state = OrderedDict(whole.pop("model"))
    model.load_state_dict(state)
    for name, part in parts.items():
        part.load_state_dict(whole.pop(name))
    return dict(whole)


def _only_store(model: nn.Module) -> EmbeddingTable:
    tables = {id(module.table._core): module.table for module in table_modules(model)}
    if len(tables) != 1:
        where = sorted(str(table.path) for table in tables.values())
        raise ArgumentError(f"model: expected tables of one store, to commit at once, got {where}")
    return next(iter(tables.values()))


def _pack(value: Any, name: str, tensors: dict[str, AnyArray]) -> Any:
    """A tree of plain values as JSON, its tensors as named arrays."""
    if isinstance(value, Tensor):
        dense = value.detach().cpu().resolve_conj().contiguous()
        kind = str(dense.dtype).removeprefix("torch.")
        if dense.dtype == torch.bfloat16:  # which NumPy has not
            dense = dense.view(torch.int16)
        while name in tensors:
            name += "_"
        tensors[name] = dense.numpy()
        return {"tensor": name, "dtype": kind}
    if isinstance(value, Mapping):
        packed = []
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise ArgumentError(f"{name}: expected keys that are str or int, got {key!r}")
            where = f"{name}.{key}".replace("/", "_").replace("\0", "_")
            packed.append([key, _pack(item, where, tensors)])
        return {"dict": packed}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, float):
        return {"float": value.hex()}
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ArgumentError(f"{name}: expected tensors and plain values, got {type(value).__name__}")


def _unpack(tree: Any, arrays: Mapping[str, AnyArray]) -> Any:
    if not isinstance(tree, dict):
        return tree
    [(kind, value)] = [(k, v) for k, v in tree.items() if k != "dtype"]
    if kind == "tensor":
        tensor = torch.from_numpy(arrays[value].copy())
        dtype = getattr(torch, tree["dtype"])
        return tensor if tensor.dtype == dtype else tensor.view(dtype)
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in value}
    if kind == "float":
        return float.fromhex(value)
    items = [_unpack(item, arrays) for item in value]
    return tuple(items) if kind == "tuple" else items
