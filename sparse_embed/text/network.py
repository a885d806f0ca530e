"""A classifier's numbers: pooled rows, dropout, batch normalisation, a dense layer of classes.

    x = pool(rows of the text)  (B, F)     F = D, or length * D flattened
    x = batch_norm(dropout(x))             if asked for
    s = x weight' + bias        (B, C)     C = 1 for two classes: the sigmoid of one score

tables    words  (E, D): hashed words and n-grams
          dense  rows of D numbers: C * F/D of weights (class by class), as many as F/D of batch
                 norm's weight and of its bias if there is one, and C/D, rounded up, of biases.
                 Dense parameters are rows as well, so their optimizer, its state, commits and
                 resuming are the table's own.
          fixed  (V, D), no optimizer: pretrained word vectors that stay as they are
arrays    batch_norm.running_mean, .running_var (F,), .num_batches_tracked

Rows are looked up and updated by the public table operations alone.  A row number of E + v in a bag
means row v of `fixed`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_embed._typing import AnyArray, FloatArray, IndexArray
from sparse_embed.initializers import Initializer, Zeros
from sparse_embed.kernels import head
from sparse_embed.kernels._jit import guard_fork
from sparse_embed.layers import BatchNorm, Dropout
from sparse_embed.optim import Optimizer
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.store import Store
from sparse_embed.text.features import PADDING
from sparse_embed.text.labels import Targets

_KINDS = {"softmax": head.SOFTMAX, "ova": head.SIGMOID}


@dataclass(frozen=True)
class Shape:
    """What a network is made of.

    outputs: C.  length: words of a flattened text, 1 when pooled.
    """

    num_embeddings: int
    embedding_dim: int
    outputs: int
    length: int
    pooling: str
    loss: str
    dropout: float
    batch_norm: bool
    seed: int

    @property
    def weight_rows(self) -> int:
        """Rows of `dense` that hold weights."""
        return self.outputs * self.length

    @property
    def dense_rows(self) -> int:
        """Rows of `dense`."""
        norm = 2 * self.length if self.batch_norm else 0
        return self.weight_rows + norm - (-self.outputs // self.embedding_dim)


@dataclass(frozen=True)
class Input:
    """A batch of texts: bags, or (B, length) row numbers with `offsets` None."""

    indices: AnyArray
    offsets: IndexArray | None

    @property
    def count(self) -> int:
        """B."""
        return len(self.indices) if self.offsets is None else len(self.offsets) - 1


@dataclass(frozen=True)
class Weights:
    """By how much examples and classes count: (B,), and (C,) for targets and for others."""

    example: FloatArray
    positive: FloatArray
    negative: FloatArray


def create_tables(
    store: Store,
    shape: Shape,
    *,
    init: Initializer,
    optimizer: Optimizer,
    cache_bytes: int | None,
    fixed: FloatArray | None,
) -> None:
    """The tables of a new network."""
    dim = shape.embedding_dim
    store.create_table(
        "words",
        num_embeddings=shape.num_embeddings,
        embedding_dim=dim,
        init=init,
        optimizer=optimizer,
        seed=shape.seed,
        cache_bytes=cache_bytes,
    )
    dense = store.create_table(
        "dense",
        num_embeddings=shape.dense_rows,
        embedding_dim=dim,
        init=Zeros(),
        optimizer=optimizer,
    )
    if shape.batch_norm:
        rows = np.arange(shape.weight_rows, shape.weight_rows + shape.length)
        dense.assign(rows, np.ones((shape.length, dim), np.float32))
    if fixed is not None:
        table = store.create_table("fixed", num_embeddings=len(fixed), embedding_dim=dim)
        table.assign(np.arange(len(fixed)), fixed)


class Network:
    """Forward, and one step of training, on the tables of a store."""

    def __init__(self, store: Store, shape: Shape) -> None:
        self.shape = shape
        self.words, self.dense = store.tables["words"], store.tables["dense"]
        self.fixed = store.tables.get("fixed")
        self._rows = np.arange(shape.dense_rows)
        self._dropout = Dropout(shape.dropout, seed=shape.seed) if shape.dropout else None
        features = shape.length * shape.embedding_dim
        self.norm = BatchNorm(features, arrays=store.arrays) if shape.batch_norm else None

    # ---- the dense layer's rows -----------------------------------------------------------------

    def _parts(self, rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Views: weight (C, F), bias (C,), and batch norm's weight and bias (F,) (or empty)."""
        shape = self.shape
        weights, norm = shape.weight_rows, shape.length if shape.batch_norm else 0
        first, second, third = weights, weights + norm, weights + 2 * norm
        return (
            rows[:first].reshape(shape.outputs, -1),
            rows[third:].reshape(-1)[: shape.outputs],
            rows[first:second].reshape(-1),
            rows[second:third].reshape(-1),
        )

    # ---- forward --------------------------------------------------------------------------------

    def _pool(self, batch: Input) -> tuple[FloatArray, FloatArray | None]:
        """(B, F), and by what each text's sum was scaled where `fixed` rows take part."""
        dim, features = self.shape.embedding_dim, self.shape.embedding_dim * self.shape.length
        if batch.offsets is None:
            x = self.words.lookup(self._own(batch.indices), padding_idx=PADDING)
            if self.fixed is not None:
                x += self.fixed.lookup(self._other(batch.indices), padding_idx=PADDING)
            return x.reshape(batch.count, features), None
        if self.fixed is None:
            return self.words.lookup(batch.indices, batch.offsets, mode=self.shape.pooling), None
        own, other = self._own(batch.indices), self._other(batch.indices)
        x = self.words.lookup(own, batch.offsets, mode="sum", padding_idx=PADDING)
        x += self.fixed.lookup(other, batch.offsets, mode="sum", padding_idx=PADDING)
        counts = np.maximum(np.diff(batch.offsets), 1).astype(np.float32)[:, None]
        power = {"sum": np.float32(0), "sqrtn": np.float32(0.5), "mean": np.float32(1)}
        scale: FloatArray = counts ** -power[self.shape.pooling]
        return (x * scale).reshape(-1, dim), scale

    def _own(self, indices: AnyArray) -> AnyArray:
        if self.fixed is None:
            return indices
        return np.where(indices >= self.shape.num_embeddings, PADDING, indices)

    def _other(self, indices: AnyArray) -> AnyArray:
        other: AnyArray = np.maximum(indices - self.shape.num_embeddings, PADDING)
        return other

    def scores(self, batch: Input) -> FloatArray:
        """(B, C), without dropout, with the running mean and variance."""
        x, _ = self._pool(batch)
        weight, bias, norm_weight, norm_bias = self._parts(self.dense.lookup(self._rows))
        if self.norm is not None:
            self.norm.eval().weight, self.norm.bias = norm_weight, norm_bias
            x = self.norm(x)
        scores = np.empty((len(x), self.shape.outputs), np.float32)
        guard_fork()
        head.head_scores_cpu()(x, weight, bias, head.counter_of_head(len(x), *weight.shape), scores)
        return scores

    # ---- training -------------------------------------------------------------------------------

    def train(self, batch: Input, targets: Targets, weights: Weights) -> float:
        """One step of both tables; the batch's summed loss."""
        count = batch.count
        if count < 2 and self.norm is not None:
            return 0.0  # one text has no variance
        x, scale = self._pool(batch)
        rows = self.dense.lookup(self._rows)
        weight, bias, norm_weight, norm_bias = self._parts(rows)
        if self._dropout is not None:
            self._dropout.step = self.words.step
            x = self._dropout(x)
        if self.norm is not None:
            self.norm.train().weight, self.norm.bias = norm_weight, norm_bias
            x = self.norm(x)
        grad = np.zeros_like(rows)
        grad_weight, grad_bias, grad_norm_weight, grad_norm_bias = self._parts(grad)
        ds = np.empty((count, self.shape.outputs), np.float32)
        dx, losses = np.empty_like(x), np.empty(count, np.float64)
        guard_fork()
        head.head_slopes_cpu()(
            x, weight, bias, _KINDS[self.shape.loss], targets.classes, targets.offsets,
            weights.example, weights.positive, weights.negative,
            head.counter_of_head(count, *weight.shape), ds, dx, losses,
        )  # fmt: skip
        head.head_gradients_cpu()(
            x, ds, head.counter_of_head(count, *weight.shape), grad_weight, grad_bias
        )
        if self.norm is not None:
            dx = self.norm.backward(dx)
            grad_norm_weight[:], grad_norm_bias[:] = self.norm.weight_grad, self.norm.bias_grad
        if self._dropout is not None:
            dx = self._dropout.backward(dx)
        self._update_words(batch, dx, scale)
        self.dense.apply(SparseGrad.owning(self._rows, grad, self.shape.dense_rows))
        return float(losses.sum())

    def _update_words(self, batch: Input, dx: FloatArray, scale: FloatArray | None) -> None:
        if batch.offsets is None:
            grad = dx.reshape(batch.count, self.shape.length, self.shape.embedding_dim)
            self.words.update(grad, self._own(batch.indices), padding_idx=PADDING)
        elif scale is None:
            self.words.update(dx, batch.indices, batch.offsets, mode=self.shape.pooling)
        else:
            own = self._own(batch.indices)
            self.words.update(dx * scale, own, batch.offsets, mode="sum", padding_idx=PADDING)
