"""Splits and metrics against their definitions, one user at a time."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from sparse_embed.errors import ArgumentError
from sparse_embed.recommend import Popularity, evaluate, evaluate_sampled, leave_one_out, split


@pytest.fixture(scope="module")
def taken() -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(np.random.default_rng(0).random((200, 90)) < 0.08)


def pairs(matrix) -> set[tuple[int, int]]:
    return set(zip(*(part.tolist() for part in matrix.nonzero()), strict=True))


def test_leave_one_out(taken):
    train, test = leave_one_out(taken, seed=0, min_interactions=5)
    counts = np.diff(taken.indptr)
    np.testing.assert_array_equal(np.diff(test.indptr), counts >= 5)
    assert pairs(train) | pairs(test) == pairs(taken)
    assert not pairs(train) & pairs(test)
    assert train.shape == test.shape == taken.shape
    again = leave_one_out(taken, seed=0, min_interactions=5)[1]
    assert pairs(again) == pairs(test)
    assert pairs(leave_one_out(taken, seed=1)[1]) != pairs(test)


def test_split(taken):
    train, test = split(taken, test_fraction=0.25, seed=0)
    assert pairs(train) | pairs(test) == pairs(taken)
    assert not pairs(train) & pairs(test)
    assert abs(test.nnz / taken.nnz - 0.25) < 0.05
    assert train.has_sorted_indices
    assert pairs(split(taken, test_fraction=0.25, seed=0)[1]) == pairs(test)


class Fixed:
    """Recommends one list to everybody."""

    def __init__(self, ids) -> None:
        self.ids = np.array(ids)

    def recommend(self, user_ids, user_items, k=10, *, filter_already_liked=True):
        ids = np.tile(self.ids[:k], (len(user_ids), 1))
        return ids, np.zeros(ids.shape, np.float32)


def test_metrics_by_hand():
    train = scipy.sparse.csr_array(np.array([[0] * 9, [1] * 9, [0] * 9]))
    test = np.zeros((3, 9))
    test[0, [4, 8]] = 1  # places 2 and none of the list 1, 4, 6
    test[2, [1, 4, 6, 0]] = 1  # places 1, 2, 3
    found = evaluate(Fixed([1, 4, 6]), train, scipy.sparse.csr_array(test), k=(1, 3))
    log3 = 1 / np.log2(3)
    assert found == pytest.approx(
        {
            "hr@1": 0.5,
            "recall@1": 0.125,
            "ndcg@1": 0.5,
            "map@1": 0.5,
            "mrr@1": 0.5,
            "hr@3": 1.0,
            "recall@3": (1 / 2 + 3 / 4) / 2,
            "ndcg@3": (log3 / (1 + log3) + 1) / 2,
            "map@3": (0.5 / 2 + 1) / 2,
            "mrr@3": (1 / 2 + 1) / 2,
            "coverage@1": 1 / 9,
            "coverage@3": 3 / 9,
            "users": 2.0,
        }
    )


def test_padding_is_no_hit():
    train = scipy.sparse.csr_array((2, 9))
    test = np.zeros((2, 9))
    test[:, 8] = 1
    found = evaluate(Fixed([0, -1, -1]), train, scipy.sparse.csr_array(test), k=3)
    assert found["hr@3"] == 0


def test_popularity(taken):
    counts = taken.toarray().sum(axis=0)
    ids, scores = Popularity(taken).recommend(np.arange(200), taken, k=90)
    for user in range(0, 200, 17):
        left = np.flatnonzero(~taken.toarray()[user] & (counts > 0))
        expected = left[np.argsort(-counts[left], kind="stable")]
        np.testing.assert_array_equal(ids[user, : len(left)], expected)
        assert (ids[user, len(left) :] == -1).all()
        np.testing.assert_array_equal(scores[user, : len(left)], counts[expected])
    everything, _ = Popularity(taken).recommend([0], None, k=5, filter_already_liked=False)
    np.testing.assert_array_equal(everything[0], np.argsort(-counts, kind="stable")[:5])


def test_blocks_of_users_and_progress(taken, monkeypatch):
    train, test = leave_one_out(taken)
    whole = evaluate(Popularity(train), train, test)
    monkeypatch.setattr("sparse_embed.recommend.evaluation._USERS", 7)
    seen = []
    found = evaluate(Popularity(train), train, test, progress=lambda *at: seen.append(at))
    assert found == pytest.approx(whole)
    assert seen[-1] == (test.nnz, test.nnz)
    assert len(seen) == -(-test.nnz // 7)


def test_refusals(taken):
    train, test = leave_one_out(taken)
    with pytest.raises(ArgumentError, match="min_interactions"):
        leave_one_out(taken, min_interactions=1)
    with pytest.raises(ArgumentError, match="lower min_interactions"):
        leave_one_out(taken, min_interactions=80)
    with pytest.raises(ArgumentError, match="seed"):
        leave_one_out(taken, seed=-1)
    with pytest.raises(ArgumentError, match="test_fraction"):
        split(taken, test_fraction=1.0)
    with pytest.raises(ArgumentError, match="k: expected"):
        evaluate(Popularity(train), train, test, k=0)
    with pytest.raises(ArgumentError, match="shape of train"):
        evaluate(Popularity(train), train, test[:5])
    with pytest.raises(ArgumentError, match="held-out"):
        evaluate(Popularity(train), train, scipy.sparse.csr_array(train.shape))


class Known:
    """Scores an item by its number; item 0 has no vector."""

    def score(self, user_ids, item_ids):
        return np.where(item_ids == 0, np.nan, np.asarray(item_ids, np.float32) % 10)


def test_given_negatives_by_hand():
    # Places: 1; 3 (an equal score counts against it); last (no vector)
    found = evaluate_sampled(Known(), [9, 5, 0], [[1, 2, 3], [6, 15, 1], [4, 5, 6]], k=(1, 3))
    expected = {
        "hr@1": 1 / 3,
        "ndcg@1": 1 / 3,
        "mrr@1": 1 / 3,
        "hr@3": 2 / 3,
        "ndcg@3": (1 + 0.5) / 3,
        "mrr@3": (1 + 1 / 3) / 3,
        "users": 3.0,
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("positives", "negatives", "more", "said"),
    [
        ([1], [1, 2], {}, "negatives: expected"),
        ([1, 2], [[1, 2]], {}, "negatives: expected"),
        ([1], [[1, 2]], {"k": 4}, "k: expected at most 3"),
        ([1], [[1, 2]], {"user_ids": [1, 2]}, "user_ids"),
    ],
)
def test_given_negatives_that_do_not_fit(positives, negatives, more, said):
    with pytest.raises(ArgumentError, match=said):
        evaluate_sampled(Known(), positives, negatives, **({"k": 1} | more))
