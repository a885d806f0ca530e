"""Gradient of per_sample_weights: the reference's bits, and the derivative by differences."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed import ops, reference
from tests.cases import FEW_DIMS, assert_same_bits, batches, records

BATCHES = batches()


def _check(batch, dim):
    rec = records(batch.num_embeddings, dim)
    grad = np.random.default_rng(3).standard_normal((batch.num_bags, dim)).astype(np.float32)
    bag_ids = ops.bag_coefficients(
        batch.indices, batch.offsets, None, "sum", batch.padding_idx
    ).bag_ids
    args = (rec, batch.slots, batch.indices, grad, bag_ids, batch.padding_idx)
    dots = ops.dots(*args)
    assert_same_bits(dots, reference.dots(*args))
    for mode in ("sum", "mean", "sqrtn"):
        rest = (dots, batch.indices, batch.offsets, batch.weights, mode, batch.padding_idx)
        assert_same_bits(ops.weights_grad(*rest), reference.weights_grad(*rest))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_equals_reference(batch):
    _check(batch, 7)


@pytest.mark.parametrize("dim", FEW_DIMS)
def test_every_dim(dim):
    _check(next(batch for batch in BATCHES if batch.name == "weighted, padding -1"), dim)


def test_unpooled():
    rec = records(9, 7)
    indices = np.array([3, 3, 8])
    grad = np.arange(21, dtype=np.float32).reshape(3, 7)
    args = (rec, indices, indices, grad, None, ops.NO_PADDING)
    assert_same_bits(ops.dots(*args), reference.dots(*args))


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_is_the_derivative(mode):
    """Central differences in float64 of the formulas of `kernels/lookup.py`, rtol 1e-3."""
    rng = np.random.default_rng(0)
    rec = records(20, 7, virgin=0.0)
    indices, offsets = rng.integers(0, 20, 12), np.array([0, 5, 12])
    weights = rng.uniform(0.5, 2.0, 12).astype(np.float32)
    grad = rng.standard_normal((2, 7)).astype(np.float32)

    def loss(w):
        total = 0.0
        for b in range(2):
            part = slice(offsets[b], offsets[b + 1])
            bag = w[part] @ rec.records[indices[part], :7].astype(np.float64)
            if mode != "sum":
                bag /= w[part].sum() if mode == "mean" else np.sqrt((w[part] ** 2).sum())
            total += bag @ grad[b]
        return total

    coefficients = ops.bag_coefficients(indices, offsets, weights, mode, ops.NO_PADDING)
    dots = ops.dots(rec, indices, indices, grad, coefficients.bag_ids, ops.NO_PADDING)
    found = ops.weights_grad(dots, indices, offsets, weights, mode, ops.NO_PADDING)
    for k in range(12):
        up, down = weights.astype(np.float64), weights.astype(np.float64)
        up[k] += 1e-5
        down[k] -= 1e-5
        np.testing.assert_allclose(found[k], (loss(up) - loss(down)) / 2e-5, rtol=1e-3, atol=1e-5)
