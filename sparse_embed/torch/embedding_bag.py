"""EmbeddingBag: torch.nn.EmbeddingBag on a table."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Initializer
from sparse_embed.optim import Optimizer
from sparse_embed.table import EmbeddingTable
from sparse_embed.torch.table_module import (
    INIT,
    OPTIMIZER,
    TableModule,
    as_matrix,
    describe,
    make_table,
    swaps_counts,
)


class UnsupportedError(ArgumentError, NotImplementedError):
    """An argument that torch refuses with NotImplementedError."""


class EmbeddingBag(TableModule):
    """torch.nn.EmbeddingBag on a table: bags of rows, pooled.

    Arguments before the star are torch's, in torch's order; `sparse` is accepted and means nothing
    (gradients always are).  `num_embeddings` may be an EmbeddingTable, on which the module stands.

    Args:
        scale_grad_by_freq: True gives what the installed torch gives on the CPU.  Up to 2.13 that
            is not what it documents: a row's gradient is divided by the count of another row
            (pytorch/pytorch#190063).  "documented" divides it by the row's own.
        path: directory of the new table; None keeps it in memory.
        optimizer: of the table; the default is LazyAdam(), torch's SparseAdam.
        seed, init: the first weights; Normal(1.0) is torch's.
        cache_bytes, overwrite: as in EmbeddingTable.create.
        fused: True trains in backward, False keeps the gradient for `step()`; see the module's top.

    Raises:
        ArgumentError, IndexRangeError: where torch raises; UnsupportedError for weights where mode
            is not "sum".
    """

    mode: str

    def __init__(
        self,
        num_embeddings: int | EmbeddingTable,
        embedding_dim: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool | str = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: object = None,
        dtype: object = None,
        *,
        path: str | os.PathLike[str] | None = None,
        optimizer: Optimizer | None = OPTIMIZER,
        seed: int = 0,
        init: Initializer = INIT,
        cache_bytes: int | None = None,
        overwrite: bool = False,
        fused: bool = True,
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ArgumentError(f"mode: expected one of sum, mean, max, got {mode!r}")
        if mode == "max" and scale_grad_by_freq:
            raise ArgumentError('scale_grad_by_freq: not defined for mode="max"')
        given = (num_embeddings, embedding_dim, padding_idx, _weight, device, dtype)
        table = make_table(*given, path, optimizer, seed, init, cache_bytes, overwrite)
        super().__init__(
            table, padding_idx, max_norm, norm_type, scale_grad_by_freq, fused, cache_bytes
        )
        self.mode, self.include_last_offset = mode, bool(include_last_offset)
        self._swaps_counts = self.scale_grad_by_freq is True and swaps_counts()

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pool: input (L,) with offsets (B,), or (B+1,) with include_last_offset; or input (B, N).

        Returns:
            (B, D) float32; zeros for empty bags.
        """
        self._check(input, offsets, per_sample_weights)
        return self._run(input, offsets, per_sample_weights)

    def _check(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> None:
        # In torch's order, so that of two errors the same one is named.
        if weights is not None and weights.shape != input.shape:
            wanted, found = tuple(input.shape), tuple(weights.shape)
            raise ArgumentError(f"per_sample_weights: expected shape {wanted}, got {found}")
        if input.dim() not in (1, 2):
            raise ArgumentError(f"input: expected one or two dimensions, got {input.dim()}")
        if input.dim() == 2 and offsets is not None:
            raise ArgumentError("offsets: expected None where input has two dimensions")
        if input.dim() == 1 and (offsets is None or offsets.dim() != 1):
            raise ArgumentError("offsets: expected a tensor of one dimension, as input has one")
        if weights is not None and self.mode != "sum":
            raise UnsupportedError(f'per_sample_weights: need mode="sum", got {self.mode!r}')
        if offsets is not None and offsets.dtype not in (torch.int32, torch.int64):
            raise ArgumentError(f"offsets: expected torch.int32 or int64, got {offsets.dtype}")
        if weights is not None and weights.dtype != torch.float32:
            raise ArgumentError(f"per_sample_weights: expected float32, got {weights.dtype}")

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool | str = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        **table: Any,
    ) -> EmbeddingBag:
        """A module whose table holds this matrix (E, D); `freeze=False` trains it."""
        rows, columns = as_matrix(embeddings)
        module = cls(
            rows,
            columns,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            _weight=embeddings,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            **table,
        )
        if freeze:
            module.anchor.requires_grad_(False)
        return module

    @classmethod
    def from_torch(cls, module: nn.EmbeddingBag, **table: Any) -> EmbeddingBag:
        """The same as a plain nn.EmbeddingBag, its rows copied to a table."""
        return cls.from_pretrained(
            module.weight,
            not module.weight.requires_grad,
            module.max_norm,
            module.norm_type,
            module.scale_grad_by_freq,
            module.mode,
            module.sparse,
            module.include_last_offset,
            module.padding_idx,
            **table,
        )

    def to_torch(self) -> nn.EmbeddingBag:
        """A plain nn.EmbeddingBag with a copy of every row: E x D numbers in memory."""
        return nn.EmbeddingBag.from_pretrained(
            torch.from_numpy(self.table.lookup(np.arange(self.num_embeddings))),
            not self.anchor.requires_grad,
            self.max_norm,
            self.norm_type,
            bool(self.scale_grad_by_freq),
            self.mode,
            self.mode != "max" and not self.scale_grad_by_freq,
            self.include_last_offset,
            self.padding_idx,
        )

    def extra_repr(self) -> str:
        """What torch's says, and where the table is."""
        return f"{describe(self)}, mode={self.mode!r}, table={self.table!r}"
