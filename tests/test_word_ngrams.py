"""Word n-grams of texts: fastText's sentence vectors, and the plain-Python twin's rows."""

from __future__ import annotations

import itertools
import json
import pathlib
import random

import numpy as np
import pytest

from sparse_embed import reference_hashes as twin
from sparse_embed.errors import ArgumentError
from sparse_embed.keys import KeyHasher
from sparse_embed.keys.word_ngrams import WordNgramHasher

RECORDED = json.loads((pathlib.Path(__file__).parent / "vectors" / "keys.json").read_text())


def listed(bags: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    indices, offsets = bags
    return [indices[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def texts() -> list[bytes]:
    rng = random.Random(6)
    found = ["", " ", "one", " two  words\t", "a\nb\rc\vd\fe\0f", "münchen ist eine\u00a0stadt"]
    for _ in range(700):
        found.append(" ".join(rng.choices(["a", "the", "cat", "北海道", "é"], k=rng.randrange(9))))
    return [text.encode() for text in found]


@pytest.mark.parametrize("scheme", ["murmur3", "fasttext"])
@pytest.mark.parametrize("max_n", [1, 2, 3, 5])
def test_rows_equal_the_twin(scheme: str, max_n: int) -> None:
    keys = texts()
    seed = 9 if scheme == "murmur3" else 0
    want = [twin.word_ngram_rows(twin.tokens(key), 100_003, max_n, scheme, seed) for key in keys]
    hasher = WordNgramHasher(100_003, max_n, scheme, seed=seed)
    assert listed(hasher(keys)) == want
    tokens = [twin.tokens(key) for key in keys]
    offsets = np.cumsum([0, *map(len, tokens)])
    assert listed(hasher.of_tokens([t for row in tokens for t in row], offsets)) == want
    closed = WordNgramHasher(100_003, max_n, scheme, seed=seed, end_of_line=True)
    assert listed(closed(keys)) == [
        twin.word_ngram_rows([*row, b"</s>"], 100_003, max_n, scheme, seed) for row in tokens
    ]


def test_words_have_their_key_rows() -> None:
    rows = listed(WordNgramHasher(1_000_003, 1, seed=4)(["new york", "new"]))
    new, york = KeyHasher(1_000_003, seed=4)(["new", "york"]).tolist()
    assert rows == [[new, york], [new]]


def test_fasttext_recorded_sentence_vectors() -> None:
    section = RECORDED["word_ngrams"]
    table = np.array(section["input"])
    number = {word: i for i, word in enumerate(section["words"])}
    hasher = WordNgramHasher(
        section["num_buckets"], section["max_n"], "fasttext",
        words=False, end_of_line=True, first_row=len(number),
    )  # fmt: skip
    for text, grams, vector in zip(
        section["texts"], listed(hasher(section["texts"])), section["vectors"], strict=True
    ):
        rows = [number[word] for word in [*text.split(), "</s>"] if word in number]
        np.testing.assert_allclose(table[rows + grams].mean(axis=0), vector, rtol=1e-4, atol=1e-7)


def test_order_of_words_matters() -> None:
    hasher = WordNgramHasher(1 << 60, 2, words=False)
    assert hasher(["a b"])[0].tolist() != hasher(["b a"])[0].tolist()


def test_missing_texts() -> None:
    with pytest.raises(ArgumentError, match=r"texts\[1\] is missing"):
        WordNgramHasher(10)(["a", None])
    hasher = WordNgramHasher(10, missing="skip", end_of_line=True)
    assert listed(hasher(["a", None]))[1] == []
    assert listed(hasher([None])) == [[]]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentError, match="scheme: expected"):
        WordNgramHasher(10, scheme="floret")
    with pytest.raises(ArgumentError, match="max_n: expected 1 to 1024"):
        WordNgramHasher(10, 0)
    with pytest.raises(ArgumentError, match="seed: the fasttext recipe"):
        WordNgramHasher(10, scheme="fasttext", seed=3)
    with pytest.raises(ArgumentError, match="texts: expected strings, got integers"):
        WordNgramHasher(10)([1])
    for offsets in ([0, 1], [1, 2], [0, 2, 1, 2], [], [[0, 2]]):
        with pytest.raises(ArgumentError, match="offsets: expected"):
            WordNgramHasher(10).of_tokens(["a", "b"], offsets)
