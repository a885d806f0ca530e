"""What Embedding and EmbeddingBag share: the table, its link, and references to it."""

from __future__ import annotations

import functools
import itertools
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sparse_embed._typing import AnyArray, FloatArray
from sparse_embed.batch import Batch, make_batch
from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Initializer, Normal
from sparse_embed.optim import LazyAdam, Optimizer
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable
from sparse_embed.torch.link import LINKS, Link, Use, as_numpy
from sparse_embed.torch.operators import MODULES, lookup

OPTIMIZER = LazyAdam()  # torch.optim.SparseAdam's defaults
INIT = Normal(1.0)  # nn.Embedding's
_HANDLES = itertools.count(1)
_STORES: weakref.WeakValueDictionary[tuple[str, str, int | None], Store] = (
    weakref.WeakValueDictionary()
)
"""Stores that were opened by reference: (path, mode, commit) -> Store."""


class TableModule(nn.Module):
    """What Embedding and EmbeddingBag share."""

    mode: str | None = None
    include_last_offset = False
    _swaps_counts = False
    _references: ClassVar[bool] = True  # False: `commit` is at work, which knows the store

    def __init__(
        self,
        table: EmbeddingTable,
        padding_idx: int | None,
        max_norm: float | None,
        norm_type: float,
        scale_grad_by_freq: bool | str,
        fused: bool,
        cache_bytes: int | None,
    ) -> None:
        super().__init__()
        self.padding_idx = as_padding(padding_idx, table.num_embeddings)
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq = as_scale(scale_grad_by_freq)
        self.fused = bool(fused)
        self.cache_bytes = cache_bytes
        self._attach(table)

    def _attach(self, table: EmbeddingTable, store: Store | None = None) -> None:
        """Stand on this table, with the anchor of those that do already."""
        self.table, self._store = table, store
        link = LINKS.get(table)
        if link is None:
            link = LINKS[table] = self.__dict__.get("_link") or Link(table.optimizer is not None)
        self._link, self._handle = link, next(_HANDLES)
        self.anchor = link.anchor
        MODULES[self._handle] = self

    @property
    def num_embeddings(self) -> int:
        """Rows, E."""
        return self.table.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Columns, D."""
        return self.table.embedding_dim

    def _run(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        self._check_tensor(input)
        anchor = self.anchor if self.training or not self.fused else self.anchor.detach()
        return lookup(anchor, input, offsets, weights, self._handle)

    def _check_tensor(self, input: Tensor) -> None:
        if input.device.type != "cpu":
            raise ArgumentError(f"input: the table is on the cpu, got a tensor on {input.device}")
        if input.dtype not in (torch.int32, torch.int64):
            raise ArgumentError(f"input: expected torch.int32 or int64, got {input.dtype}")

    def _lead(self, input: Tensor, offsets: Tensor | None) -> tuple[int, ...]:
        if self.mode is None:
            return tuple(input.shape)
        if offsets is None:
            return (input.shape[0],)
        return (offsets.shape[0] - int(self.include_last_offset),)

    def _arguments(
        self, use: Use, *, train: bool
    ) -> tuple[AnyArray, AnyArray | None, dict[str, Any]]:
        """indices, offsets and keywords of the table's methods: views of the tensors."""
        offsets = None if use.offsets is None else as_numpy(use.offsets)
        how: dict[str, Any] = {"padding_idx": self.padding_idx}
        if self.mode is None and not train:
            how = {}  # torch's Embedding gives the padding row as it is; only its gradient is none
        if self.mode is not None:
            how["mode"] = self.mode
            how["include_last_offset"] = self.include_last_offset
            how["per_sample_weights"] = None if use.weights is None else as_numpy(use.weights)
        return as_numpy(use.input), offsets, how

    def _lookup(self, use: Use) -> FloatArray:
        indices, offsets, how = self._arguments(use, train=False)
        if self.max_norm is not None:
            batch = _checked(self.num_embeddings, indices, offsets, **how)
            self._renormalise(np.unique(batch.indices))
        return self.table.lookup(indices, offsets, **how)

    def _renormalise(self, rows: AnyArray) -> None:
        """torch.embedding_renorm_: scale rows whose norm is larger, in place."""
        weights = torch.from_numpy(self.table.lookup(rows))
        norms = torch.linalg.vector_norm(weights, self.norm_type, dim=1).double()
        large = norms > self.max_norm
        if bool(large.any()):
            scale = (self.max_norm / (norms[large] + 1e-7)).float()
            self.table.assign(rows[large.numpy()], as_numpy(weights[large] * scale[:, None]))
            self._link.changed_after = self.table.last_commit

    def _gradient(self, use: Use) -> SparseGrad:
        """The merged gradient of one use."""
        indices, offsets, how = self._arguments(use, train=True)
        grad = self.table.backward(as_numpy(use.grad), indices, offsets, **how)
        if not self.scale_grad_by_freq:
            return grad
        rows, counts = np.unique(indices, return_counts=True)
        if self._swaps_counts:
            counts = counts[np.searchsorted(rows, np.sort(indices, axis=None)[: len(rows)])]
        times = counts[np.searchsorted(rows, grad.indices)].astype(np.float32)
        return SparseGrad(grad.indices, grad.values / times[:, None], grad.num_embeddings)

    # ---- training -------------------------------------------------------------------------------

    @property
    def grad(self) -> SparseGrad | None:
        """With fused=False: the gradient kept so far, as backward gave it (not yet clipped)."""
        return self._link.pending[0] if self._link.pending else None

    def step(self) -> bool:
        """With fused=False: one optimizer step with the gradient kept since the last one.

        Returns:
            False when nothing was done: no gradient, or inf or NaN in it, which drops it.
        """
        grad = self._link.take()
        if grad is None:
            return False
        self.table.apply(grad)
        self._link.changed_after = self.table.last_commit
        return True

    def _apply(self, fn: Any, recurse: bool = True) -> TableModule:
        """`.to()`, `.half()` and their kin: the table stays as it is."""
        return self

    # ---- references -----------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any] | None:
        """What `state_dict` holds of the table: where it is, and its last commit; not the rows.

        Raises:
            ArgumentError: the table is in memory.
        """
        if not self._references:
            return None
        table = self.table
        if table.path is None:
            raise ArgumentError(
                "state_dict: a table in memory has no path to refer to; give the module a path, or "
                "use to_torch().state_dict()"
            )
        if self._link.changed_after == table.last_commit:
            warnings.warn(
                f"state_dict refers to commit {table.last_commit} of {str(table.path)!r}; the table"
                " has changed since: commit first, or use sparse_embed.torch.commit",
                stacklevel=2,
            )
        return {
            "path": os.path.abspath(table.path),
            "table": table.name,
            "commit": table.last_commit,
            "num_embeddings": table.num_embeddings,
            "embedding_dim": table.embedding_dim,
        }

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        """Open the table that `state_dict` referred to, at that commit; changes since are gone.

        Tables of one store change together: a model loads all of them.

        Raises:
            StoreError: the store is not there, is locked, or has not that commit any more.
        """
        if state is None:  # from `commit`: the store says where we are
            return
        table, path, number = self.table, state["path"], state["commit"]
        same = table.path is not None and os.path.realpath(table.path) == os.path.realpath(path)
        here = same and table._core.closed is None and table.name == state["table"]
        if here and table.last_commit == number:
            table.rollback()
            self._link.changed_after = -1
            return
        mode = table._core.mode if same else "r+"
        if same:
            table.close(checkpoint=False)
        self._open(path, state["table"], mode, number)

    def _open(self, path: str, name: str, mode: str, number: int | None) -> None:
        """The table of that store, which modules that ask for the same one share."""
        key = (os.path.realpath(path), mode, number)
        store = _STORES.get(key)
        if store is None or store._core.closed is not None:
            store = Store.open(path, mode, at_commit=number, cache_bytes=self.cache_bytes)
            _STORES[key] = store
        elif mode == "r":
            store.refresh()
        self._attach(store.tables[name], store)
        self._link.uses, self._link.pending, self._link.changed_after = {}, [], -1

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "_extra_state"] = self.get_extra_state()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: object,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "_extra_state"
        unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k != key]
        if key not in state_dict:
            missing_keys.append(key)
            return
        state, shape = state_dict[key], (self.num_embeddings, self.embedding_dim)
        if state and (state["num_embeddings"], state["embedding_dim"]) != shape:
            error_msgs.append(f"size mismatch for {key}: the table is {shape}, state_dict: {state}")
            return
        self.set_extra_state(state)

    def __getstate__(self) -> dict[str, Any]:
        """A reference: in another process (a DataLoader worker by spawn) it opens a reader."""
        if self.table.path is None:
            raise ArgumentError(
                "a module on a table in memory cannot be pickled or copied: other processes could "
                "not see its rows; give it a path"
            )
        state = self.__dict__.copy()
        state["_parameters"] = {}
        state["table"] = {"path": os.path.abspath(self.table.path), "name": self.table.name}
        for name in ("_link", "_handle", "_store"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the newest commit for reading; frozen."""
        table = state.pop("table")
        super().__setstate__(state)
        self._open(table["path"], table["name"], "r", None)
        self._link.anchor.requires_grad_(False)


def _checked(
    num_embeddings: int,
    indices: AnyArray,
    offsets: AnyArray | None,
    *,
    mode: str | None = None,
    per_sample_weights: AnyArray | None = None,
    padding_idx: int | None = None,
    include_last_offset: bool = True,
) -> Batch:
    """All that a lookup would refuse, before rows are changed."""
    given = (indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset)
    return make_batch(num_embeddings, *given)


def make_table(
    num_embeddings: int | EmbeddingTable,
    embedding_dim: int | None,
    padding_idx: int | None,
    weight: Tensor | None,
    device: Any,
    dtype: object,
    path: str | os.PathLike[str] | None,
    optimizer: Optimizer | None,
    seed: int,
    init: Initializer,
    cache_bytes: int | None,
    overwrite: bool,
) -> EmbeddingTable:
    """The table that a module's constructor is given, or asks for."""
    if device is not None and torch.device(device).type != "cpu":
        raise ArgumentError(f'device: tables are on the "cpu", got {device!r}')
    if dtype not in (None, torch.float32):
        raise ArgumentError(
            f"dtype: a lookup gives torch.float32, got {dtype!r}; for rows stored narrower give "
            'the module an EmbeddingTable.create(..., dtype="bfloat16") in place of num_embeddings'
        )
    if isinstance(num_embeddings, EmbeddingTable):
        if path is not None or weight is not None or embedding_dim is not None:
            raise ArgumentError("path, embedding_dim and _weight: are the given table's")
        return num_embeddings
    if embedding_dim is None:
        raise ArgumentError("embedding_dim: expected an integer, got None")
    padding = as_padding(padding_idx, num_embeddings)
    shape = (num_embeddings, embedding_dim)
    if weight is not None and tuple(weight.shape) != shape:
        raise ArgumentError(f"_weight: expected shape {shape}, got {tuple(weight.shape)}")
    table = EmbeddingTable.create(
        path,
        num_embeddings=num_embeddings,
        embedding_dim=embedding_dim,
        init=init,
        optimizer=optimizer,
        seed=seed,
        cache_bytes=cache_bytes,
        overwrite=overwrite,
    )
    if weight is not None:
        table.assign(np.arange(num_embeddings), as_numpy(weight.float()))
    elif padding is not None:
        table.assign([padding], np.zeros((1, embedding_dim), np.float32))
    return table


def table_modules(model: nn.Module) -> Iterator[TableModule]:
    return (module for module in model.modules() if isinstance(module, TableModule))


def as_padding(padding_idx: int | None, num_embeddings: int) -> int | None:
    """torch's: a negative one counts from the end."""
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ArgumentError(
            f"padding_idx: expected {-num_embeddings} to {num_embeddings - 1}, got {padding_idx}"
        )
    return padding_idx + num_embeddings if padding_idx < 0 else padding_idx


def as_scale(scale_grad_by_freq: bool | str) -> bool | str:
    """False, True or "documented"."""
    if isinstance(scale_grad_by_freq, str) and scale_grad_by_freq != "documented":
        raise ArgumentError(
            f'scale_grad_by_freq: expected a bool or "documented", got {scale_grad_by_freq!r}'
        )
    return scale_grad_by_freq if isinstance(scale_grad_by_freq, str) else bool(scale_grad_by_freq)


@functools.cache
def swaps_counts() -> bool:
    """Does the installed torch divide a bag's gradient by the count of another row?

    As of 2.13 its EmbeddingBag on the CPU takes, for the i-th of the touched rows in ascending
    order, the count of the i-th of all indices in ascending order (pytorch/pytorch#190063).
    """
    with torch.enable_grad(), torch.inference_mode(False):
        weight = torch.zeros(2, 1, requires_grad=True)
        bags = torch.nn.functional.embedding_bag(
            torch.tensor([0, 0, 1]), weight, torch.tensor([0]), mode="sum", scale_grad_by_freq=True
        )
        (grad,) = torch.autograd.grad(bags.sum(), [weight])
    return float(grad[1, 0]) == 0.5


def as_matrix(embeddings: Tensor) -> tuple[int, int]:
    """The shape of a matrix, or an error."""
    if embeddings.dim() != 2:
        raise ArgumentError(f"embeddings: expected two dimensions, got {embeddings.dim()}")
    rows, columns = embeddings.shape
    return rows, columns


def describe(module: TableModule) -> str:
    parts = [f"{module.num_embeddings}, {module.embedding_dim}"]
    for name, default in (("max_norm", None), ("norm_type", 2.0), ("scale_grad_by_freq", False)):
        if getattr(module, name) != default:
            parts.append(f"{name}={getattr(module, name)!r}")
    if module.padding_idx is not None:
        parts.append(f"padding_idx={module.padding_idx}")
    return ", ".join(parts)
