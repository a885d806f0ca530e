"""Batch normalisation and a classifier's dense layer in slow, plain NumPy.

The specification of `layers` and `kernels/head.py`: same order of additions.  (That of dropout is
`reference.dropout_scale`.)  Every function works
in the dtype of its input, so that a test can check gradients by differences in float64.
"""

from __future__ import annotations

import numpy as np

from sparse_embed._typing import AnyArray

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "dense_backward",
    "dense_scores",
    "sigmoid_gradient",
    "softmax_gradient",
]


def _sum(rows: AnyArray) -> AnyArray:
    """From left to right from +0.0."""
    total = np.zeros_like(rows[0]) if len(rows) else np.zeros(rows.shape[1:], rows.dtype)
    for row in rows:
        total = total + row
    return total


def batch_norm(
    x: AnyArray,
    weight: AnyArray,
    bias: AnyArray,
    eps: float,
    statistics: tuple[AnyArray, AnyArray] | None = None,
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """y, mean and variance; `statistics` are given ones, else they are the batch's own."""
    count = x.dtype.type(len(x))
    if statistics is None:
        mean = _sum(x) / count
        variance = _sum((x - mean) * (x - mean)) / count
    else:
        mean, variance = statistics
    r = x.dtype.type(1) / np.sqrt(variance + x.dtype.type(eps))
    return (x - mean) * r * weight + bias, mean, variance


def batch_norm_backward(
    grad: AnyArray,
    x: AnyArray,
    weight: AnyArray,
    eps: float,
    mean: AnyArray,
    variance: AnyArray,
    own: bool,
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """dx, dweight, dbias."""
    one, count = x.dtype.type(1), x.dtype.type(len(x))
    r = one / np.sqrt(variance + x.dtype.type(eps))
    n = (x - mean) * r
    dweight, dbias = _sum(grad * n), _sum(grad)
    g = grad - dbias / count - n * (dweight / count) if own else grad
    return weight * r * g, dweight, dbias


def _dot(a: AnyArray, b: AnyArray) -> AnyArray:
    """Sums over the last axis: 16 lanes and a tree."""
    products = a * b
    full = -(-products.shape[-1] // 16) * 16
    padded = np.zeros((*products.shape[:-1], full), products.dtype)
    padded[..., : products.shape[-1]] = products
    lanes = np.zeros((*products.shape[:-1], 16), products.dtype)
    for block in range(full // 16):
        lanes = lanes + padded[..., block * 16 : block * 16 + 16]
    for width in (8, 4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0]


def dense_scores(hidden: AnyArray, weight: AnyArray, bias: AnyArray) -> AnyArray:
    """s (B, C)"""
    return _dot(hidden[:, None, :], weight[None, :, :]) + bias


def dense_backward(ds: AnyArray, hidden: AnyArray, weight: AnyArray) -> tuple[AnyArray, ...]:
    """dhidden (B, F), dweight (C, F), dbias (C,)"""
    dhidden = _sum(np.swapaxes(ds[:, :, None] * weight[None, :, :], 0, 1))
    dweight = _sum(ds[:, :, None] * hidden[:, None, :])
    return dhidden, dweight, _sum(ds)


def softmax_gradient(s: AnyArray, share: AnyArray, example: AnyArray) -> tuple[AnyArray, AnyArray]:
    """ds (B, C) and losses (B,); share (B, C) is each target's part, 0 elsewhere."""
    shifted = s - s.max(axis=1, keepdims=True)
    e = np.exp(shifted)
    shares = share.sum(axis=1, keepdims=True)
    total = e.sum(axis=1, keepdims=True)
    ds = example[:, None] * (shares * e / total - share)
    return ds, example * (shares[:, 0] * np.log(total[:, 0]) - (share * shifted).sum(axis=1))


def sigmoid_gradient(
    s: AnyArray, is_target: AnyArray, positive: AnyArray, negative: AnyArray, example: AnyArray
) -> tuple[AnyArray, AnyArray]:
    """ds (B, C) and losses (B,)"""
    p = 1 / (1 + np.exp(-s))
    ds = np.where(is_target, positive * (p - 1), negative * p)
    losses = np.where(is_target, positive * np.logaddexp(0, -s), negative * np.logaddexp(0, s))
    return example[:, None] * ds, example * losses.sum(axis=1)
