"""EmbeddingBag: a pooled lookup that remembers its batch: backward needs only a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_embed import _validate, ops
from sparse_embed._typing import FloatArray
from sparse_embed.batch import Batch, make_batch
from sparse_embed.errors import ArgumentError
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.table import EmbeddingTable


class EmbeddingBag:
    """A framework-free module on a table: `forward` pools, `backward` trains.

    Dropout drops whole embedding vectors: during training each position is kept with probability
    1 - dropout and then scaled by 1 / (1 - dropout), else it counts as zero.  Which ones is a
    function of (table.seed, table.step, position), so a resumed run drops the same ones.  A mean
    still divides by the number (or the weights) of all positions.  Off after `eval()`.

    Source: dropping embedding vectors, Gal and Ghahramani, "A Theoretically Grounded Application of
    Dropout in RNNs" (2016), section 4; inverse scaling, Srivastava et al. (2014), section 10.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        mode: str = "mean",
        *,
        padding_idx: int | None = None,
        dropout: float = 0.0,
        include_last_offset: bool = True,
    ) -> None:
        """
        Args:
            table: where the rows are.
            mode: "sum", "mean", "sqrtn" or "max".
            padding_idx: positions with this value are left out.
            dropout: probability to drop a position, 0 <= dropout < 1; not with "max".
            include_last_offset: False takes torch's (B,) offsets.

        Raises:
            ArgumentError: an argument does not fit.
        """
        if not isinstance(table, EmbeddingTable):
            raise ArgumentError(f"table: expected an EmbeddingTable, got {type(table).__name__}")
        self.table = table
        self.mode = _validate.as_mode(mode)
        _validate.as_padding_idx(padding_idx)
        self.padding_idx = padding_idx
        self.dropout = _validate.as_probability("dropout", dropout)
        if self.dropout and self.mode == "max":
            raise ArgumentError('dropout: not defined for mode="max"')
        self.include_last_offset = include_last_offset
        self.training = True
        self._last: tuple[Batch, tuple[int, ...], FloatArray | None] | None = None

    def train(self, training: bool = True) -> EmbeddingBag:
        """Dropout on (or off)."""
        self.training = bool(training)
        return self

    def eval(self) -> EmbeddingBag:
        """Dropout off."""
        return self.train(False)

    def forward(
        self, indices: object, offsets: object = None, per_sample_weights: object = None
    ) -> FloatArray:
        """Pool: indices (L,) with offsets (B+1,), or indices (..., L); returns (B, D) or (..., D).

        Raises:
            ArgumentError, IndexRangeError: as EmbeddingTable.lookup.
        """
        self._last = None
        batch = make_batch(
            self.table.num_embeddings,
            indices,
            offsets,
            self.mode,
            per_sample_weights,
            self.padding_idx,
            self.include_last_offset,
        )
        if self.dropout and self.training and batch.weights is not None and batch.mode != "sum":
            raise ArgumentError(
                f"per_sample_weights: with dropout and mode={batch.mode!r} their gradient is not "
                'defined here; use mode="sum"'
            )
        factor = self._dropped(batch) if self.dropout and self.training else None
        self._last = (batch, np.asarray(indices).shape, factor)
        result = self.table.lookup(batch.indices, batch.offsets, **self._how(batch, factor))
        return result.reshape(*batch.lead, self.table.embedding_dim)

    __call__ = forward

    def backward(self, grad: object) -> FloatArray | None:
        """Train on the last forward: one optimizer step.

        Args:
            grad: float32, of the shape of forward's result.

        Returns:
            the gradient of per_sample_weights, of the shape of indices, when forward was given any.
        """
        batch, shape, factor = self._need_forward()
        upstream = self._flat(grad, batch)
        weights_grad = self._weights_grad(upstream, batch, shape, factor)
        self.table.update(upstream, batch.indices, batch.offsets, **self._how(batch, factor))
        self._last = None
        return weights_grad

    def gradient(self, grad: object) -> SparseGrad:
        """The gradient of the last forward as a SparseGrad, to be added up and given to
        `table.apply`; nothing is changed."""
        batch, _, factor = self._need_forward()
        upstream = self._flat(grad, batch)
        return self.table.backward(
            upstream, batch.indices, batch.offsets, **self._how(batch, factor)
        )

    def _need_forward(self) -> tuple[Batch, tuple[int, ...], FloatArray | None]:
        if self._last is None:
            raise ArgumentError("backward: expected a forward before it; each one needs its own")
        return self._last

    def _flat(self, grad: object, batch: Batch) -> FloatArray:
        dim = self.table.embedding_dim
        return _validate.as_grad(grad, (*batch.lead, dim)).reshape(batch.num_bags, dim)

    def _how(self, batch: Batch, factor: FloatArray | None) -> dict[str, Any]:
        """Keyword arguments of the table's call: dropout turns every mode into a weighted sum."""
        weights, mode = batch.weights, batch.mode
        if factor is not None:
            weights, mode = factor if weights is None else weights * factor, "sum"
        padding = batch.padding if batch.has_padding else None
        return {"mode": mode, "per_sample_weights": weights, "padding_idx": padding}

    def _dropped(self, batch: Batch) -> FloatArray:
        """(L,) what each position is multiplied by: its share of the bag, times the dropout."""
        scale = ops.dropout_scale(
            self.table.seed, self.table.step, len(batch.indices), self.dropout
        )
        shares = ops.bag_coefficients(
            batch.indices, batch.offsets, batch.weights, str(batch.mode), batch.padding
        )
        if shares.scale is not None and shares.bag_ids is not None:
            scale = scale * shares.scale[shares.bag_ids]
        return scale

    def _weights_grad(
        self,
        upstream: FloatArray,
        batch: Batch,
        shape: tuple[int, ...],
        factor: FloatArray | None,
    ) -> FloatArray | None:
        if batch.weights is None:
            return None
        how = self._how(batch, None)
        result = self.table.per_sample_weights_grad(upstream, batch.indices, batch.offsets, **how)
        if factor is not None:
            result = result * factor
        return result.reshape(shape)
