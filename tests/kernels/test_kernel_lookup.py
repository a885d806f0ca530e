"""Lookup of rows and bags equals the reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed import ops, reference
from sparse_embed.initializers import Uniform
from tests.cases import DIMS, assert_same_bits, batches, records

BATCHES = batches()
MODES = ("sum", "mean", "sqrtn", "max")


def _check(batch, dim, **made):
    rec = records(batch.num_embeddings, dim, **made)
    args = (rec, batch.slots, batch.indices)
    assert_same_bits(
        ops.lookup(*args, batch.padding_idx), reference.lookup(*args, batch.padding_idx)
    )
    for mode in MODES:
        weights = None if mode == "max" else batch.weights
        rest = (batch.offsets, weights, mode, batch.padding_idx)
        assert_same_bits(ops.lookup_bags(*args, *rest), reference.lookup_bags(*args, *rest))
    rest = (batch.offsets, batch.padding_idx)
    assert_same_bits(ops.max_positions(*args, *rest), reference.max_positions(*args, *rest))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_equals_reference(batch):
    _check(batch, 7)


@pytest.mark.parametrize("dim", DIMS)
def test_equals_reference_for_every_dim(dim):
    _check(next(batch for batch in BATCHES if batch.name == "weighted, padding -1"), dim)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("virgin", [0.0, 0.02])
def test_rows_that_take_several_passes(batch, virgin):
    """With a virgin row in it, a bag is summed a row at a time."""
    _check(batch, 257, virgin=virgin)


def test_many_chunks():
    """Work is cut by positions and bags; cuts fall in long bags and in runs of empty ones."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate([np.zeros(3000, np.int64), [2500, 1, 0, 1100], rng.integers(0, 4, 900)])
    offsets = np.concatenate([[0], np.cumsum(sizes), np.full(1500, sizes.sum())])
    indices = rng.integers(0, 500, offsets[-1])
    rec = records(500, 7)
    args = (rec, indices, indices, offsets, None, "sum", ops.NO_PADDING)
    assert_same_bits(ops.lookup_bags(*args), reference.lookup_bags(*args))


def test_slots_need_not_be_the_row_numbers():
    rec = records(10, 7)
    rows = np.array([2**62, 5, 2**63 - 1])
    slots = np.array([9, 0, 4])
    rec.records[0] = 1.5
    rec.records[4] = 0  # virgin: its weights follow from the row number, not from the slot
    found = ops.lookup(rec, slots, rows, ops.NO_PADDING)
    assert_same_bits(found[1], rec.records[0, :7])
    assert_same_bits(found[2], reference.initialize(rec.init, rec.seed, rows[2:], 7)[0])


def test_nan_and_infinities():
    rec = records(4, 7, virgin=0.0)
    rec.records[1, :7] = [np.nan, np.inf, -np.inf, 1, -0.0, 0.0, np.nan]
    rec.records[2, :7] = [1, np.inf, np.inf, np.nan, 0.0, -0.0, np.nan]
    indices, offsets = np.array([1, 2, 2, 1]), np.array([0, 2, 4])
    args = (rec, indices, indices, offsets)
    found = ops.lookup_bags(*args, None, "max", ops.NO_PADDING)
    assert_same_bits(found, reference.lookup_bags(*args, None, "max", ops.NO_PADDING))
    first = ops.max_positions(*args, ops.NO_PADDING)
    assert_same_bits(first, reference.max_positions(*args, ops.NO_PADDING))


def test_first_position_wins():
    rec = records(3, 3, virgin=0.0)
    rec.records[:, :3] = 2.0
    indices = np.array([0, 1, 2, 0])
    found = ops.max_positions(rec, indices, indices, np.array([0, 3, 4]), ops.NO_PADDING)
    assert found.tolist() == [[0, 0, 0], [3, 3, 3]]


def test_weights_that_cancel_give_zero():
    """TensorFlow's rule: a mean with a zero denominator is 0, not infinity."""
    rec = records(3, 3, virgin=0.0)
    indices, weights = np.array([0, 1]), np.array([1, -1], np.float32)
    args = (rec, indices, indices, np.array([0, 2]))
    assert not ops.lookup_bags(*args, weights, "mean", ops.NO_PADDING).any()
    assert not ops.lookup_bags(*args, weights * 0, "sqrtn", ops.NO_PADDING).any()


def test_more_than_2_31_elements():
    """An offset into the records beyond 32 bits; the pages in between are never touched."""
    dim, rows = 64, 2**25 + 8
    data = np.zeros((rows, dim), np.float32)
    data[-1] = 7.0
    rec = ops.Records(data, np.zeros(rows, np.uint8), dim, Uniform(1.0), 0)
    found = ops.lookup(rec, np.array([rows - 1]), np.array([rows - 1]), ops.NO_PADDING)
    assert (found == 7.0).all()
