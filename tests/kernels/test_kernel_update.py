"""Backward, update and apply: the reference's bits for every optimizer, dim and batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparse_embed import ops, reference
from sparse_embed.optim import SGD, Adagrad, LazyAdam, RowWiseAdagrad, RowWiseAdam
from tests.cases import FEW_DIMS, assert_same_bits, batches, hot_batch, records, twin

BATCHES = batches()
OPTIMIZERS = [
    SGD(0.1),
    SGD(0.1, weight_decay=0.01, clip_value=0.5),
    Adagrad(0.1, lr_decay=0.01, initial_accumulator_value=0.5, weight_decay=0.01),
    RowWiseAdagrad(0.1, initial_accumulator_value=0.25, weight_decay=0.01, clip_norm=0.7),
    LazyAdam(0.01),
    LazyAdam(0.01, weight_decay=0.1, eps_mode="outside", clip_value=0.4, clip_norm=0.9),
    RowWiseAdam(0.01, betas=(0.0, 0.9), weight_decay=0.1),
]


def _grad(batch, dim, mode):
    rng = np.random.default_rng(batch.num_bags)
    rows = len(batch.indices) if mode is None else batch.num_bags
    return rng.standard_normal((rows, dim)).astype(np.float32)


def _check(batch, dim, optimizer, mode):
    """update, backward + apply, the reference's update; in two chunks of unique rows too."""
    rec = records(batch.num_embeddings, dim, optimizer)
    slots, padding = batch.slots, batch.padding_idx
    offsets = None if mode is None else batch.offsets
    weights = None if mode in ("max", None) else batch.weights
    grad = _grad(batch, dim, mode)
    merged = ops.merge(batch.indices, padding)
    coefficients = ops.bag_coefficients(batch.indices, offsets, weights, mode or "sum", padding)
    same = reference.bag_coefficients(batch.indices, offsets, weights, mode or "sum", padding)
    for name in ("bag_ids", "weights", "scale"):
        found, expected = getattr(coefficients, name), getattr(same, name)
        assert (found is None) == (expected is None)
        if found is not None:
            assert_same_bits(found, expected)
    argmax = None
    if mode == "max":
        argmax = ops.max_positions(rec, slots, batch.indices, batch.offsets, padding)
    values = reference.backward(merged, coefficients, grad, argmax)
    assert_same_bits(ops.backward(merged, coefficients, grad, argmax), values)

    expected, num_unique = twin(rec), len(merged)
    args = (coefficients, grad, argmax, optimizer, 3, 0.05)
    reference.update(expected, merged.indices, merged, 0, num_unique, *args)
    for cuts in ([0, num_unique], [0, num_unique // 3, num_unique]):
        found = twin(rec)
        for u0, u1 in itertools.pairwise(cuts):
            ops.update(found, merged.indices[u0:u1], merged, u0, u1, *args)
        assert_same_bits(found.records, expected.records)
        assert_same_bits(found.flags, expected.flags)
    found = twin(rec)
    ops.apply(found, merged.indices, merged.indices, values, optimizer, 3, 0.05)
    assert_same_bits(found.records, expected.records)
    assert_same_bits(found.flags, expected.flags)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", None])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_batches_and_modes(batch, mode):
    _check(batch, 7, LazyAdam(0.01), mode)


@pytest.mark.parametrize("dim", FEW_DIMS)
def test_every_dim(dim):
    batch = next(batch for batch in BATCHES if batch.name == "weighted, padding -1")
    _check(batch, dim, OPTIMIZERS[5], "mean")


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("dim", [7, 64])
def test_every_optimizer(optimizer, dim):
    _check(next(batch for batch in BATCHES if batch.name == "zipf"), dim, optimizer, "sum")


@pytest.mark.parametrize("mode", ["mean", None])
def test_hot_rows_are_summed_in_blocks(mode):
    _check(hot_batch(), 7, LazyAdam(0.01), mode)


def test_untouched_rows_keep_their_bits_and_flags():
    batch = next(batch for batch in BATCHES if batch.name == "zipf")
    rec = records(batch.num_embeddings, 7, LazyAdam())
    before = twin(rec)
    merged = ops.merge(batch.indices, batch.padding_idx)
    coefficients = ops.bag_coefficients(
        batch.indices, batch.offsets, None, "sum", batch.padding_idx
    )
    grad = _grad(batch, 7, "sum")
    ops.update(
        rec, merged.indices, merged, 0, len(merged), coefficients, grad, None, LazyAdam(), 1, 1.0
    )
    untouched = np.setdiff1d(np.arange(batch.num_embeddings), merged.indices)
    assert_same_bits(rec.records[untouched], before.records[untouched])
    assert not rec.flags[untouched].any()
    assert (rec.flags[merged.indices] == 1).all()
    assert_same_bits(rec.records[:, 21:], before.records[:, 21:])  # padding lanes


def test_a_weight_that_lands_on_zero_is_not_virgin():
    rec = records(2, 3, SGD(1.0), virgin=0.0)
    rec.records[0, :3] = 1.0
    rec.flags[0] = 16
    one = np.array([0])
    ops.apply(rec, one, one, np.ones((1, 3), np.float32), SGD(1.0), 1, 1.0)
    assert rec.records[0, :3].view(np.uint32).tolist() == [0x80000000, 0, 0]
    assert rec.flags[0] == 17


def test_nan_and_infinity_in_the_gradient_do_what_the_reference_does():
    for optimizer in OPTIMIZERS:
        rec = records(4, 7, optimizer, virgin=0.0)
        values = np.zeros((3, 7), np.float32)
        values[0, 1], values[1, 2], values[2, 6] = np.nan, np.inf, -np.inf
        rows = np.arange(3)
        expected = twin(rec)
        ops.apply(rec, rows, rows, values, optimizer, 1, 0.1)
        with np.errstate(all="ignore"):
            reference.apply(expected, rows, rows, values, optimizer, 1, 0.1)
        # The sign of a NaN that is made anew is the processor's business.
        np.testing.assert_array_equal(rec.records, expected.records)


def test_gradient_of_a_sum_is_the_adjoint_of_lookup():
    """<lookup(W), G> == <W, backward(G)>, up to float32 rounding of sums of 1000 products."""
    batch = next(batch for batch in BATCHES if batch.name == "zipf")
    rec = records(batch.num_embeddings, 7)
    grad = _grad(batch, 7, "mean")
    for mode in ("sum", "mean", "sqrtn", "max"):
        args = (rec, batch.slots, batch.indices, batch.offsets)
        bags = ops.lookup_bags(*args, None, mode, batch.padding_idx)
        argmax = ops.max_positions(*args, batch.padding_idx) if mode == "max" else None
        merged = ops.merge(batch.indices, batch.padding_idx)
        coefficients = ops.bag_coefficients(
            batch.indices, batch.offsets, None, mode, batch.padding_idx
        )
        values = ops.backward(merged, coefficients, grad, argmax).astype(np.float64)
        rows = ops.lookup(rec, merged.indices, merged.indices, ops.NO_PADDING)
        forward = (bags.astype(np.float64) * grad).sum()
        np.testing.assert_allclose((rows * values).sum(), forward, rtol=1e-5, atol=1e-4)


def test_splitting_a_batch_adds_the_gradients():
    batch = next(batch for batch in BATCHES if batch.name == "one bag")
    grad = np.ones((60, 7), np.float32)
    coefficients = ops.Coefficients(None, None, None)
    whole = ops.backward(ops.merge(batch.indices, ops.NO_PADDING), coefficients, grad, None)
    total = np.zeros((50, 7), np.float32)
    for part in (batch.indices[:25], batch.indices[25:]):
        merged = ops.merge(part, ops.NO_PADDING)
        total[merged.indices] += ops.backward(merged, coefficients, grad, None)
    assert_same_bits(total[np.unique(batch.indices)], whole)  # counts: exact in float32


def test_weights_without_bags_beside_padding():
    """Position k is bag k, also where positions before it were dropped."""
    indices, weights = np.array([9, 9, 9, 3, 5, 3]), np.arange(1, 7, dtype=np.float32)
    grad = np.arange(12, dtype=np.float32).reshape(6, 2)
    merged = ops.merge(indices, 9)
    shares = ops.bag_coefficients(indices, None, weights, "sum", 9)
    found = ops.backward(merged, shares, grad, None)
    np.testing.assert_array_equal(found, [4 * grad[3] + 6 * grad[5], 5 * grad[4]])
