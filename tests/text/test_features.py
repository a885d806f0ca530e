"""Texts to bags, by a slow reading of what the docstrings say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.text.features import (
    TextFeatures,
    distinct,
    frequent,
    joined,
    kept,
    padded,
    take,
)
from sparse_embed.text.labels import learn
from sparse_embed.text.tokenize import normalize, tokenize
from sparse_embed.text.training import epoch_order

TEXTS = ["Don't PANIC!", "", "the cat\tsat on\nthe mat", "x"]


def lists(bags) -> list[list[int]]:
    indices, offsets = bags
    return [indices[a:b].tolist() for a, b in pairwise(offsets)]


def test_normalize():
    assert tokenize("Don't <br />PANIC!") == ["don", "'", "t", "panic", "!"]
    assert normalize("plain words") == "plain words"
    assert tokenize("“Ä”…") == ["“", "ä", "”", "…"]


def test_bags_are_words_then_ngrams_then_characters():
    features = TextFeatures(5000, word_ngrams=2, minn=3, maxn=4)
    found = lists(features(TEXTS))
    words, ngrams = se.WordNgramHasher(5000, 2), se.NgramHasher(5000, 3, 4)
    for text, bag in zip(TEXTS, found, strict=True):
        tokens = tokenize(text)
        expected = words([" ".join(tokens)])[0].tolist()
        expected += ngrams(tokens)[0].tolist() if tokens else []
        assert bag == expected
    as_it_stands = TextFeatures(5000, word_ngrams=1, normalize=False)(["PANIC! x"])
    assert as_it_stands[0].tolist() == se.KeyHasher(5000)(["PANIC!", "x"]).tolist()


def test_moving_bags():
    bags = np.array([5, 6, 7, 5, 9], np.int64), np.array([0, 2, 2, 5])
    assert lists(take(bags, np.array([2, 0, 1]))) == [[7, 5, 9], [5, 6], []]
    other = take(bags, np.array([1, 2, 0]))
    assert lists(joined(bags, other)) == [[5, 6], [7, 5, 9], [7, 5, 9, 5, 6]]
    assert lists(kept(bags, np.array([5, 9]))) == [[5], [], [5, 9]]
    assert lists(kept(bags, np.array([], np.int64))) == [[], [], []]
    assert padded(bags, 2).tolist() == [[5, 6], [-1, -1], [5, 9]]
    assert padded(bags, 4).tolist() == [[-1, -1, 5, 6], [-1, -1, -1, -1], [-1, 7, 5, 9]]
    assert frequent(bags[0], 1, None).tolist() == [5, 6, 7, 9]
    assert frequent(bags[0], 2, None).tolist() == [5]
    assert frequent(bags[0], 1, 2).tolist() == [5, 6]


def test_a_row_once_a_text():
    bags = np.array([9, 6, 9, 5, 6, 7, 7, 7], np.int64), np.array([0, 5, 5, 8])
    assert lists(distinct(bags)) == [[5, 6, 9], [], [7]]
    far = bags[0] + (1 << 61)  # fewer texts at a time: text and row share an integer
    assert lists(distinct((far, bags[1]))) == [
        [5 + (1 << 61), 6 + (1 << 61), 9 + (1 << 61)],
        [],
        [7 + (1 << 61)],
    ]
    assert lists(distinct((bags[0][:0], np.zeros(3, np.int64)))) == [[], []]
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, 9000))])
    many = rng.integers(0, 3, offsets[-1]), offsets
    assert lists(distinct(many)) == [sorted(set(bag)) for bag in lists(many)]


def test_an_order_is_a_permutation_by_seed_and_epoch():
    first = epoch_order(1000, 3, 0)
    assert sorted(first.tolist()) == list(range(1000))
    assert np.array_equal(first, epoch_order(1000, 3, 0))
    assert not np.array_equal(first, epoch_order(1000, 3, 1))
    assert not np.array_equal(first, epoch_order(1000, 4, 0))


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["b", "a", "b"], ["a", "b"]),
        (np.array(["b", "a", "b"], object), ["a", "b"]),
        ([True, False, True], [False, True]),
        (np.array([2.0, -1.0, 2.0]), [-1, 2]),
        (np.array([7, 3, 7], np.uint8), [3, 7]),
    ],
    ids=str,
)
def test_labels(labels, values):
    found, targets = learn(labels)
    assert found.values.tolist() == values
    assert targets.classes.tolist() == [1, 0, 1]
    arrays: dict[str, np.ndarray] = {}
    found.to_arrays(arrays)
    again = type(found).from_arrays(found.kind, arrays)
    assert again.values.tolist() == values
    assert again.encode(labels).classes.tolist() == [1, 0, 1]
    with pytest.raises(se.ArgumentError, match="not in training"):
        again.encode(["other"])
