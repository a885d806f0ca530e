"""Merge: the stable order, the segments, and rows up to 2^63 - 1."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed import ops, reference
from tests.cases import assert_same_bits, batches, hot_batch, zipf

PAD = ops.NO_PADDING


def _check(indices, padding_idx=PAD):
    found, expected = ops.merge(indices, padding_idx), reference.merge(indices, padding_idx)
    assert_same_bits(found.indices, expected.indices)
    assert_same_bits(found.starts, expected.starts)
    assert_same_bits(found.positions, expected.positions)


@pytest.mark.parametrize("batch", [*batches(), hot_batch()], ids=str)
def test_equals_reference(batch):
    _check(batch.indices, batch.padding_idx)


@pytest.mark.parametrize("length", [1, 2, 8191, 8193, 100_000, 600_000])
@pytest.mark.parametrize("bits", [1, 12, 13, 24, 43, 63])
def test_lengths_and_key_widths(length, bits):
    rng = np.random.default_rng(length + bits)
    indices = rng.integers(0, 2**bits, length)
    indices[rng.integers(0, length, 2)] = [0, 2**bits - 1]
    _check(indices)


def test_extremes_and_padding():
    rng = np.random.default_rng(1)
    indices = rng.choice(np.array([0, 1, 2**31, 2**32, 2**62, 2**63 - 1, -5]), 20_000)
    _check(indices, -5)
    _check(indices.clip(0), 2**63 - 1)
    _check(indices.clip(0), 0)


@pytest.mark.parametrize("bits", [6, 24, 63])  # 63: with the payload no word holds them
def test_what_is_sorted_in_the_place_of_positions(bits):
    rng = np.random.default_rng(4)
    indices = rng.integers(0, 2**bits, 30_000)
    indices[:9], indices[9::97] = 2**bits - 1, 5
    places = np.sort(rng.integers(0, 2000, len(indices)))
    found, expected = ops.merge_places(indices, 5, places, 2000), reference.merge(indices, 5)
    assert_same_bits(found.indices, expected.indices)
    assert_same_bits(found.starts, expected.starts)
    assert_same_bits(found.positions, places[expected.positions])


def test_zipf():
    _check(zipf(np.random.default_rng(2), 50_000, 131_072))


def test_buffers_of_an_earlier_batch_do_not_show():
    rng = np.random.default_rng(3)
    first = ops.merge(rng.integers(0, 1000, 5000), PAD)
    kept = [first.indices.copy(), first.starts.copy(), first.positions.copy()]
    ops.merge(rng.integers(0, 1000, 5000), PAD)
    for now, before in zip((first.indices, first.starts, first.positions), kept, strict=True):
        assert_same_bits(now, before)
