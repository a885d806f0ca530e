"""Dropout and batch normalisation for vectors that come out of a table.

    bag, drop, norm = EmbeddingBag(table), Dropout(0.2), BatchNorm(table.embedding_dim)
    y = norm(drop(bag(indices, offsets)))             # (B, D), training mode
    bag.backward(drop.backward(norm.backward(grad)))  # the table trains; norm.weight_grad is set

Modules in the manner of `EmbeddingBag`: `forward` remembers, `backward` takes the gradient of the
result and returns that of the input.  `reference_layers` is their plain-NumPy twin.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np

from sparse_embed import _validate, ops
from sparse_embed._typing import AnyArray, FloatArray
from sparse_embed.errors import ArgumentError
from sparse_embed.kernels import batch_norm as _kernels
from sparse_embed.kernels._jit import counter_of_items, guard_fork

__all__ = ["BatchNorm", "Dropout"]


class Dropout:
    """During training, each number is zero with probability p, else times 1 / (1 - p).

    Which ones is a function of (seed, step, position); `step` counts the forwards in training and
    may be set, so a resumed run drops the same ones.  (`EmbeddingBag(dropout=)` drops whole rows.)

    Args:
        p: 0 <= p < 1.
        seed: 0 <= seed < 2^64.

    Raises:
        ArgumentError: an argument is out of range.

    Source: Srivastava et al., Dropout (2014), section 10: inverted scaling.
    """

    def __init__(self, p: float = 0.5, *, seed: int = 0) -> None:
        self.p = _validate.as_probability("p", p)
        self.seed = _validate.as_seed(seed)
        self.step = 0
        self.training = True
        self._scale: FloatArray | None = None

    def train(self, training: bool = True) -> Dropout:
        """On (or off)."""
        self.training = bool(training)
        return self

    def eval(self) -> Dropout:
        """Off: forward returns its input."""
        return self.train(False)

    def forward(self, x: FloatArray) -> FloatArray:
        """x: float32 of any shape; the same shape comes back."""
        self._scale = None
        if not self.training or self.p == 0:
            return x
        scale = ops.dropout_scale(self.seed, self.step, x.size, self.p).reshape(x.shape)
        self.step += 1
        self._scale = scale
        return x * scale

    __call__ = forward

    def backward(self, grad: FloatArray) -> FloatArray:
        """The gradient of the last forward's input."""
        return grad if self._scale is None else grad * self._scale


class BatchNorm:
    """Each column of (B, D) vectors with mean 0 and variance 1 over the batch, then scaled.

        y = (x - mean) / sqrt(variance + eps) * weight + bias

    In training, mean and variance are the batch's (divided by B), and the running ones move by
    `momentum` towards them (the running variance is that of B - 1); after `eval()` the running ones
    are used.  torch.nn.BatchNorm1d's conventions.

    Args:
        num_features: D.
        eps, momentum: as torch's.
        arrays: where running_mean, running_var and num_batches_tracked live, under these names
            behind "<name>."; `store.arrays` makes them part of each commit.  None: a dict.
        name: see `arrays`.

    Attributes:
        weight, bias: (D,) float32, 1 and 0 at first; may be replaced.
        weight_grad, bias_grad: (D,) float32, set by `backward`.

    Raises:
        ArgumentError: an argument is out of range, or an array of that name has another shape.

    Source: Ioffe and Szegedy, Batch Normalization (2015).
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        arrays: MutableMapping[str, AnyArray] | None = None,
        name: str = "batch_norm",
    ) -> None:
        features = _validate.as_integer("num_features", num_features)
        if features < 1:
            raise ArgumentError(f"num_features: expected at least 1, got {features}")
        if not 0 < eps < 1:
            raise ArgumentError(f"eps: expected 0 < eps < 1, got {eps!r}")
        if not 0 < momentum <= 1:
            raise ArgumentError(f"momentum: expected 0 < momentum <= 1, got {momentum!r}")
        self.num_features, self.eps, self.momentum = features, float(eps), float(momentum)
        self.weight: FloatArray = np.ones(features, np.float32)
        self.bias: FloatArray = np.zeros(features, np.float32)
        self.weight_grad: FloatArray | None = None
        self.bias_grad: FloatArray | None = None
        self.training = True
        self._arrays: MutableMapping[str, AnyArray] = {} if arrays is None else arrays
        self._name = name
        self._last: tuple[FloatArray, bool, FloatArray, FloatArray] | None = None
        first: dict[str, AnyArray] = {
            "running_mean": np.zeros(features, np.float32),
            "running_var": np.ones(features, np.float32),
            "num_batches_tracked": np.zeros(1, np.int64),
        }
        for key, value in first.items():
            found = self._arrays.setdefault(f"{name}.{key}", value)
            if found.shape != value.shape or found.dtype != value.dtype:
                raise ArgumentError(
                    f"arrays: expected {name}.{key} of shape {value.shape} and {value.dtype}, got"
                    f" {found.shape} and {found.dtype}"
                )

    @property
    def running_mean(self) -> FloatArray:
        """(D,) float32."""
        return self._arrays[f"{self._name}.running_mean"]

    @property
    def running_var(self) -> FloatArray:
        """(D,) float32."""
        return self._arrays[f"{self._name}.running_var"]

    @property
    def num_batches_tracked(self) -> int:
        """Forwards in training so far."""
        return int(self._arrays[f"{self._name}.num_batches_tracked"][0])

    def train(self, training: bool = True) -> BatchNorm:
        """Use the batch's mean and variance (or the running ones)."""
        self.training = bool(training)
        return self

    def eval(self) -> BatchNorm:
        """Use the running mean and variance."""
        return self.train(False)

    def forward(self, x: object) -> FloatArray:
        """Normalise (B, D) float32 vectors.

        Raises:
            ArgumentError: another shape or dtype; in training, fewer than two vectors.
        """
        batch = _validate.as_matrix(x, "x", None, self.num_features)
        if self.training and len(batch) < 2:
            raise ArgumentError(
                f"x: expected at least two vectors in training to have a variance, got {len(batch)}"
            )
        guard_fork()
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = np.empty_like(mean), np.empty_like(variance)
        out = np.empty_like(batch)
        _kernels.batch_norm_cpu()(
            batch, self.weight, self.bias, np.float32(self.eps), self.training,
            counter_of_items(batch.size), mean, variance, out,
        )  # fmt: skip
        self._last = (batch, self.training, mean, variance)
        if self.training:
            m = np.float32(self.momentum)
            unbiased = variance * np.float32(len(batch) / (len(batch) - 1))
            self.running_mean[:] = self.running_mean + m * (mean - self.running_mean)
            self.running_var[:] = self.running_var + m * (unbiased - self.running_var)
            self._arrays[f"{self._name}.num_batches_tracked"][0] += 1
        return out

    __call__ = forward

    def backward(self, grad: object) -> FloatArray:
        """The gradient of the last forward's input; sets weight_grad and bias_grad.

        Raises:
            ArgumentError: no forward before it, or another shape or dtype.
        """
        if self._last is None:
            raise ArgumentError("backward: expected a forward before it")
        batch, own, mean, variance = self._last
        upstream = _validate.as_grad(grad, batch.shape)
        guard_fork()
        self.weight_grad, self.bias_grad = np.empty_like(mean), np.empty_like(mean)
        dx = np.empty_like(batch)
        _kernels.batch_norm_backward_cpu()(
            upstream, batch, self.weight, np.float32(self.eps), own, mean, variance,
            counter_of_items(batch.size), dx, self.weight_grad, self.bias_grad,
        )  # fmt: skip
        return dx
