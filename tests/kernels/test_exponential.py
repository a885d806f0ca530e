"""e^x and logarithms of additions and products: accurate, and the same bits interpreted."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from sparse_embed.kernels.exponential import exp_of, log_above, log_of
from tests.cases import assert_same_bits


@numba.njit(error_model="numpy")
def compiled(x, y, z, found):
    for i in range(x.size):
        found[0, i] = exp_of(x[i])
        found[1, i] = log_of(y[i])
        found[2, i] = log_above(z[i])


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)
    n = 200_000
    x = -np.concatenate([rng.random(n) * 87, np.logspace(-10, 1.9, n), [0, 87]])
    y = np.concatenate([rng.random(n), np.logspace(-30, 0, n), [0, 1]])
    z = np.concatenate([1 + rng.random(n) * 300, np.logspace(0, 9.6, n), [1, 2]])
    return [array.astype(np.float32) for array in (x, y, z)]


def test_accuracy_and_bits(numbers):
    found = np.empty((3, len(numbers[0])), np.float32)
    compiled(*numbers, found)
    for ours, function, given, ulp in zip(
        found, (np.exp, np.log1p, np.log), numbers, (1, 2, 2), strict=True
    ):
        exact = function(given.astype(np.float64))
        off = np.abs(ours - exact) / np.spacing(np.maximum(exact, 1e-37).astype(np.float32))
        assert off.max() <= ulp
    some = np.random.default_rng(1).integers(0, len(numbers[0]), 300)
    plain = [
        [function(given[i]) for i in some]
        for function, given in zip((exp_of, log_of, log_above), numbers, strict=True)
    ]
    assert_same_bits(np.array(plain, np.float32), found[:, some])


def test_the_ends():
    least = exp_of(np.float32(-87))
    assert least > np.finfo(np.float32).tiny
    assert exp_of(np.float32(-1e30)) == exp_of(np.float32(-np.inf)) == least
    assert exp_of(np.float32(0)) == 1
    assert log_of(np.float32(0)) == log_above(np.float32(1)) == 0
    for function in (exp_of, log_of, log_above):
        assert np.isnan(function(np.float32(np.nan)))
