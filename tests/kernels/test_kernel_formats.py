"""Narrow records: conversions against NumPy and torch, rounding's noise, every operation against
its twin."""

from __future__ import annotations

import functools

import numba
import numpy as np
import pytest

from sparse_embed import ops, reference
from sparse_embed import reference_formats as twin_of
from sparse_embed.dtypes import FLOAT32, Precision, narrow, widen
from sparse_embed.kernels import formats
from sparse_embed.optim import SGD, Adagrad, LazyAdam, RowWiseAdagrad, RowWiseAdam
from sparse_embed.storage.layout import Layout
from tests.cases import assert_same_bits, batches, narrow_records, twin

DIM = 7  # odd: half a lane of padding
BATCHES = batches()
HALVES = ("float16", "bfloat16")
GOLDEN_NOISE = (
    ["641f8228", "21687cb3", "98deb8bb", "6b21e61b"],
    ["2eef6ebe", "087e53b8", "c35f2a40", "c67bd1d3"],
)
GOLDEN_ROUNDINGS = (  # columns 0 to 7 of row 0 in step 1, seed 0
    ("bfloat16", 0.1, "3dcd 3dcc 3dcd 3dcd 3dcd 3dcd 3dcd 3dcd"),
    ("bfloat16", -3e-6, "b649 b649 b649 b649 b64a b64a b64a b649"),
    ("float16", 0.1, "2e67 2e67 2e66 2e66 2e66 2e66 2e66 2e66"),
    ("float16", -3e-6, "8032 8033 8032 8032 8032 8032 8032 8032"),
)


@functools.cache
def rounding_of(dtype: str, stochastic: bool):
    """words[i] = the rounding function of x[i], noise[i]"""
    name = f"{'stochastic' if stochastic else 'nearest'}_{dtype}"
    function = getattr(formats, name)

    @numba.njit(error_model="numpy")
    def by_noise(x, noise, words):
        for i in range(x.shape[0]):
            words[i] = function(x[i], noise[i])

    @numba.njit(error_model="numpy")
    def to_nearest(x, noise, words):
        for i in range(x.shape[0]):
            words[i] = function(x[i])

    return by_noise if stochastic else to_nearest


def rounded(x, dtype, noise=None):
    x = np.ascontiguousarray(x, np.float32)
    words = np.empty(x.shape, np.uint16)
    zeros = np.zeros(x.shape, np.uint32)
    rounding_of(dtype, noise is not None)(x, zeros if noise is None else noise, words)
    return words


def hard_numbers() -> np.ndarray:
    """Every float16 and bfloat16, their neighbours, halfway points, and random bits."""
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    with np.errstate(invalid="ignore"):
        widened = halves.view(np.float16).astype(np.float32)
    exact = np.concatenate([widened, widen(halves, "bfloat16")])
    words = exact.view(np.uint32)
    near = [words + np.uint32(d) for d in (0, 1, 2**32 - 1, 0x1000, 0x0FFF, 0x1001, 0x8000, 0x7FFF)]
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    return np.concatenate([*near, random]).view(np.float32)


@pytest.mark.parametrize("dtype", HALVES)
def test_to_nearest(dtype):
    x = hard_numbers()
    found = rounded(x, dtype)
    assert_same_bits(found, narrow(x, dtype).view(np.uint16))
    some = np.random.default_rng(1).choice(x, 3000)
    assert_same_bits(rounded(some, dtype), twin_of.to_stored(some, dtype))
    if dtype == "bfloat16":
        torch = pytest.importorskip("torch")
        numbers = x[~np.isnan(x)]
        theirs = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy()
        assert_same_bits(rounded(numbers, dtype), theirs.view(np.uint16))


@pytest.mark.parametrize("dtype", HALVES)
def test_by_noise(dtype):
    rng = np.random.default_rng(2)
    x = rng.choice(hard_numbers(), 3000)
    noise = rng.integers(0, 2**32, x.size, dtype=np.uint32)
    noise[:4] = 0, 2**32 - 1, 0xFFFF, 0x10000
    expected = [
        twin_of.stored_number(float(v), dtype, int(n)) for v, n in zip(x, noise, strict=True)
    ]
    assert_same_bits(rounded(x, dtype, noise), np.array(expected, np.uint16))


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_stored_already_stays(dtype):
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    numbers = twin_of.from_stored(halves, dtype)
    kept = ~np.isnan(numbers)
    noise = np.full(halves.shape, 2**32 - 1, np.uint32)
    assert_same_bits(rounded(numbers, dtype, noise)[kept], halves[kept])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("x", [0.1, -3.3, 1e-6, -2e-5, 1234.5678])
def test_the_mean_is_kept(dtype, x):
    """100,000 draws: within five standard errors, where rounding to nearest is far off."""
    n = 100_000
    seeds = [twin_of.noise(3, step, row, column)
             for step in range(10) for row in range(100) for column in range(100)]  # fmt: skip
    noise = np.array(seeds, np.uint32)
    x32 = np.full(n, x, np.float32)
    found = twin_of.from_stored(rounded(x32, dtype, noise), dtype).astype(np.float64)
    assert abs(found.mean() - float(x32[0])) <= 5 * found.std() / n**0.5 + 1e-12


def test_noise_is_even_and_unrelated():
    """Bits are fair; neighbours in step, row and column do not go together."""
    bits = np.array(
        [[[twin_of.noise(0, step, row, column) for column in range(32)] for row in range(32)]
         for step in range(32)], np.uint32
    )  # fmt: skip
    upper = bits >> np.uint32(16)
    for bit in range(16):
        share = ((upper >> np.uint32(bit)) & 1).mean()
        assert abs(share - 0.5) < 5 * 0.5 / bits.size**0.5
    centred = upper.astype(np.float64) - 32767.5
    for axis in range(3):
        a, b = np.delete(centred, 0, axis), np.delete(centred, -1, axis)
        correlation = (a * b).mean() / centred.var()
        assert abs(correlation) < 5 / a.size**0.5


def test_golden_noise_and_roundings():
    """What a file's history depends on: never to change."""
    assert [f"{twin_of.noise(0, 1, 0, c):08x}" for c in range(4)] == GOLDEN_NOISE[0]
    last = (2**64 - 1, 2**40, 2**63 - 1)
    assert [f"{twin_of.noise(*last, c):08x}" for c in range(4)] == GOLDEN_NOISE[1]
    noise = np.array([twin_of.noise(0, 1, 0, c) for c in range(8)], np.uint32)
    for dtype, x, expected in GOLDEN_ROUNDINGS:
        found = rounded(np.full(8, x, np.float32), dtype, noise)
        assert [f"{word:04x}" for word in found] == expected.split()


# ---- operations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*HALVES, "int8"])
def test_reading(dtype):
    """gather, pooled, max, its positions, and the gradient of weights."""
    for name in ("weighted, padding -1", "zipf", "empty bags at both ends and inside"):
        batch = next(batch for batch in BATCHES if batch.name == name)
        rec, _ = narrow_records(batch.num_embeddings, DIM, None, Precision(dtype))
        slots, padding = batch.slots, batch.padding_idx
        args = rec, slots, batch.indices
        assert_same_bits(ops.lookup(*args, padding), reference.lookup(*args, padding))
        for mode in ("sum", "mean", "sqrtn", "max"):
            weights = None if mode == "max" else batch.weights
            how = (batch.offsets, weights, mode, padding)
            assert_same_bits(ops.lookup_bags(*args, *how), reference.lookup_bags(*args, *how))
        how = (batch.offsets, padding)
        assert_same_bits(ops.max_positions(*args, *how), reference.max_positions(*args, *how))
        grad = np.random.default_rng(0).standard_normal((len(batch.indices), DIM))
        how = (grad.astype(np.float32), None, padding)
        assert_same_bits(ops.dots(*args, *how), reference.dots(*args, *how))


BOTH = Precision("bfloat16", "bfloat16", "stochastic")
SLOW = pytest.mark.slow  # each compiles a kernel of its own, for five seconds
UPDATES = [
    (SGD(0.1, weight_decay=0.01), Precision("float16", "float32", "stochastic")),
    (SGD(0.1), Precision("bfloat16", "float32", "nearest")),
    (LazyAdam(0.01, weight_decay=0.1), BOTH),
    (RowWiseAdagrad(0.1, initial_accumulator_value=0.1, clip_norm=0.7), BOTH),
    pytest.param(RowWiseAdam(0.01), BOTH, marks=SLOW),
    pytest.param(Adagrad(0.1, initial_accumulator_value=0.1), BOTH, marks=SLOW),
    pytest.param(LazyAdam(0.01), Precision("float16", "float32", "nearest"), marks=SLOW),
    pytest.param(LazyAdam(0.01), Precision("float32", "bfloat16", "stochastic"), marks=SLOW),
]


@pytest.mark.parametrize(("optimizer", "precision"), UPDATES, ids=repr)
def test_updating(optimizer, precision):
    batch = next(batch for batch in BATCHES if batch.name == "weighted, padding -1")
    rec, layout = narrow_records(batch.num_embeddings, DIM, optimizer, precision)
    merged = ops.merge(batch.indices, batch.padding_idx)
    shares = ops.bag_coefficients(
        batch.indices, batch.offsets, batch.weights, "mean", batch.padding_idx
    )
    rng = np.random.default_rng(3)
    expected, applied = twin(rec), twin(rec)
    for step in (1, 2):
        grad = rng.standard_normal((batch.num_bags, DIM)).astype(np.float32)
        rest = (merged, 0, len(merged), shares, grad, None, optimizer, step, 0.05)
        reference.update(expected, merged.indices, *rest)
        values = ops.backward(merged, shares, grad, None)
        ops.update(rec, merged.indices, *rest)
        ops.apply(applied, merged.indices, merged.indices, values, optimizer, step, 0.05)
    for found in (rec, applied):
        assert_same_bits(found.records.view(np.uint32), expected.records.view(np.uint32))
        assert_same_bits(found.flags, expected.flags)
    assert not rec.records.view(np.uint8)[:, layout.padding()].any()
    touched = np.zeros(batch.num_embeddings, bool)
    touched[merged.indices] = True
    assert layout.written(rec.records)[touched].all()


def test_a_weight_that_underflows_is_still_written():
    """A first number that rounds to +0.0 must not turn the row virgin."""
    precision = Precision("bfloat16", "float32", "nearest")
    rec, layout = narrow_records(1, DIM, SGD(1.0), precision, virgin=0)
    layout.structured(rec.records)["weight"] = 0
    layout.keep_written(rec.records)
    one, grad = np.array([0]), np.full((1, DIM), -1e-44, np.float32)
    ops.apply(rec, one, one, grad, SGD(1.0), 1, 1.0)
    assert layout.written(rec.records).all()
    found = ops.lookup(rec, one, one, ops.NO_PADDING)
    assert (found == 0).all()
    assert np.signbit(found[0, 0])


def test_float32_records_are_as_they_were():
    layout = Layout(10, 64, (("weight", 64), ("exp_avg", 64), ("exp_avg_sq", 64)))
    assert layout.precision == FLOAT32
    assert layout.record_bytes == 768
    assert [place.offset for place in layout.places] == [0, 256, 512]
