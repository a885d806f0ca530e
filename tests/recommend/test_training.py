"""fit, resume, early stopping, partial_fit, features, users as the mean of their items."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import sparse_embed as se
from sparse_embed.errors import ArgumentError, ReadOnlyError
from sparse_embed.recommend import BPR, EarlyStopping
from tests.recommend.test_bpr import checkerboard, digest, make


@pytest.fixture(scope="module")
def taken() -> scipy.sparse.csr_array:
    return checkerboard()


@pytest.fixture(scope="module")
def held_out() -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(np.eye(20))


class Stop(Exception):
    pass


def stop_at(epoch: int, done: int = 0):
    def listener(at):
        if at.epoch == epoch and at.done >= done:
            raise Stop

    return listener


# ---- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reopen", ["same object", "loaded", "new object"])
def test_a_resumed_fit_has_the_same_bits(taken, tmp_path, reopen):
    expected = digest(make(epochs=4).fit(taken))
    model = make(epochs=4, path=tmp_path / "model", commit_interval=0)
    with pytest.raises(Stop):
        model.fit(taken, progress=stop_at(3))
    if reopen != "same object":
        model.close()
        model = (
            BPR.load(tmp_path / "model", "r+")
            if reopen == "loaded"
            else make(epochs=4, path=tmp_path / "model")
        )
    done = []
    model.fit(taken, resume=True, progress=lambda at: done.append(at.epoch))
    assert set(done) == {3, 4}
    assert digest(model) == expected
    model.fit(taken, resume=True)  # nothing is left to do
    assert digest(model) == expected
    model.close()


def test_resumes_in_the_middle_of_an_epoch(taken, tmp_path):
    expected = digest(make(epochs=2, batch_size=32).fit(taken))
    model = make(epochs=2, batch_size=32, path=tmp_path / "model", commit_interval=1e-9)
    with pytest.raises(Stop):
        model.fit(taken, progress=stop_at(2, done=taken.nnz + 96))
    epoch, place = model.store.metadata["position"]
    assert epoch == 1
    assert place > 0
    assert digest(model.fit(taken, resume=True)) == expected
    model.close()


KILLED = """
import os, sys
from tests.recommend.test_bpr import checkerboard, make

def die(at):
    if at.epoch == 3:
        os._exit(9)

model = make(epochs=4, path=sys.argv[1], commit_interval=float(sys.argv[2]))
model.fit(checkerboard(), progress=die)
"""


@pytest.mark.parametrize(("interval", "left"), [(0, {3, 4}), (1000, {1, 2, 3, 4})])
def test_resumes_after_a_kill(taken, tmp_path, interval, left):
    """Nothing is closed: from the last commit, or from the start where there was none."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), str(interval)]
    root = Path(__file__).parents[2]
    assert subprocess.run(command, cwd=root, check=False).returncode == 9
    done = set()
    model = make(epochs=4, path=tmp_path / "model")
    model.fit(taken, resume=True, progress=lambda at: done.add(at.epoch))
    assert done == left
    assert digest(model) == digest(make(epochs=4).fit(taken))
    model.close()


def test_resume_refuses_other_data_and_arguments(taken, tmp_path):
    make(epochs=2, path=tmp_path / "model").fit(taken).close()
    with pytest.raises(ArgumentError, match="user_items: expected the data"):
        make(epochs=2, path=tmp_path / "model").fit(checkerboard(18), resume=True)
    with pytest.raises(ArgumentError, match="regularization: the fit to be resumed had"):
        make(epochs=2, regularization=0.5, path=tmp_path / "model").fit(taken, resume=True)
    with make(epochs=2, path=tmp_path / "other").fit(taken, resume=True) as fresh:
        assert fresh.store.metadata["epochs_done"] == 2


# ---- early stopping -----------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_early_stopping_goes_back_to_the_best(taken, held_out, tmp_path, on_disk):
    digests = {}

    def remember(at):
        digests[at.epoch] = digest(model)
        assert at.metrics["users"] == 20

    stopping = EarlyStopping("ndcg@3", patience=2)
    model = make(epochs=50, path=tmp_path / "model" if on_disk else None)
    model.fit(taken, held_out, eval_k=3, callbacks=[remember, stopping])
    assert len(digests) == stopping.best_epoch + 2 < 50
    assert digest(model) == digests[stopping.best_epoch]
    if on_disk:
        model.close()
        with BPR.load(tmp_path / "model") as loaded:
            assert digest(loaded) == digests[stopping.best_epoch]


def test_a_metric_that_is_not_there(taken, held_out):
    with pytest.raises(ArgumentError, match="metric: expected one of"):
        make(epochs=2).fit(taken, held_out, callbacks=[EarlyStopping("auc")])
    with pytest.raises(ArgumentError, match="patience"):
        EarlyStopping(patience=0)
    with pytest.raises(ArgumentError, match=r"eval_set: .* measures ndcg@20, got None"):
        make(epochs=2).fit(taken, callbacks=[EarlyStopping("ndcg@20")])
    larger = scipy.sparse.csr_array(np.ones((taken.shape[0] + 1, 2)))
    with pytest.raises(ArgumentError, match=r"eval_set: expected at most shape \(20, 20\)"):
        make(epochs=2).fit(taken, larger)


def test_a_callback_can_stop(taken):
    epochs = []
    make(epochs=9).fit(taken, callbacks=[lambda at: epochs.append(at.epoch) or at.epoch == 2])
    assert epochs == [1, 2]


# ---- more data ----------------------------------------------------------------------------------


def test_partial_fit_learns_new_users_and_items(taken, tmp_path):
    model = make(num_users=22, num_items=21, path=tmp_path / "model").fit(taken)
    before = model.users.lookup([3])
    new = np.zeros((22, 21))
    new[20, [0, 2, 4, 20]] = 1
    new[21, [1, 3, 5]] = 1
    model.partial_fit(scipy.sparse.csr_array(new), epochs=40, lr=0.02)
    np.testing.assert_array_equal(model.users.lookup([3]), before)  # not in the new data
    ids, _ = model.recommend([20, 21], scipy.sparse.csr_array(new)[[20, 21]], k=5)
    assert (ids[0] % 2 == 0).all()
    assert (ids[1] % 2 == 1).all()
    assert 20 in model.recommend([20], k=21, filter_already_liked=False)[0]
    with pytest.raises(ArgumentError, match="expected at most shape"):
        model.partial_fit(scipy.sparse.csr_array(np.eye(30)))
    model.close()
    with BPR.load(tmp_path / "model") as reader, pytest.raises(ReadOnlyError):
        reader.partial_fit(scipy.sparse.csr_array(new))


def test_too_small_a_room(taken):
    with pytest.raises(ArgumentError, match="exceeds num_items=5"):
        make(num_items=5).fit(taken)


# ---- who is not in the tables -------------------------------------------------------------------


def test_new_users_from_their_items(taken):
    model = make().fit(taken)
    new = np.zeros((3, 20))
    new[0, [2, 8]] = 1
    new[1, [3, 9]] = 1
    rows = scipy.sparse.csr_array(new)
    ids, _ = model.recommend(None, rows, k=6)
    assert (ids[0] % 2 == 0).all()
    assert (ids[1] % 2 == 1).all()
    assert not set(ids[0].tolist()) & {2, 8}
    stranger, _ = model.recommend([1], rows[[0]], k=6, recalculate_user=True)
    np.testing.assert_array_equal(stranger[0], ids[0])
    with pytest.raises(ArgumentError, match="items of new users"):
        model.recommend(None)


def test_filters(taken):
    model = make().fit(taken)
    ids, _ = model.recommend([0], taken[[0]], k=3, items=[1, 4, 5], filter_items=[5])
    assert ids.tolist() == [[1, -1, -1]]  # 4 was taken


@pytest.mark.parametrize("path", [None, "model"])
def test_features_serve_cold_items(taken, tmp_path, path):
    """Item 20 was never taken; its only feature, parity, says whom it is for."""
    parity = np.zeros((21, 2), np.float32)
    parity[np.arange(21), np.arange(21) % 2] = 1
    features = scipy.sparse.csr_array(parity)
    model = make(num_items=21, path=None if path is None else tmp_path / path)
    model.fit(taken, item_features=features, user_features=features[:20])
    if path is not None:
        model.close()
        model = BPR.load(tmp_path / path)
    assert model.items.num_embeddings == 23
    assert 20 in model.item_vectors()[0]
    even, odd = model.score([0, 2, 4], [20] * 3), model.score([1, 3, 5], [20] * 3)
    assert even.min() > odd.max()
    similar, _ = model.similar_items(20, k=8)
    assert (similar % 2 == 0).all()
    model.close()


def test_users_as_the_mean_of_their_items(taken, tmp_path):
    model = make(users_as="items", path=tmp_path / "model").fit(taken)
    ids, _ = model.recommend(np.arange(20), taken, k=1)
    assert (ids[:, 0] % 2 == np.arange(20) % 2).all()
    new = scipy.sparse.csr_array((np.ones(2), ([0, 0], [3, 7])), shape=(1, 20))
    before = model.recommend(None, new, k=5)
    assert (before[0] % 2 == 1).all()
    model.close()
    with BPR.load(tmp_path / "model") as loaded:
        np.testing.assert_array_equal(loaded.recommend(None, new, k=5)[1], before[1])
        assert loaded.users.num_embeddings == 20


def test_a_user_without_anything(taken):
    """Empty users learn nothing and get what the mean user gets."""
    matrix = scipy.sparse.csr_array(taken)
    matrix.resize((25, 20))
    model = make().fit(matrix)
    nobody = scipy.sparse.csr_array((1, 20))
    mean, _ = model.recommend([24], matrix[[24]], k=5)
    np.testing.assert_array_equal(model.recommend(None, nobody, k=5)[0], mean)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.eye(20), "scipy.sparse"),
        (scipy.sparse.csr_array(np.eye(3)), "item_features: expected 20 rows"),
        (scipy.sparse.csr_array(np.full((20, 1), np.nan)), "NaN"),
    ],
)
def test_bad_features(taken, features, said):
    with pytest.raises(ArgumentError, match=said):
        make().fit(taken, item_features=features)


def test_scores_of_pairs(taken):
    model = make(num_items=30).fit(taken)
    ids, scores = model.recommend([4], k=5, filter_already_liked=False)
    np.testing.assert_allclose(model.score([4] * 5, ids[0]), scores[0], atol=1e-5)
    assert np.isnan(model.score([0], [29])).all()  # never taken: no vector
    with pytest.raises(ArgumentError, match="item_ids: expected as many"):
        model.score([0, 1], [2])


def test_resuming_leaves_a_store_of_something_else_alone(taken, tmp_path):
    with se.EmbeddingTable.create(tmp_path / "m", num_embeddings=8, embedding_dim=4) as table:
        table.assign([3], np.ones((1, 4), np.float32))
    with pytest.raises(se.NotAStoreError):
        make(epochs=1, path=tmp_path / "m").fit(taken, resume=True)
    with se.EmbeddingTable.open(tmp_path / "m") as table:
        assert table.lookup([3]).tolist() == [[1, 1, 1, 1]]
