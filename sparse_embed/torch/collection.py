"""EmbeddingBagCollection: many bags in one call."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Initializer, Uniform
from sparse_embed.optim import Optimizer
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable
from sparse_embed.torch.embedding_bag import EmbeddingBag
from sparse_embed.torch.table_module import OPTIMIZER


class EmbeddingBagCollection(nn.Module):
    """Many bags in one call, as DLRM and TorchRec have them.

    Args:
        bags: name -> EmbeddingBag.
        features: feature -> name of its bag; several may share one.  Default: features are named as
            the bags.
    """

    def __init__(
        self, bags: Mapping[str, EmbeddingBag], features: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.bags = nn.ModuleDict(dict(bags))
        self.features = dict(features or {name: name for name in bags})
        unknown = sorted(set(self.features.values()) - set(bags))
        if unknown:
            raise ArgumentError(f"features: expected names of {sorted(bags)}, got {unknown}")

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        num_embeddings: Mapping[str, int],
        embedding_dim: int,
        *,
        mode: str = "sum",
        optimizer: Optimizer | None = OPTIMIZER,
        init: Initializer | None = None,
        seed: int = 0,
        fused: bool = True,
        cache_bytes: int | None = None,
        overwrite: bool = False,
    ) -> EmbeddingBagCollection:
        """Tables in one new store, so that they commit together: name -> rows of each.

        Args:
            init: None is DLRM's Uniform(1 / sqrt(rows)).
            seed: of the first table; the next one has seed + 1, and so on.
            cache_bytes: of each table.
        """
        store = Store.create(path, overwrite=overwrite)
        for i, (name, rows) in enumerate(num_embeddings.items()):
            store.create_table(
                name,
                num_embeddings=rows,
                embedding_dim=embedding_dim,
                init=Uniform(1 / math.sqrt(rows)) if init is None else init,
                optimizer=optimizer,
                seed=seed + i,
                cache_bytes=cache_bytes,
            )
        return cls.over(store.tables, mode=mode, fused=fused)

    @classmethod
    def over(
        cls, tables: Mapping[str, EmbeddingTable], *, mode: str = "sum", fused: bool = True
    ) -> EmbeddingBagCollection:
        """Bags on tables that are there, as `Store.tables` of an opened store."""
        return cls({name: EmbeddingBag(t, mode=mode, fused=fused) for name, t in tables.items()})

    def forward(self, features: Any) -> dict[str, Tensor]:
        """Pool every feature.

        Args:
            features: a mapping feature -> (values, offsets), (values, offsets, weights) or a
                tensor (B, N); or a TorchRec KeyedJaggedTensor.

        Returns:
            feature -> (B, D), in the order of this collection's features.
        """
        pooled = {}
        for feature, name in self.features.items():
            bag = self.bags[name]
            given = features[feature]
            if isinstance(given, Tensor):
                pooled[feature] = bag(given)
            elif isinstance(given, tuple | list):
                pooled[feature] = bag(*given)
            else:  # a JaggedTensor: offsets (B+1,)
                offsets = given.offsets()
                offsets = offsets if bag.include_last_offset else offsets[:-1]
                pooled[feature] = bag(given.values(), offsets, given.weights_or_none())
        return pooled
