"""Other systems at their own best settings: torch's and FBGEMM's embedding bags on the CPU.

Both get tables on huge pages where the system has them, as ours are, and as many threads.
Fbgemm's "exact" optimizers merge equal rows before they update, as all others here do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: huge pages; read at its first use

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

TORCH, FBGEMM = "torch", "FBGEMM"
LR = {"lazy_adam": 1e-3, "row_wise_adagrad": 1e-2, "adagrad": 1e-2, "sgd": 1e-2}


@lru_cache(maxsize=1)
def torch_missing() -> str | None:
    """Why torch is not among the competitors; None when it is."""
    try:
        import torch
    except ImportError as error:
        return f"not installed ({error})"
    import sparse_embed as se

    torch.set_num_threads(se.get_num_threads())
    torch.sparse.check_sparse_tensor_invariants.disable()
    return None


@lru_cache(maxsize=1)
def fbgemm_missing() -> str | None:
    """Why FBGEMM is not among the competitors; None when it is."""
    if torch_missing() is not None:
        return "needs torch"
    try:
        import logging

        logging.disable(logging.ERROR)  # it reports a failed import at length
        try:
            import fbgemm_gpu.split_table_batched_embeddings_ops_training  # noqa: F401
        finally:
            logging.disable(logging.NOTSET)
    except ImportError as error:
        return f"not installed ({error})"
    except OSError as error:
        cause = str(error.__cause__ or error).split("_ZN", 1)[0]
        return f"its build does not fit torch {_torch_version()}: {cause.strip()[-90:]}"
    return None


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def as_torch(*arrays: NDArray[Any]) -> list[Any]:
    import torch

    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


class TorchTables:
    """torch.nn.EmbeddingBag(sparse=True) for each table, trained by a sparse optimizer of torch."""

    optimizers = ("lazy_adam", "adagrad", "sgd")
    name = TORCH

    def __init__(
        self, rows: Sequence[int], dim: int, optimizer: str, weights: Sequence[Floats] | None = None
    ) -> None:
        import torch

        self.bags = []
        for table, count in enumerate(rows):
            weight = (
                torch.zeros(count, dim)
                if weights is None
                else torch.from_numpy(weights[table].copy())
            )
            self.bags.append(
                torch.nn.EmbeddingBag(count, dim, mode="sum", sparse=True, _weight=weight)
            )
        parameters = [bag.weight for bag in self.bags]
        lr = LR[optimizer]
        self.optimizer: Any = {
            "lazy_adam": lambda: torch.optim.SparseAdam(parameters, lr=lr),
            "adagrad": lambda: torch.optim.Adagrad(parameters, lr=lr),
            "sgd": lambda: torch.optim.SGD(parameters, lr=lr),
        }[optimizer]()

    def prepare(self, features: Sequence[Ints], offsets: Ints, grad: Floats) -> Any:
        """What `step` takes, from row numbers of each table, (B+1,) offsets, (B, tables x D)."""
        return as_torch(*features), as_torch(offsets[:-1])[0], as_torch(grad)[0]

    def forward(self, batch: Any) -> Any:
        import torch

        features, starts, _ = batch
        if len(features) == 1:
            return self.bags[0](features[0], starts)
        return torch.cat(
            [bag(ids, starts) for bag, ids in zip(self.bags, features, strict=True)], 1
        )

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.forward(batch).backward(batch[2])
        self.optimizer.step()

    def weight(self, table: int = 0) -> Floats:
        return np.asarray(self.bags[table].weight.detach().numpy())


class FbgemmTables:
    """FBGEMM's SplitTableBatchedEmbeddingBagsCodegen on the CPU: all tables in one operator."""

    optimizers = ("row_wise_adagrad", "adagrad", "sgd")
    name = FBGEMM

    def __init__(
        self, rows: Sequence[int], dim: int, optimizer: str, weights: Sequence[Floats] | None = None
    ) -> None:
        import torch

        self.module = _fbgemm_module(rows, dim, optimizer, "sum")
        with torch.no_grad():
            for table, weight in enumerate(self.module.split_embedding_weights()):
                if weights is None:
                    weight.zero_()
                else:
                    weight.copy_(torch.from_numpy(weights[table]))

    def prepare(self, features: Sequence[Ints], offsets: Ints, grad: Floats) -> Any:
        """As TorchTables.prepare."""
        length = int(offsets[-1])
        starts = [offsets[:-1] + table * length for table in range(len(features))]
        all_offsets = np.concatenate([*starts, [length * len(features)]])
        return (*as_torch(np.concatenate(features), all_offsets), as_torch(grad)[0])

    def forward(self, batch: Any) -> Any:
        return self.module(batch[0], batch[1])

    def step(self, batch: Any) -> None:
        self.forward(batch).backward(batch[2])

    def weight(self, table: int = 0) -> Floats:
        return np.asarray(self.module.split_embedding_weights()[table].detach().numpy())


def _fbgemm_module(
    rows: Sequence[int], dim: int, optimizer: str, mode: str, weight: Floats | None = None
) -> Any:
    """`weight` (E, D) of the only table, used where it lies."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
        BoundsCheckMode,
        EmbeddingLocation,
        PoolingMode,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kind = {
        "row_wise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "sgd": EmbOptimType.EXACT_SGD,
    }[optimizer]
    shared = {}
    if weight is not None:
        shared = {"preallocated_host_buffers": {"weights": torch.from_numpy(weight.reshape(-1))}}
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(count, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for count in rows],
        optimizer=kind,
        learning_rate=LR[optimizer],
        eps=1e-10,  # as torch's Adagrad and ours
        pooling_mode=PoolingMode.MEAN if mode == "mean" else PoolingMode.SUM,
        bounds_check_mode=BoundsCheckMode.FATAL,  # ours checks too
        **shared,
    )


Tables = TorchTables | FbgemmTables


def training_peers(optimizer: str) -> tuple[list[type[Tables]], dict[str, str]]:
    """Who can train with this optimizer, and why the others cannot."""
    found: list[type[Tables]] = []
    absent = {}
    for kind, missing in ((TorchTables, torch_missing), (FbgemmTables, fbgemm_missing)):
        reason = missing()
        if reason is None and optimizer not in kind.optimizers:
            reason = f"has no {optimizer} for sparse gradients on the CPU"
        if reason is None:
            found.append(kind)
        else:
            absent[kind.name] = reason
    return found, absent


class TorchLookup:
    """torch.nn.functional.embedding_bag on the same memory, without gradients."""

    name = TORCH

    def __init__(self, weight: Floats, mode: str) -> None:
        self._weight = as_torch(weight)[0]
        self._mode = mode

    def prepare(self, indices: Ints, offsets: Ints, weights: Floats | None) -> Any:
        ids, starts = as_torch(indices, offsets[:-1])
        return ids, starts, None if weights is None else as_torch(weights)[0]

    def __call__(self, batch: Any) -> Any:
        import torch
        from torch.nn.functional import embedding_bag

        ids, starts, weights = batch
        with torch.no_grad():
            return embedding_bag(
                ids, self._weight, starts, mode=self._mode, per_sample_weights=weights
            )


class FbgemmLookup:
    """FBGEMM's pooled forward operator on the same memory, without gradients.

    (Its inference operator for quantised tables, given float32, is slower on these batches.)
    """

    name = FBGEMM

    def __init__(self, weight: Floats, mode: str) -> None:
        weight = np.ascontiguousarray(weight)
        self._module = _fbgemm_module([len(weight)], weight.shape[1], "sgd", mode, weight)

    def prepare(self, indices: Ints, offsets: Ints, weights: Floats | None) -> Any:
        return (
            *as_torch(indices, offsets),
            None if weights is None else as_torch(weights)[0],
        )

    def __call__(self, batch: Any) -> Any:
        import torch

        with torch.no_grad():
            return self._module(*batch)


Lookup = TorchLookup | FbgemmLookup


def lookup_peers(dim: int) -> tuple[list[type[Lookup]], dict[str, str]]:
    """Who can look up rows of `dim` floats, and why the others cannot."""
    found: list[type[Lookup]] = []
    absent = {}
    for kind, reason in ((TorchLookup, torch_missing()), (FbgemmLookup, fbgemm_missing())):
        if reason is None and kind is FbgemmLookup and dim % 4:
            reason = "wants dimensions that are multiples of 4"
        if reason is None:
            found.append(kind)
        else:
            absent[kind.name] = reason
    return found, absent
