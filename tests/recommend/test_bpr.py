"""BPR against plain NumPy, and implicit's suite of behaviours on a checkerboard."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import scipy.sparse

import sparse_embed as se
from sparse_embed import ops
from sparse_embed.errors import ArgumentError, IndexRangeError, NotAStoreError, StoreError
from sparse_embed.kernels._jit import new_counter
from sparse_embed.kernels.bpr import bpr_gradients_cpu, penalize_cpu, places_cpu
from sparse_embed.recommend import BPR, NotFittedError
from sparse_embed.recommend.neighbours import regularization_of
from sparse_embed.recommend.sampling import TILE, Interactions, Sampler, Triplets


def checkerboard(size: int = 20) -> scipy.sparse.csr_array:
    """Even users take even items, odd users odd ones; nobody took the item of their own number."""
    users, items = np.indices((size, size))
    return scipy.sparse.csr_array(((users + items) % 2 == 0) & (users != items))


def make(**changes) -> BPR:
    fixed = {"embedding_dim": 8, "epochs": 60, "batch_size": 64, "seed": 1, "regularization": 0.01}
    return BPR(**(fixed | changes))


@pytest.fixture(scope="module")
def taken() -> scipy.sparse.csr_array:
    return checkerboard()


@pytest.fixture(scope="module")
def model(taken) -> BPR:
    return make().fit(taken)


# ---- the objective ------------------------------------------------------------------------------


def twin(reg, batch, users, items, rows):
    """In float64: the loss, and the gradients by the users and by the items of a batch.

    rows: (B + M,) which of `items` each item taken and each negative is.
    """
    dim, length = users.shape[1] - 1, len(batch.taken)
    p, q = users.astype(float), items.astype(float)
    p[:, dim] = 1
    mine = np.repeat(np.arange(len(users)), np.diff(batch.starts))
    valid = batch.opponents >= 0
    taken, other = rows[:length], rows[length:][batch.opponents]
    x = (p[mine] * (q[taken] - q[other])).sum(axis=1)
    g = (valid / (1 + np.exp(x)))[:, None]
    by_user, by_item = np.zeros(p.shape), np.zeros(q.shape)
    np.add.at(by_user, mine, g * (q[other] - q[taken]) + reg * p[mine])
    np.add.at(by_item, taken, -g * p[mine])
    np.add.at(by_item, other, g * p[mine])
    np.add.at(by_item, rows, reg * q[rows])
    by_user[:, dim] = 0
    return (np.logaddexp(0, -x) * valid).sum(), by_user, by_item


def gradients(reg, batch, users, items, rows):
    """As `twin`, from the kernels and the engine's `backward`."""
    dim, number, length = users.shape[1] - 1, len(users), len(rows)
    merged = ops.merge(rows, ops.NO_PADDING)
    touched = np.ascontiguousarray(items[merged.indices])
    places, bags = np.empty((2, length), np.int64)
    places_cpu()(merged.starts, merged.positions, new_counter(), places)
    np.testing.assert_array_equal(merged.indices[places], rows)
    upstream = np.full((number + len(batch.negatives), dim + 1), np.nan, np.float32)
    shares = np.empty(length, np.float32)
    user_grad, losses = users.copy(), np.empty(len(batch.tiles) - 1)
    bpr_gradients_cpu(dim)(
        TILE, np.float32(reg), batch.starts, user_grad, touched, places, batch.opponents,
        batch.tiles, bags, shares, upstream, new_counter(), losses,
    )  # fmt: skip
    np.testing.assert_array_equal(
        bags[len(batch.taken) :], number + np.arange(len(batch.negatives))
    )
    found = ops.backward(merged, ops.Coefficients(bags, shares, None), upstream, None)
    penalize_cpu(dim)(np.float32(reg), merged.starts, touched, new_counter(), found)
    item_grad = np.zeros_like(items)
    item_grad[merged.indices] = found
    return losses.sum(), user_grad, item_grad


@pytest.mark.parametrize("dim", [1, 8, 17, 64])
def test_gradients(dim):
    rng = np.random.default_rng(dim)
    matrix = scipy.sparse.csr_array(rng.random((71, 50)) < rng.random((71, 1)))
    data = Interactions.from_csr(matrix)
    batch = Sampler(data, 0, 0.5).triplets(0, 0, 600)
    batch.opponents[7] = -1
    users = rng.normal(size=(len(batch.users), dim + 1)).astype(np.float32)
    items = rng.normal(size=(50, dim + 1)).astype(np.float32)
    rows = data.catalogue[batch.columns]
    loss, by_user, by_item = twin(0.01, batch, users, items, rows)
    found = gradients(0.01, batch, users, items, rows)
    # float32 sums of up to 50 products of size 1
    np.testing.assert_allclose(found[0], loss, rtol=1e-5)
    np.testing.assert_allclose(found[1], by_user, atol=1e-4)
    np.testing.assert_allclose(found[2], by_item, atol=1e-4)


def test_a_hopeless_triplet_has_a_finite_loss():
    one = np.array([0, 1])
    batch = Triplets(one[:1], one, one, one[:1].astype(np.int32), one)
    users = np.full((1, 9), 100, np.float32)
    items = np.stack([np.full(9, -200, np.float32), np.zeros(9, np.float32)])
    loss, by_user, _ = gradients(0, batch, users, items, one)
    np.testing.assert_allclose(loss, 160_200, rtol=1e-6)
    np.testing.assert_allclose(by_user[0], [200] * 8 + [0])


def test_fit_is_public_lookup_and_update(taken):
    """Two tables, the sampler and NumPy's gradients give what `fit` gives."""
    found = make(epochs=2, batch_size=50).fit(taken)
    optimizer = found.optimizer
    shared = {"init": se.Uniform(0.05), "optimizer": optimizer}
    users = se.EmbeddingTable.create(None, num_embeddings=20, embedding_dim=9, seed=2, **shared)
    items = se.EmbeddingTable.create(None, num_embeddings=20, embedding_dim=9, seed=3, **shared)
    data = Interactions.from_csr(taken)
    draw, step = Sampler(data, 1, 0.5), -(-len(data) // -(-len(data) // 50))
    for epoch in range(2):
        users.lr = items.lr = optimizer.lr * (1 - epoch / 2)
        for start in range(0, len(data), step):
            batch = draw.triplets(epoch, start, step)
            rows = data.catalogue[batch.columns]
            given = users.lookup(batch.users), items.lookup(range(20)), rows
            _, by_user, by_item = twin(np.float32(0.01), batch, *given)
            users.update(by_user.astype(np.float32), batch.users)
            touched = np.unique(rows)
            items.update(by_item[touched].astype(np.float32), touched)
    # Adam divides by the root of the squares: rounding in tiny gradients shows, up to parts of lr.
    np.testing.assert_allclose(found.users.lookup(range(20)), users.lookup(range(20)), atol=3e-4)
    np.testing.assert_allclose(found.items.lookup(range(20)), items.lookup(range(20)), atol=3e-4)


def test_regularization_is_kept(tmp_path):
    """Later data alone would tell another."""
    taken = scipy.sparse.csr_array(np.random.default_rng(0).random((400, 150)) < 0.1)
    chosen = regularization_of(Interactions.from_csr(taken))
    assert 0.015 < chosen < 0.12  # of noise
    by_itself, given = (make(epochs=2, regularization=x).fit(taken) for x in (None, chosen))
    assert digest(by_itself) == digest(given)
    by_itself.save(tmp_path / "model")
    more = scipy.sparse.csr_array(np.eye(400, 150, 1))
    with BPR.load(tmp_path / "model", mode="r+") as loaded:
        assert loaded.regularization is None
        assert digest(loaded.partial_fit(more)) == digest(given.partial_fit(more))


# ---- behaviour ----------------------------------------------------------------------------------


def test_recommends_the_one_item_left(model, taken):
    ids, scores = model.recommend(np.arange(20), taken, k=1)
    np.testing.assert_array_equal(ids[:, 0], np.arange(20))
    assert scores.shape == (20, 1)
    assert scores.dtype == np.float32


def test_scores_are_dot_products_best_first(model, taken):
    ids, scores = model.recommend([4, 7], taken[[4, 7]], k=20, filter_already_liked=False)
    weights = model.items.lookup(ids)
    queries = np.concatenate([model.users.lookup([4, 7])[:, :8], np.ones((2, 1))], axis=1)
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", weights, queries), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_array_equal(np.sort(ids, axis=1), np.tile(np.arange(20), (2, 1)))


def test_scores_are_those_of_the_table(model):
    """The same bits as the engine's own exact search gives."""
    ids, scores = model.recommend([3], k=20, filter_already_liked=False)
    query = np.append(model.users.lookup([3])[0, :8], np.float32(1))
    found, expected = model.items.nearest(query, k=20, metric="dot")
    np.testing.assert_array_equal(ids[0], found)
    np.testing.assert_array_equal(scores[0], expected)


def test_filter_leaves_out_what_was_taken_and_pads(model, taken):
    ids, scores = model.recommend([0, 1], taken[[0, 1]], k=20)
    for user in (0, 1):
        mine = taken[[user]].indices
        assert not np.isin(ids[user], mine).any()
        assert (ids[user] == -1).sum() == len(mine)
    np.testing.assert_array_equal(np.isneginf(scores), ids == -1)
    assert (ids[:, -1] == -1).all()


def test_one_integer_gives_one_answer(model, taken):
    ids, scores = model.recommend(3, taken[[3]], k=4)
    many, many_scores = model.recommend([3], taken[[3]], k=4)
    assert ids.shape == scores.shape == (4,)
    np.testing.assert_array_equal(ids, many[0])
    np.testing.assert_array_equal(scores, many_scores[0])
    assert model.recommend([], taken[[]], k=4)[0].shape == (0, 4)


def test_similar_items_and_users(model):
    for ask in (model.similar_items, model.similar_users):
        ids, scores = ask(np.arange(20), k=10)
        np.testing.assert_array_equal(ids[:, 0], np.arange(20))  # itself first
        np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
        assert (ids % 2 == np.arange(20)[:, None] % 2).all()
        assert ask(4, k=3)[0].tolist() == ask([4], k=3)[0][0].tolist()


def test_blocks_change_nothing(model, taken, monkeypatch):
    expected = model.recommend(np.arange(20), taken, k=12)
    similar = model.similar_items(np.arange(20), k=12)
    monkeypatch.setattr("sparse_embed.recommend.ranking._BLOCK", 3)
    monkeypatch.setattr("sparse_embed.recommend.fitted._BLOCK", 7)
    for one, other in [
        (expected, model.recommend(np.arange(20), taken, k=12)),
        (similar, model.similar_items(np.arange(20), k=12)),
    ]:
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_users_and_items_nobody_knows():
    """Items that nobody took are not recommended; a user without items gets the mean user's."""
    matrix = np.zeros((12, 12))
    matrix[:10, :10] = checkerboard(10).toarray()
    model = make().fit(scipy.sparse.csr_array(matrix))
    ids, _ = model.recommend([0, 11], k=12, filter_already_liked=False)
    assert set(ids[0, :10].tolist()) == set(range(10))
    assert (ids[:, 10:] == -1).all()
    mean = model.users.lookup(range(10))[:, :8].mean(axis=0)
    _, scores = model.recommend([11], k=10, filter_already_liked=False)
    expected = model.items.lookup(range(10)) @ np.append(mean, 1)
    np.testing.assert_allclose(scores[0], np.sort(expected)[::-1], atol=1e-5)
    with pytest.raises(ArgumentError, match="item_ids: 11 has no interaction"):
        model.similar_items([3, 11])


# ---- the same bits ------------------------------------------------------------------------------


def digest(model: BPR) -> str:
    rows = [table.lookup(range(table.num_embeddings)) for table in (model.users, model.items)]
    return hashlib.sha256(b"".join(part.tobytes() for part in rows)).hexdigest()


def test_same_seed_same_bits(model, taken, tmp_path):
    again = make().fit(taken)
    assert digest(again) == digest(model)
    assert digest(make(seed=2).fit(taken)) != digest(model)
    on_disk = make(path=tmp_path / "model").fit(taken)
    assert digest(on_disk) == digest(model)
    on_disk.close()
    assert digest(BPR.load(tmp_path / "model")) == digest(model)


def test_any_number_of_threads_same_bits():
    rng = np.random.default_rng(0)
    taken = scipy.sparse.csr_array(rng.random((500, 300)) < 0.05)
    threads = se.get_num_threads()
    digests, answers = set(), []
    try:
        for number in {1, threads}:
            se.set_num_threads(number)
            model = make(embedding_dim=24, epochs=3, batch_size=2000).fit(taken)
            digests.add(digest(model))
            answers.append(model.recommend(np.arange(500), taken, k=20))
    finally:
        se.set_num_threads(threads)
    assert len(digests) == 1
    for ids, scores in answers[1:]:
        np.testing.assert_array_equal(ids, answers[0][0])
        np.testing.assert_array_equal(scores, answers[0][1])


# ---- on disk ------------------------------------------------------------------------------------


def test_save_and_load(model, taken, tmp_path):
    expected = model.recommend(np.arange(20), taken, k=5)
    model.save(tmp_path / "memory")  # fitted in memory
    on_disk = make(path=tmp_path / "fitted").fit(taken)
    on_disk.save(tmp_path / "copy")
    on_disk.close()
    for name in ("memory", "fitted", "copy"):
        with BPR.load(tmp_path / name) as loaded:
            for found, wanted in zip(
                loaded.recommend(np.arange(20), taken, k=5), expected, strict=True
            ):
                np.testing.assert_array_equal(found, wanted)
            assert loaded.embedding_dim == 8
            assert loaded.regularization == model.regularization
            assert loaded.optimizer == model.optimizer
            assert loaded.seed == 1


def test_every_epoch_is_a_commit(taken, tmp_path):
    with make(path=tmp_path / "model", epochs=3, commit_interval=0).fit(taken) as fitted:
        assert fitted.store.last_commit == 4  # three epochs, and the end
        assert fitted.store.metadata["epochs_done"] == 3
    assert np.load(tmp_path / "model" / "users.npy", mmap_mode="r")["weight"].shape == (20, 9)


def test_interrupted_fit_keeps_the_last_epoch(taken, tmp_path):
    def stop(at):
        if at.epoch == 3:
            raise KeyboardInterrupt

    fitted = make(path=tmp_path / "model", commit_interval=0)
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(taken, progress=stop)
    assert fitted.store.metadata["epochs_done"] == 2
    before = digest(fitted)
    fitted.recommend([0], taken[[0]], k=1)
    fitted.close()
    with BPR.load(tmp_path / "model") as loaded:
        assert digest(loaded) == before
    in_memory = make()
    with pytest.raises(KeyboardInterrupt):
        in_memory.fit(taken, progress=stop)
    with pytest.raises(NotFittedError):
        in_memory.recommend([0], taken[[0]])


def test_fit_again_starts_over(taken, tmp_path):
    fitted = make(path=tmp_path / "model").fit(taken)
    first = digest(fitted)
    assert digest(fitted.fit(taken)) == first
    assert fitted.recommend([0], taken[[0]], k=1)[0] == [[0]]
    fitted.close()


def test_fit_does_not_overwrite_a_loaded_model(model, taken, tmp_path):
    model.save(tmp_path / "model")
    with BPR.load(tmp_path / "model") as loaded:
        before = digest(loaded)
        with pytest.raises(StoreError):
            loaded.fit(taken)
        assert digest(loaded) == before


def test_fit_after_a_fit_that_came_to_nothing(taken, tmp_path):
    def stop(at):
        raise KeyboardInterrupt

    fitted = make(path=tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(taken, progress=stop)
    with pytest.raises(NotFittedError):
        fitted.recommend([0], taken[[0]])
    with fitted.fit(taken):
        assert fitted.recommend([0], taken[[0]], k=1)[0] == [[0]]


def test_progress_may_ask_the_model(taken):
    """Rows trained after the question count in the next answer."""
    known = []

    def ask(at):
        ids, _ = model.recommend([0], k=20, filter_already_liked=False)
        known.append(int((ids >= 0).sum()))

    model = make(epochs=1, batch_size=10)
    model.fit(taken, progress=ask)
    assert known[0] < 20
    assert known[-1] == 20


def test_a_path_that_is_taken_is_left_alone(taken, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("precious")
    with pytest.raises(StoreError):
        make(path=tmp_path / "model").fit(taken)
    assert (tmp_path / "model" / "mine.txt").read_text() == "precious"


def test_load_refuses_other_stores(tmp_path):
    with pytest.raises(NotAStoreError):
        BPR.load(tmp_path / "nothing")
    described = {"name": "BPR", "embedding_dim": 2, "epochs": 1, "batch_size": 1, "seed": 0}
    for number, (columns, model, said) in enumerate(
        [
            (3, None, "expected a BPR model"),
            (3, ["BPR"], "expected a BPR model"),
            (3, described | {"name": "ALS"}, "found a store of ALS"),
            (2, described, "one more for the bias"),
            (3, described | {"embedding_dim": "2"}, "one more for the bias"),
            (3, described | {"colour": "red"}, "does not describe a BPR"),
            (3, described | {"epochs": 0}, "does not describe a BPR"),
        ]
    ):
        path = tmp_path / str(number)
        with se.Store.create(path) as store:
            store.create_table("users", num_embeddings=4, embedding_dim=3, optimizer=se.SGD(0.1))
            store.metadata["shape"] = [4, 4]
            store.create_table("items", num_embeddings=4, embedding_dim=columns)
            if model is not None:
                store.metadata["model"] = model
        with pytest.raises(NotAStoreError, match=said):
            BPR.load(path)


# ---- progress and refusals ----------------------------------------------------------------------


def test_progress(taken):
    seen = []
    make(epochs=2, batch_size=100, lr=0.2).fit(taken, progress=seen.append)
    assert [at.epoch for at in seen] == [1, 1, 2, 2]
    assert seen[-1].done == seen[-1].total == 2 * taken.nnz
    assert seen[-1].loss < seen[0].loss < 0.7


def test_metadata_is_json(model):
    assert json.loads(json.dumps(model.store.metadata))["model"]["name"] == "BPR"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"embedding_dim": 0}, "embedding_dim: expected at least 1"),
        ({"embedding_dim": 8.0}, "embedding_dim: expected an integer"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"regularization": -0.1}, "regularization"),
        ({"regularization": float("nan")}, "regularization"),
        ({"negative_power": "much"}, "negative_power"),
        ({"lr": 0.1, "optimizer": se.SGD(0.1)}, "lr: give it"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        make(**arguments)


def test_not_fitted(taken):
    for ask in (
        lambda: make().recommend([0], taken[[0]]),
        lambda: make().similar_items(0),
        lambda: make().save("nowhere"),
        lambda: make().users,
    ):
        with pytest.raises(NotFittedError, match="call fit first"):
            ask()


def test_bad_questions(model, taken):
    for ids in ([20], [-1], np.array([0, 99])):
        with pytest.raises(IndexRangeError, match="user_ids: expected 0 to 19"):
            model.recommend(ids, taken[np.zeros(len(ids), int)])
    with pytest.raises(ArgumentError, match="user_ids: expected integers"):
        model.recommend([0.5], taken[[0]])
    with pytest.raises(ArgumentError, match="user_ids: expected shape"):
        model.recommend([[0]], taken[[0]])
    with pytest.raises(ArgumentError, match="user_items: expected the users' rows"):
        model.recommend([0])
    with pytest.raises(ArgumentError, match=r"user_items: expected shape \(1, 20\)"):
        model.recommend([0], taken)
    with pytest.raises(ArgumentError, match="k: expected at most 20"):
        model.recommend([0], taken[[0]], k=21)
    with pytest.raises(ArgumentError, match="k: expected at least 1"):
        model.similar_items([0], k=0)


def test_divergence_is_named(taken):
    with pytest.raises(ArgumentError, match="smaller learning rate"):
        make(optimizer=se.SGD(lr=1e30)).fit(taken)


@pytest.mark.parametrize(
    "optimizer", [se.SGD(0.5), se.Adagrad(0.1), se.RowWiseAdagrad(0.1), se.RowWiseAdam(0.01)]
)
def test_every_optimizer_learns(optimizer, taken):
    model = make(optimizer=optimizer).fit(taken)
    ids, _ = model.recommend(np.arange(20), taken, k=1)
    assert (ids[:, 0] % 2 == np.arange(20) % 2).mean() > 0.9
