"""Embedding: torch.nn.Embedding on a table."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
)


class Embedding(TableModule):
    """torch.nn.Embedding on a table: input of any shape (...) to (..., D).

    Arguments as EmbeddingBag's; before the star they are torch's Embedding's.
    """

    def __init__(
        self,
        num_embeddings: int | EmbeddingTable,
        embedding_dim: int | None = None,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
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
        given = (num_embeddings, embedding_dim, padding_idx, _weight, device, dtype)
        table = make_table(*given, path, optimizer, seed, init, cache_bytes, overwrite)
        super().__init__(
            table, padding_idx, max_norm, norm_type, scale_grad_by_freq, fused, cache_bytes
        )
        if _freeze:
            self.anchor.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Rows: input (...) to (..., D) float32."""
        return self._run(input, None, None)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        **table: Any,
    ) -> Embedding:
        """A module whose table holds this matrix (E, D); `freeze=False` trains it."""
        rows, columns = as_matrix(embeddings)
        return cls(
            rows,
            columns,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            _weight=embeddings,
            _freeze=freeze,
            **table,
        )

    @classmethod
    def from_torch(cls, module: nn.Embedding, **table: Any) -> Embedding:
        """The same as a plain nn.Embedding, its rows copied to a table."""
        return cls.from_pretrained(
            module.weight,
            not module.weight.requires_grad,
            module.padding_idx,
            module.max_norm,
            module.norm_type,
            module.scale_grad_by_freq,
            module.sparse,
            **table,
        )

    def to_torch(self) -> nn.Embedding:
        """A plain nn.Embedding with a copy of every row: E x D numbers in memory."""
        return nn.Embedding.from_pretrained(
            torch.from_numpy(self.table.lookup(np.arange(self.num_embeddings))),
            not self.anchor.requires_grad,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            not self.scale_grad_by_freq,
        )

    def extra_repr(self) -> str:
        """What torch's says, and where the table is."""
        return f"{describe(self)}, table={self.table!r}"
