"""Every operation on the device: the reference's bits, over poisoned memory.

Inputs are those of tests/cases.py and fresh random ones.  Bit equality throughout: sums go in the
contract's order, nothing is contracted, square roots and divisions are rounded correctly on both
sides.
"""

from __future__ import annotations

import inspect
import itertools
import os

import numpy as np
import pytest

from sparse_embed import ops, reference
from sparse_embed.optim import SGD, Adagrad, LazyAdam, RowWiseAdagrad, RowWiseAdam
from tests.cases import assert_same_bits, batches, hot_batch, records, twin

pytestmark = [
    pytest.mark.cuda,
    # Hash arithmetic wraps on purpose, which NumPy's scalars remark on in the simulator.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

BATCHES = batches()
MODES = ("sum", "mean", "sqrtn", "max")
SEED = int(os.environ.get("SPARSE_EMBED_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
OPTIMIZERS = [
    SGD(0.1),
    SGD(0.1, weight_decay=0.01, clip_value=0.5, clip_norm=0.8),
    Adagrad(0.1, lr_decay=0.01, initial_accumulator_value=0.5, weight_decay=0.01),
    Adagrad(0.1, clip_norm=0.5),
    RowWiseAdagrad(0.1, initial_accumulator_value=0.25, weight_decay=0.01, clip_norm=0.7),
    LazyAdam(0.01),
    LazyAdam(0.01, weight_decay=0.1, eps_mode="outside", clip_value=0.4, clip_norm=0.9),
    RowWiseAdam(0.01, betas=(0.0, 0.9), weight_decay=0.1),
]


@pytest.fixture(scope="module")
def run(memory):
    from sparse_embed.cuda.ops import DeviceOps

    return DeviceOps(memory)


class OnDevice:
    """`ops` with NumPy arrays in and out, computed on the device."""

    def __init__(self, run):
        self.run, self.up, self.down = run, run.memory.upload, run.memory.download

    def records(self, rec):
        from sparse_embed.cuda.ops import Records

        where = self.up(rec.records), self.up(rec.flags)
        return Records(*where, rec.dim, rec.init, rec.seed, rec.precision)

    def arrays(self, *values):
        return [self.up(v) if isinstance(v, np.ndarray) else v for v in values]

    def call(self, name, rec, *values):
        return self.down(getattr(self.run, name)(self.records(rec), *self.arrays(*values)))

    def merge(self, indices, padding):
        merged = self.run.merge(self.up(indices), padding)
        return ops.Merged(*map(self.down, (merged.indices, merged.starts, merged.positions)))


def of_name(name):
    return next(batch for batch in BATCHES if batch.name == name)


def random_batch(rng, num_embeddings=300, length=400):
    """Fresh each run; the seed stands in the test's output."""
    print(f"SPARSE_EMBED_TEST_SEED={SEED}")  # noqa: T201 - shown when the test fails
    indices = rng.integers(0, num_embeddings, length)
    indices[rng.random(length) < 0.2] = 7
    offsets = np.sort(np.append(rng.integers(0, length, 30), [0, length]))
    return indices, offsets, rng.standard_normal(length).astype(np.float32)


# ---- lookup ------------------------------------------------------------------------------------


def check_lookup(device, batch, dim):
    check_reading(device, batch, records(batch.num_embeddings, dim))


def check_reading(device, batch, rec):
    args = (rec, batch.slots, batch.indices)
    found = device.call("lookup", *args, batch.padding_idx)
    assert_same_bits(found, reference.lookup(*args, batch.padding_idx))
    for mode in MODES:
        weights = None if mode == "max" else batch.weights
        rest = (batch.offsets, weights, mode, batch.padding_idx)
        assert_same_bits(
            device.call("lookup_bags", *args, *rest), reference.lookup_bags(*args, *rest)
        )
    rest = (batch.offsets, batch.padding_idx)
    found = device.call("max_positions", *args, *rest)
    assert_same_bits(found, reference.max_positions(*args, *rest))


@pytest.mark.parametrize("batch", BATCHES[:10], ids=str)
def test_lookup(run, batch):
    if batch.name == "all duplicates":
        return
    check_lookup(OnDevice(run), batch, 5)


@pytest.mark.parametrize("dim", [1, 4, 33])
def test_lookup_of_every_shape_of_row(run, dim):
    check_lookup(OnDevice(run), of_name("weighted, padding -1"), dim)


def test_slots_need_not_be_the_row_numbers(run):
    rec = records(10, 7)
    rows, slots = np.array([2**62, 5, 2**63 - 1]), np.array([9, 0, 4])
    rec.records[4] = 0  # virgin: its weights follow from the row number, not from the slot
    found = OnDevice(run).call("lookup", rec, slots, rows, ops.NO_PADDING)
    assert_same_bits(found, reference.lookup(rec, slots, rows, ops.NO_PADDING))


@pytest.mark.parametrize("dim", [6, 7])  # Uniform and Normal, see `records`
def test_first_weights(run, dim):
    rec = records(2, dim)
    rows = np.array([0, 1, 12345, 2**40, 2**63 - 1])
    found = run.memory.download(run.initialize(rec.init, rec.seed, run.memory.upload(rows), dim))
    assert_same_bits(found, reference.initialize(rec.init, rec.seed, rows, dim))


# ---- merge -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_merge(run, batch):
    found = OnDevice(run).merge(batch.indices, batch.padding_idx)
    expected = reference.merge(batch.indices, batch.padding_idx)
    for name in ("indices", "starts", "positions"):
        assert_same_bits(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("top", [1, 2**20, 2**40, 2**62])
def test_merge_of_random_rows(run, top):
    rng = np.random.default_rng(SEED)
    indices = rng.integers(0, top, 333)
    indices[rng.random(333) < 0.3] = top
    for padding in (ops.NO_PADDING, top):
        found = OnDevice(run).merge(indices, padding)
        expected = reference.merge(indices, padding)
        for name in ("indices", "starts", "positions"):
            assert_same_bits(getattr(found, name), getattr(expected, name))


def test_prefix_sums_of_many_tiles(run):
    from sparse_embed.device_scan import prefix_sums

    values = np.random.default_rng(SEED).integers(0, 9, 1000)
    array = run.memory.upload(values)
    assert run.memory.number(prefix_sums(run.memory, array)) == values.sum()
    assert_same_bits(run.memory.download(array), np.cumsum(values) - values)


@pytest.mark.parametrize("like", [True, False])
def test_selection_of_flags(run, like):
    from sparse_embed.device_scan import select_flagged

    flags = np.random.default_rng(SEED).integers(0, 8, 500).astype(np.uint8)
    found = run.memory.download(select_flagged(run.memory, run.memory.upload(flags), 450, 5, like))
    assert_same_bits(found, np.flatnonzero((flags[:450] & 5 != 0) == like))


def test_survey(run):
    indices = np.array([3, -1, 7, 10, -5, 2**40, 9, -1])
    offsets = np.array([0, 4, 3, 8])
    up = run.memory.upload
    found, read = run.survey(up(indices), 10, -1, up(offsets))
    assert read() == (3, 10, 2, 1, 0, 0)
    assert tuple(run.memory.download(found)) == read()
    assert run.survey(up(indices[:5]), 10, None, up(offsets))[1]() == (3, 8, 0, 1, 0, 3)
    assert run.survey(up(indices), 10, None)[1]() == (5, 10, 0, 0, 0, 0)


# ---- backward, update, apply -------------------------------------------------------------------


def check_update(device, batch, dim, optimizer, mode, cuts=(0.0, 1.0)):
    """update, backward + apply against the reference."""
    run, up, down = device.run, device.up, device.down
    rng = np.random.default_rng(SEED)
    rec = records(batch.num_embeddings, dim, optimizer)
    padding = batch.padding_idx
    offsets = None if mode is None else batch.offsets
    weights = None if mode in ("max", None) else batch.weights
    grad = rng.standard_normal((len(batch.indices) if mode is None else batch.num_bags, dim))
    grad = grad.astype(np.float32)
    merged = ops.merge(batch.indices, padding)
    how = (batch.indices, offsets, weights, mode or "sum", padding)
    shares = reference.bag_coefficients(*how)
    argmax = None
    if mode == "max":
        argmax = reference.max_positions(rec, batch.slots, batch.indices, batch.offsets, padding)
    values = reference.backward(merged, shares, grad, argmax)
    expected, num = twin(rec), len(merged)
    args = (argmax, optimizer, 3, 0.05)
    with np.errstate(all="ignore"):
        reference.update(expected, merged.indices, merged, 0, num, shares, grad, *args)

    on_device = run.merge(up(batch.indices), padding)
    coefficients = run.bag_coefficients(*device.arrays(*how))
    for name in ("bag_ids", "scale"):
        found, wanted = getattr(coefficients, name), getattr(shares, name)
        assert (found is None) == (wanted is None)
        if found is not None:
            assert_same_bits(down(found), wanted)
    upstream, maxima = device.arrays(grad, argmax)
    assert_same_bits(down(run.backward(on_device, coefficients, upstream, maxima)), values)
    found = device.records(rec)
    edges = [int(num * cut) for cut in cuts]
    for u0, u1 in itertools.pairwise(edges):
        run.update(
            found, on_device.indices[u0:u1], on_device, u0, u1, coefficients, upstream, maxima,
            optimizer, 3, 0.05,
        )  # fmt: skip
    assert_same_bits(down(found.records), expected.records)
    assert_same_bits(down(found.flags), expected.flags)
    found = device.records(rec)
    rows = up(merged.indices)
    run.apply(found, rows, rows, up(values), optimizer, 3, 0.05)
    assert_same_bits(down(found.records), expected.records)


@pytest.mark.parametrize("mode", [*MODES, None])
@pytest.mark.parametrize(
    "name", ["no bags", "weighted, padding -1", "padding inside the table", "only padding"]
)
def test_update_of_batches_and_modes(run, name, mode):
    check_update(OnDevice(run), of_name(name), 3, LazyAdam(0.01), mode)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_a_row_that_is_everywhere(run, mode):
    """700 positions: blocks of 256, added ahead of the row they belong to."""
    check_update(OnDevice(run), of_name("all duplicates"), 3, SGD(0.01), mode)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("dim", [4, 19])
def test_update_of_every_optimizer(run, optimizer, dim):
    check_update(OnDevice(run), of_name("weighted, padding -1"), dim, optimizer, "mean")


@pytest.mark.parametrize("optimizer", [OPTIMIZERS[3], OPTIMIZERS[4], OPTIMIZERS[5]], ids=repr)
def test_update_of_wide_rows(run, optimizer):
    batch = of_name("weighted, padding -1")
    few = ops.NO_PADDING
    cut = type(batch)("few", 50, batch.indices[:12].clip(0), np.array([0, 5, 12]), None, few)
    check_update(OnDevice(run), cut, 1028, optimizer, "sum")


def test_update_in_two_parts(run):
    batch = of_name("one bag")
    check_update(OnDevice(run), batch, 4, RowWiseAdam(0.01), "sum", (0.0, 0.3, 1.0))


@pytest.mark.slow
def test_update_of_zipf(run):
    check_update(OnDevice(run), of_name("zipf"), 4, LazyAdam(0.01), "sum")


@pytest.mark.slow
def test_hot_rows(run):
    check_update(OnDevice(run), hot_batch(), 4, LazyAdam(0.01), "mean")


# ---- weights, search, dropout ------------------------------------------------------------------


@pytest.mark.parametrize("dim", [4, 19])
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_gradient_of_weights(run, dim, mode):
    batch, device = of_name("weighted, padding -1"), OnDevice(run)
    rec = records(batch.num_embeddings, dim)
    grad = np.random.default_rng(SEED).standard_normal((batch.num_bags, dim)).astype(np.float32)
    bag_ids = reference.bag_coefficients(
        batch.indices, batch.offsets, batch.weights, mode, -1
    ).bag_ids
    args = (rec, batch.slots, batch.indices, grad, bag_ids, -1)
    expected = reference.dots(*args)
    found = device.call("dots", *args)
    assert_same_bits(found, expected)
    rest = (batch.indices, batch.offsets, batch.weights, mode, -1)
    found = run.weights_grad(*device.arrays(found, *rest))
    assert_same_bits(device.down(found), reference.weights_grad(expected, *rest))


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("dim", [4, 19])
def test_search(run, metric, dim):
    rng = np.random.default_rng(SEED)
    up, down = run.memory.upload, run.memory.download
    block = rng.standard_normal((23, dim)).astype(np.float32)
    block[[3, 9]] = block[5]  # ties
    block[7] = 0.0
    queries = rng.standard_normal((3, dim)).astype(np.float32)
    candidates = rng.permutation(100)[:23]
    scores = run.scores(up(block), up(queries), metric)
    expected = reference.scores(block, queries, metric)
    assert_same_bits(down(scores), expected)
    expected[1, 4] = np.nan
    best = up(np.full((3, 6), -1, np.int64)), up(np.zeros((3, 6), np.float32))
    known = np.full((3, 6), -1, np.int64), np.zeros((3, 6), np.float32)
    for part in (slice(0, 4), slice(4, 23)):
        some = np.ascontiguousarray(expected[:, part])
        best = run.merge_top_k(up(some), up(candidates[part]), metric, *best)
        reference.merge_top_k(some, candidates[part], metric, *known)
    assert_same_bits(down(best[0]), known[0])
    assert_same_bits(down(best[1]), known[1])


def test_dropout(run):
    found = run.memory.download(run.dropout_scale(2**64 - 1, 5, 100, 0.3))
    assert_same_bits(found, reference.dropout_scale(2**64 - 1, 5, 100, 0.3))


# ---- the same names ----------------------------------------------------------------------------


def test_names_and_arguments_are_those_of_ops(run):
    # Sorting bags in place of positions, and what comes of it, is the CPU's own.
    others = {"top_k", "gradient_entries", "merge_gradient", "merge_places"}
    for name in set(ops.__all__) - others:
        if not inspect.isfunction(getattr(ops, name)):
            continue
        ours = list(inspect.signature(getattr(run, name)).parameters)
        theirs = list(inspect.signature(getattr(ops, name)).parameters)
        # A survey is before these on a GPU, and no bags are cut there.
        theirs = [parameter for parameter in theirs if parameter not in ("limit", "bounds")]
        assert ours[: len(theirs)] == theirs, name
