"""The objectives with shared negatives: kernel against NumPy, and models on a checkerboard."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import sparse_embed as se
from sparse_embed.errors import ArgumentError
from sparse_embed.kernels._jit import new_counter
from sparse_embed.kernels.contrast import contrast_cpu
from sparse_embed.recommend import BPR, CCL, Logistic, SampledSoftmax, load
from sparse_embed.recommend.ccl import weight_of
from sparse_embed.recommend.reference import contrast
from sparse_embed.recommend.sampling import Interactions
from tests.recommend.test_bpr import checkerboard, digest

DIM = 24  # a block of 16 columns, and some more
MODELS = {"logistic": Logistic, "softmax": SampledSoftmax, "ccl": CCL}


def make(kind: str, **changes):
    arguments = {"embedding_dim": DIM, "epochs": 60, "batch_size": 64, "seed": 1}
    return MODELS[kind](**arguments | {"num_negatives": 8} | changes)


@pytest.fixture(scope="module")
def taken() -> scipy.sparse.csr_array:
    return checkerboard()


@pytest.mark.parametrize(
    ("name", "unit", "a", "b"),
    [
        ("logistic", False, 4.0, 0.0),
        ("softmax", False, 0.7, 0.0),
        ("softmax", True, 0.2, 0.0),
        ("cosine", True, 30.0, 0.1),
    ],
)
def test_gradients(name, unit, a, b):
    """Float32 sums of up to 24 products against float64."""
    rng = np.random.default_rng(5)
    size, batch, number = 16, 41, 6
    blocks = -(-batch // size)
    users, items = (rng.normal(size=(batch, DIM + 1)).astype(np.float32) for _ in range(2))
    negatives = rng.normal(size=(blocks * number, DIM + 1)).astype(np.float32)
    users[3] = 0  # a zero vector has no direction
    marks = (rng.random((batch, number)) < 0.2).astype(np.uint8)
    marks[7] = 1
    own, offsets = (rng.normal(size=n).astype(np.float32) for n in (batch, blocks * number))
    wide = [x.astype(np.float64) for x in (users, items, negatives)]
    loss, *expected = contrast(name, unit, size, a, b, 0.01, *wide, marks, own, offsets)
    losses = np.empty(blocks)
    numbers = (np.float32(x) for x in (a, b, 0.01))
    contrast_cpu(DIM, name, unit)(
        size, *numbers, users, items, negatives, marks, own, offsets, new_counter(), losses
    )
    np.testing.assert_allclose(losses.sum(), loss, rtol=1e-5)
    for found, wanted in zip((users, items, negatives), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("in_batch", [False, True])
def test_recommends_the_one_item_left(taken, kind, in_batch):
    model = make(kind, in_batch=in_batch).fit(taken)
    ids, _ = model.recommend(np.arange(20), taken, k=1)
    np.testing.assert_array_equal(ids[:, 0] % 2, np.arange(20) % 2)
    assert (ids[:, 0] == np.arange(20)).mean() > 0.8
    scores = model.score(np.arange(20), ids[:, 0])
    ranked = model.recommend(np.arange(20), taken, k=1)[1]
    if not model.has_user_bias:  # which changes no ranking, and is in the score of a pair only
        np.testing.assert_allclose(scores, ranked[:, 0], atol=1e-5)
    else:
        biases = model.users.lookup(range(20))[:, -1]
        np.testing.assert_allclose(scores, ranked[:, 0] + biases, atol=1e-5)


def test_threads_do_not_show(taken):
    threads = se.get_num_threads()
    found = set()
    try:
        for number in {1, threads}:
            se.set_num_threads(number)
            found.add(digest(make("softmax", epochs=3, dropout=0.2).fit(taken)))
    finally:
        se.set_num_threads(threads)
    assert len(found) == 1


def test_load_finds_the_class(taken, tmp_path):
    model = make("ccl", epochs=2, margin=0.3).fit(taken)
    model.save(tmp_path / "model")
    with load(tmp_path / "model") as loaded:
        assert isinstance(loaded, CCL)
        assert loaded.margin == 0.3
        for found, wanted in zip(
            loaded.recommend([3], taken[[3]], k=5), model.recommend([3], taken[[3]], k=5),
            strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(found, wanted)


def test_vectors_for_an_index_give_the_ranking(taken):
    for model in (make("softmax", epochs=5), BPR(embedding_dim=DIM, epochs=5, seed=1)):
        model.fit(taken)
        ids, vectors = model.item_vectors()
        queries = model.query_vectors([0, 7])
        assert vectors.flags.c_contiguous
        assert vectors.dtype == queries.dtype == np.float32
        scores = queries @ vectors.T
        best, _ = model.recommend([0, 7], k=3, filter_already_liked=False)
        np.testing.assert_array_equal(ids[np.argsort(-scores, axis=1)[:, :3]], best)


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("logistic", {"num_negatives": 0}, "num_negatives: expected at least 1"),
        ("logistic", {"negative_weight": -1}, "negative_weight"),
        ("softmax", {"temperature": 0}, "temperature: expected a number > 0"),
        ("softmax", {"temperature": np.nan}, "temperature"),
        ("softmax", {"cosine": 1}, "cosine: expected True or False"),
        ("softmax", {"in_batch": "yes"}, "in_batch"),
        ("ccl", {"margin": -0.1}, "margin"),
        ("ccl", {"dropout": 1.0}, "dropout: expected 0 <= x < 1"),
        ("ccl", {"users_as": "mean"}, "users_as"),
        ("ccl", {"num_users": 0}, "num_users"),
    ],
)
def test_bad_arguments(kind, arguments, said):
    with pytest.raises(ArgumentError, match=said):
        make(kind, **arguments)


def test_batches_leave_steps_to_a_small_fit(taken):
    model = SampledSoftmax(epochs=20)
    assert model._batch_step(10) == 256  # no smaller
    assert model._batch_step(30_000) == 3072  # 200 steps, in whole blocks of 128
    assert model._batch_step(10**9) == 8192
    assert SampledSoftmax(batch_size=130)._batch_step(10**9) == 256


def test_softmax_is_as_sharp_as_the_data_is_clear(taken, tmp_path):
    noise = scipy.sparse.csr_array(np.random.default_rng(0).random((200, 100)) < 0.1)
    for data, least, most in [(taken, 0.15, 0.15), (noise, 0.35, 0.4)]:
        with SampledSoftmax(DIM, epochs=1, seed=1) as model:
            chosen = model.fit(data).store.metadata["temperature"]
            assert least <= chosen <= most
            given = SampledSoftmax(DIM, epochs=1, seed=1, temperature=chosen).fit(data)
            assert digest(model) == digest(given)
            model.save(tmp_path / str(chosen))
        again = load(tmp_path / str(chosen), mode="r+")
        assert again.temperature is None
        few = scipy.sparse.csr_array((np.ones(1), ([0], [5])), shape=data.shape)
        assert digest(again.partial_fit(few)) == digest(given.partial_fit(few))
    assert SampledSoftmax(DIM, epochs=1, cosine=False).fit(taken)._temperature == 1.0


def test_negatives_of_ccl_weigh_what_the_data_says(taken, tmp_path):
    """20 users with 9 of 20 items each: 1.22 items not taken for each one that was; two tastes."""
    with CCL(DIM, epochs=1, seed=1, path=tmp_path / "model") as model:
        model.fit(taken)
        weight = model.store.metadata["negative_weight"]
        assert weight == weight_of(Interactions.from_csr(taken)) == pytest.approx((11 / 9) ** 0.6)
        again = CCL(DIM, epochs=1, seed=1, negative_weight=weight).fit(taken)
        assert digest(model) == digest(again)
        few = scipy.sparse.csr_array((np.ones(1), ([0], [5])), shape=taken.shape)
        model.partial_fit(few)  # says nothing about all
        assert model.store.metadata["negative_weight"] == weight
    sparse = scipy.sparse.csr_array((np.ones(100), (np.arange(100), np.arange(100))))
    assert weight_of(Interactions.from_csr(sparse)) == 4.0  # nobody says anything about anybody
    dense = scipy.sparse.csr_array(np.tri(3))
    assert weight_of(Interactions.from_csr(dense)) == 1.0  # no less
    assert load(tmp_path / "model").negative_weight is None
