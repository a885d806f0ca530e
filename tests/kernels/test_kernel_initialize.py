"""First weights: golden values, the reference's bits, and the shape of the distributions."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed import ops, reference
from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Normal, Uniform, Zeros, initializer_from_dict
from tests.cases import DIMS, assert_same_bits

ROWS = np.array([0, 1, 2**31, 2**40 + 1, 2**63 - 1])

GOLDEN = {
    # seed 0, columns 0 to 3 of rows 0 and 2^63 - 1, as bits: a change of these breaks every file
    Uniform(1.0): [
        [0x3F2D1536, 0x3F09CB70, 0x3F0B0AC6, 0x3F75D8C8],
        [0x3DD78990, 0xBF244D7C, 0x3E4CE178, 0x3F2CE17A],
    ],
    Normal(1.0): [
        [0xBFEB5224, 0xBF065463, 0xBF9260E8, 0xBE9141B5],
        [0xBF2C8587, 0xBF6CFE30, 0x3E4D9AA3, 0x3F599080],
    ],
}


@pytest.mark.parametrize("init", GOLDEN)
def test_golden_values(init):
    rows = np.array([0, 2**63 - 1])
    for initialize in (ops.initialize, reference.initialize):
        assert initialize(init, 0, rows, 4).view(np.uint32).tolist() == GOLDEN[init]


@pytest.mark.parametrize("dim", DIMS)
def test_equals_reference(dim):
    for init in (Uniform(0.05), Normal(0.3), Zeros()):
        for seed in (0, 2**64 - 1):
            found = ops.initialize(init, seed, ROWS, dim)
            assert_same_bits(found, reference.initialize(init, seed, ROWS, dim))


def test_a_column_does_not_depend_on_how_many_there_are():
    wide = ops.initialize(Normal(1.0), 3, ROWS, 64)
    assert_same_bits(ops.initialize(Normal(1.0), 3, ROWS, 7), wide[:, :7])


def test_uniform_is_uniform():
    x = reference.initialize(Uniform(0.5), 1, np.arange(4000), 64).ravel()
    assert x.min() >= -0.5
    assert x.max() < 0.5
    # 256,000 draws: each bin of 16 expects 16,000 with a standard deviation of 122
    counts, _ = np.histogram(x, 16, (-0.5, 0.5))
    assert np.abs(counts - 16000).max() < 5 * 122


def test_normal_has_its_variance_and_stated_tails():
    x = reference.initialize(Normal(2.0), 1, np.arange(4000), 64).ravel().astype(np.float64) / 2
    assert abs(x.mean()) < 5 / np.sqrt(x.size)
    assert abs(x.var() - 1) < 5 * np.sqrt(1.85 / x.size)
    assert abs((x**4).mean() / x.var() ** 2 - 2.85) < 0.05
    assert np.abs(x).max() < 4.9


def test_neighbouring_rows_columns_and_seeds_are_unrelated():
    x = reference.initialize(Normal(1.0), 1, np.arange(2000), 64).astype(np.float64)
    y = reference.initialize(Normal(1.0), 2, np.arange(2000), 64).astype(np.float64)
    bound = 5 / np.sqrt(x.size)
    assert abs((x[1:] * x[:-1]).mean()) < bound
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < bound
    assert abs((x * y).mean()) < bound


@pytest.mark.parametrize("init", [Uniform(0.05), Normal(1.0), Zeros()])
def test_dict_round_trip(init):
    assert initializer_from_dict(init.to_dict()) == init


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"name": "ones"},
        {"name": ["uniform"]},
        {"name": "uniform"},
        {"name": "uniform", "scale": "1"},
        {"name": "uniform", "scale": True},
        {"name": "uniform", "scale": 1.0, "std": 1.0},
        {"name": "zeros", "scale": 1.0},
        {"name": "normal", "std": float("nan")},
        {"name": "normal", "std": -1.0},
        {"name": "normal", "std": 0},
        {"name": "uniform", "scale": float("inf")},
    ],
)
def test_bad_dicts_are_refused(data):
    with pytest.raises(ArgumentError):
        initializer_from_dict(data)
