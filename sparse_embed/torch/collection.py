"""EmbeddingBagCollection: many bags in one call."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sparse_embed._typing import AnyArray
from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Initializer, Uniform
from sparse_embed.optim import Optimizer
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable
from sparse_embed.torch.embedding_bag import EmbeddingBag
from sparse_embed.torch.link import as_numpy
from sparse_embed.torch.many import Many
from sparse_embed.torch.table_module import OPTIMIZER

_INTEGERS = (torch.int32, torch.int64)
_Given: TypeAlias = tuple[AnyArray, AnyArray, Sequence[Tensor | None], Sequence[Tensor]]
"""indices (L,), offsets (F B + 1,), weights, and the tensors that they are of."""


class EmbeddingBagCollection(nn.Module):
    """Many bags in one call, as DLRM and TorchRec have them.

    One lookup brings the rows of all tables, and at the end of backward all tables make their step
    at once.  The features of a shared bag count as one batch, one behind the other.  Features that
    one call cannot take (see `_together`), and all of them under torch.compile, go bag by bag.

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
        self._many: tuple[list[Any], Many | None] | None = None
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
                tensor (B, N); or a TorchRec KeyedJaggedTensor, or whatever has its methods.

        Returns:
            feature -> (B, D), in the order of this collection's features.
        """
        together = None if torch.compiler.is_compiling() else self._together(features)
        if together is not None:
            return together
        return {feature: self._alone(feature, features[feature]) for feature in self.features}

    def _alone(self, feature: str, given: Any) -> Tensor:
        bag = self._bag_of(feature)
        return bag(*_arguments(given, bag.include_last_offset))

    def _bag_of(self, feature: str) -> EmbeddingBag:
        bag: Any = self.bags[self.features[feature]]
        return bag

    # ---- in one call ----------------------------------------------------------------------------

    def _together(self, features: Any) -> dict[str, Tensor] | None:
        """All features that one lookup can take; None when the bags, or this input, need to go one
        by one: max_norm, several bags on one table, bags of different numbers, weights where a
        mode is not "sum", or an error, which then is the bag's own."""
        if self._many is None or self._many[0] != self._standing():
            self._many = self._standing(), self._make_many()
        many = self._many[1]
        if many is None:
            return None
        given = self._whole_jagged(features, many) or self._gathered(features, many)
        if given is None:
            return None
        indices, offsets, weights, tensors = given
        flat = None
        if any(w is not None for w in weights):
            flat = np.concatenate([as_numpy(w) for w in weights if w is not None])
        try:
            batch = many.engine.batch(indices, offsets, per_sample_weights=flat)
        except ArgumentError:
            return None
        return dict(zip(many.features, many(batch, weights, tensors), strict=True))

    def _standing(self) -> list[Any]:
        """What `_make_many` depends on: `load_state_dict` moves bags to other tables."""
        bags: list[Any] = list(self.bags.values())
        return [(bag.table, bag.mode, bag.padding_idx, bag.max_norm) for bag in bags]

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made again."""
        return {**self.__dict__, "_many": None}

    def _make_many(self) -> Many | None:
        bags = {name: self._bag_of(f) for f, name in self.features.items()}
        own = len({id(bag.table) for bag in bags.values()}) == len(bags)
        plain = own and all(bag.max_norm is None for bag in bags.values())
        return Many(bags, self.features) if plain else None

    def _whole_jagged(self, features: Any, many: Many) -> _Given | None:
        """A KeyedJaggedTensor with just these features in this order, as it is."""
        if isinstance(features, Mapping) or not hasattr(features, "keys"):
            return None
        if list(features.keys()) != list(many.features):
            return None
        values, offsets = features.values(), features.offsets()
        weights = features.weights_or_none()
        fits = values.dim() == 1 and values.dtype in _INTEGERS and values.device.type == "cpu"
        if weights is not None:
            fits = fits and weights.dtype == torch.float32 and many.sums
        if not fits:
            return None
        tensors = (values, offsets) if weights is None else (values, offsets, weights)
        given = [] if weights is None else [weights]
        return as_numpy(values), as_numpy(offsets), given, tensors

    def _gathered(self, features: Any, many: Many) -> _Given | None:
        """The features one behind the other."""
        indices, ends, weights, tensors = [], [np.zeros(1, np.int64)], [], []
        at = 0
        for feature in many.features:
            bag = self._bag_of(feature)
            given = _arguments(features[feature], bag.include_last_offset)
            input, offsets, w = (*given, None, None)[:3]
            bag._check(input, offsets, w)
            bag._check_tensor(input)
            if w is not None and not many.sums:
                return None
            if offsets is None:
                bags, width = input.shape
                end = np.arange(1, bags + 1) * width
            else:
                end = as_numpy(offsets)
                if len(end) == 0 or end[0] != 0:
                    return None
                if bag.include_last_offset:
                    if end[-1] != len(input):
                        return None
                    end = end[1:]
                else:
                    end = np.append(end[1:], len(input))
            if len(ends) > 1 and len(end) != len(ends[1]):
                return None
            indices.append(as_numpy(input).reshape(-1))
            ends.append(end + at)
            weights.append(None if w is None else w.reshape(-1))
            tensors += [t for t in (input, offsets, w) if t is not None]
            at += input.numel()
        if any(w is not None for w in weights):
            weights = [
                torch.ones(len(i)) if w is None else w
                for i, w in zip(indices, weights, strict=True)
            ]
        else:
            weights = []
        return np.concatenate(indices), np.concatenate(ends), weights, tensors


def _arguments(given: Any, include_last_offset: bool) -> tuple[Any, ...]:
    """What a bag is called with."""
    if isinstance(given, Tensor):
        return (given,)
    if isinstance(given, tuple | list):
        return tuple(given)
    offsets = given.offsets()  # a JaggedTensor: offsets (B+1,)
    return given.values(), offsets if include_last_offset else offsets[:-1], given.weights_or_none()
