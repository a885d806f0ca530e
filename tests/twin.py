"""A table in plain NumPy: what EmbeddingTable must equal, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_embed import reference
from sparse_embed.ops import NO_PADDING, Records


class TwinTable:
    """All E records in one array, every operation by `reference`.  Small E only."""

    def __init__(self, num_embeddings: int, dim: int, init: Any, optimizer: Any, seed: int) -> None:
        lanes = dim + sum(field.lanes for field in optimizer.state_fields(dim))
        records = np.zeros((num_embeddings, lanes), np.float32)
        self.rec = Records(records, np.zeros(num_embeddings, np.uint8), dim, init, seed)
        self.optimizer = optimizer
        self.step = 0
        self.lr = optimizer.lr

    @staticmethod
    def _padding(padding_idx: int | None) -> int:
        return NO_PADDING if padding_idx is None else padding_idx

    def weights(self) -> np.ndarray:
        rows = np.arange(len(self.rec.records))
        return reference.lookup(self.rec, rows, rows, NO_PADDING)

    def lookup(self, indices, offsets=None, *, mode="sum", weights=None, padding_idx=None):
        pad = self._padding(padding_idx)
        if offsets is None:
            return reference.lookup(self.rec, indices, indices, pad)
        return reference.lookup_bags(self.rec, indices, indices, offsets, weights, mode, pad)

    def update(self, grad, indices, offsets=None, *, mode="sum", weights=None, padding_idx=None):
        pad = self._padding(padding_idx)
        argmax = None
        if mode == "max" and offsets is not None:
            argmax = reference.max_positions(self.rec, indices, indices, offsets, pad)
        merged = reference.merge(indices, pad)
        coefficients = reference.bag_coefficients(indices, offsets, weights, mode, pad)
        self.step += 1
        reference.update(
            self.rec,
            merged.indices,
            merged,
            0,
            len(merged.indices),
            coefficients,
            grad,
            argmax,
            self.optimizer,
            self.step,
            self.lr,
        )
