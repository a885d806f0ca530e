"""What is asked of data before training, and whether defaults that follow it are good ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from sparse_embed.recommend import BPR, evaluate, split
from sparse_embed.recommend.neighbours import agreement, questions, regularization_of
from sparse_embed.recommend.reference import agreement as twin
from sparse_embed.recommend.sampling import Interactions


def tastes(users: int, items: int, each: int, strength: float, seed: int = 0):
    """Every user takes `each` items by popularity and taste (of rank 8), as loud as `strength`."""
    rng = np.random.default_rng(seed)
    popularity = -0.6 * np.log(np.arange(1, items + 1))
    liking = rng.standard_normal((users, 8)) @ rng.standard_normal((8, items)) / np.sqrt(8)
    scores = popularity + strength * liking + rng.gumbel(size=(users, items))
    chosen = np.argpartition(-scores, each, axis=1)[:, :each]
    pairs = np.repeat(np.arange(users), each), chosen.reshape(-1)
    return scipy.sparse.csr_array((np.ones(users * each), pairs), shape=(users, items))


@pytest.mark.parametrize("strength", [0.0, 1.0, 4.0])
def test_agreement_is_its_twin(strength):
    data = Interactions.from_csr(tastes(150, 80, 9, strength))
    taken = np.zeros((150, len(data.catalogue)), bool)
    taken[data.rows, data.columns] = True
    # A vote is summed in another order: near-ties may fall otherwise, a few of 4,096.
    np.testing.assert_allclose(agreement(data), twin(taken, questions(data)), atol=1e-3)


def test_questions():
    data = Interactions.from_csr(tastes(150, 80, 9, 1.0))
    for user, item, known, rivals in questions(data):
        own = set(data.columns[data.indptr[user] : data.indptr[user + 1]].tolist())
        assert set(known.tolist()) == own - {item}
        assert not own & set(rivals.tolist())


def test_agreement_tells_noise_from_taste():
    found = [agreement(Interactions.from_csr(tastes(600, 300, 20, x))) for x in (0.0, 1.0, 4.0)]
    np.testing.assert_allclose(found[0], 0.5, atol=0.05)
    assert found[0] + 0.05 < found[1] < found[2] - 0.1


def test_agreement_of_next_to_nothing():
    """One item each: nobody says anything about anybody."""
    assert agreement(Interactions.from_csr(scipy.sparse.csr_array(np.eye(5)))) == 0.5


@pytest.mark.parametrize("each", [25, 60])
def test_regularization_is_near_the_best(each):
    """Of noisy data a third learns noise by heart, and three times forgets tastes."""
    train, test = split(tastes(1500, 600, each, 1.0), 0.2, seed=0)
    chosen = regularization_of(Interactions.from_csr(train))
    assert 0.03 < chosen < 0.12

    def quality(regularization: float | None) -> float:
        model = BPR(seed=0, regularization=regularization).fit(train)
        return evaluate(model, train, test, k=20)["ndcg@20"]

    # 0.172 against 0.128 and 0.137; 0.257 against 0.174 and 0.192
    assert quality(None) > 1.1 * max(quality(chosen / 3), quality(chosen * 3))


def test_clear_data_need_little_of_it():
    assert regularization_of(Interactions.from_csr(tastes(1500, 600, 25, 4.0))) == 0.015
