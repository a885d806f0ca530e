"""Sub-words: fastText's and floret's own row numbers and vectors, and the plain-Python twin's."""

from __future__ import annotations

import itertools
import json
import pathlib
import random
from typing import Any

import numpy as np
import pytest

from sparse_embed import reference_hashes as twin
from sparse_embed.errors import ArgumentError
from sparse_embed.keys.ngrams import NgramHasher

RECORDED = json.loads((pathlib.Path(__file__).parent / "vectors" / "keys.json").read_text())[
    "ngrams"
]
LENGTHS = [(3, 6), (1, 3), (2, 2), (5, 5), (1, 1), (4, 30)]


def listed(bags: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    indices, offsets = bags
    assert indices.dtype == offsets.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] == len(indices)
    return [indices[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def words() -> list[bytes]:
    rng = random.Random(2)
    text = ["", "</s>", "<", ">", "a", "münchen", "北海道", "x" * 70, "😀é", "a\0b"]
    text += ["".join(rng.choices("abcdéß北", k=rng.randrange(12))) for _ in range(1500)]
    invalid = [rng.randbytes(rng.randrange(8)) for _ in range(1500)]
    return [word.encode() for word in text] + invalid + [b"\x80\x80", b"\xe5\x8c", b"\xff"]


@pytest.mark.parametrize(("minn", "maxn"), LENGTHS)
def test_rows_equal_the_twin(minn: int, maxn: int) -> None:
    keys = words()
    ours = listed(NgramHasher(1009, minn, maxn)(keys))
    assert ours == [twin.fasttext_rows(key, 1009, minn, maxn) for key in keys]
    for hashes in (1, 4):
        ours = listed(NgramHasher(1009, minn, maxn, "floret", num_hashes=hashes)(keys))
        assert ours == [twin.floret_rows(key, 1009, minn, maxn, hashes) for key in keys]


@pytest.mark.parametrize("number", range(3))
def test_fasttext_recorded_rows(number: int) -> None:
    section = RECORDED["fasttext"][number]
    hasher = NgramHasher(RECORDED["num_buckets"], section["minn"], section["maxn"])
    assert listed(hasher(list(section["bags"]))) == list(section["bags"].values())
    vocabulary = hasher.vocabulary(section["words"], word_rows=True)
    known = section["known"]
    numbers = np.arange(len(section["words"]))
    end = section["words"].index("</s>")
    assert listed(vocabulary(numbers)) == [known[word] for word in section["words"]]
    assert known["</s>"] == [end]


def test_fasttext_recorded_vectors_of_unknown_words() -> None:
    section = RECORDED["fasttext"][0]
    table = np.array(section["input"])
    hasher = NgramHasher(RECORDED["num_buckets"], 3, 6, first_row=len(section["words"]))
    for bag, vector in zip(
        listed(hasher(list(section["vectors"]))), section["vectors"].values(), strict=True
    ):
        ours = table[bag].mean(axis=0) if bag else np.zeros(3)
        np.testing.assert_allclose(ours, vector, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("number", range(3))
def test_floret_recorded_rows(number: int) -> None:
    section = RECORDED["floret"][number]
    hasher = NgramHasher(
        RECORDED["num_buckets"], section["minn"], section["maxn"], "floret",
        num_hashes=section["num_hashes"],
    )  # fmt: skip
    assert listed(hasher(list(section["bags"]))) == list(section["bags"].values())


@pytest.mark.parametrize("name", ["fasttext", "floret"])
def test_packages(name: str, tmp_path: pathlib.Path) -> None:
    package = pytest.importorskip(name)
    text = tmp_path / "text"
    text.write_text("ein paar wörter genügen\n" * 5)
    extra: dict[str, Any] = {"mode": "floret", "hashCount": 3} if name == "floret" else {}
    model = package.train_unsupervised(
        str(text),
        dim=2,
        bucket=5003,
        minCount=1,
        epoch=1,
        thread=1,
        verbose=0,
        minn=2,
        maxn=5,
        **extra,
    )
    count = len(model.get_words())
    keys = [
        word.decode() + "q" for word in words()[:1200] if b"\0" not in word and b"\x80" not in word
    ]
    keys = [key for key in keys if key not in model.get_words()]
    hasher = NgramHasher(5003, 2, 5, name, num_hashes=3 if extra else 1, first_row=count)
    assert listed(hasher(keys)) == [
        np.asarray(model.get_subwords(k)[1], int).tolist() for k in keys
    ]


def test_a_short_word_enters_floret_twice() -> None:
    (bag,) = listed(NgramHasher(2**32, 3, 6, "floret")(["a"]))
    assert bag == [bag[0], bag[0]]


def test_no_ngrams_at_all() -> None:
    assert listed(NgramHasher(50, maxn=0, minn=0)(["abc", "d"])) == [[], []]
    (bag,) = listed(NgramHasher(50, maxn=0, minn=0, scheme="floret")(["abc"]))
    assert bag == twin.floret_rows(b"abc", 50, 1, 0)
    assert listed(NgramHasher(50)([])) == []


def test_many_blocks_and_containers() -> None:
    keys = [f"word{i % 1000}" for i in range(140_000)]
    first = listed(NgramHasher(5003)(keys[:1000]))
    assert listed(NgramHasher(5003)(keys)) == first * 140
    assert listed(NgramHasher(5003)(np.array(keys[:1000]))) == first
    assert listed(NgramHasher(5003)(np.array(keys[:1000]).astype("S"))) == first


def test_missing_words() -> None:
    with pytest.raises(ArgumentError, match=r"words\[1\] is missing"):
        NgramHasher(50)(["a", None])
    got = listed(NgramHasher(50, missing="skip")(["abc", None, "d"]))
    assert got == [*listed(NgramHasher(50)(["abc"])), [], *listed(NgramHasher(50)(["d"]))]
    assert listed(NgramHasher(50, missing="skip")([None, None])) == [[], []]


# ---- vocabulary ---------------------------------------------------------------------------------


def test_vocabulary_gives_the_same_bags_without_hashing() -> None:
    hasher = NgramHasher(5003)
    vocabulary = hasher.vocabulary(["new", "york", "münchen", "x"])
    assert len(vocabulary) == 4
    asked = ["york", "unseen", "new", "york", "x", ""]
    assert vocabulary.numbers(asked).tolist() == [1, -1, 0, 1, 3, -1]
    assert listed(vocabulary.bags(asked)) == listed(hasher(asked))
    assert listed(vocabulary.bags(np.array(asked))) == listed(hasher(asked))
    assert listed(vocabulary([2, 0])) == listed(hasher(["münchen", "new"]))
    assert listed(vocabulary([])) == []


def test_vocabulary_with_word_rows() -> None:
    vocabulary = NgramHasher(5003).vocabulary(["new", "york"], word_rows=True)
    grams = listed(NgramHasher(5003, first_row=2)(["new", "york", "unseen"]))
    assert listed(vocabulary.bags(["york", "unseen", "new"])) == [
        [1, *grams[1]],
        grams[2],
        [0, *grams[0]],
    ]


def test_empty_vocabulary() -> None:
    vocabulary = NgramHasher(5003).vocabulary([])
    assert vocabulary.numbers(["a"]).tolist() == [-1]
    assert listed(vocabulary.bags(["new"])) == listed(NgramHasher(5003)(["new"]))


def test_vocabulary_refusals() -> None:
    with pytest.raises(ArgumentError, match=r"words\[1\] is words\[3\]|words\[3\] is words\[1\]"):
        NgramHasher(10).vocabulary(["a", "b", "c", "b"])
    vocabulary = NgramHasher(10).vocabulary(["a", "b"])
    with pytest.raises(ArgumentError, match=r"numbers\[1\] = 2 is not a word"):
        vocabulary([0, 2])
    with pytest.raises(ArgumentError, match=r"numbers: expected \(B,\) integers"):
        vocabulary([0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_buckets": 0}, "num_buckets: expected 1 to 4294967296"),
        ({"minn": 0}, "minn: expected 1 to 6, got 0"),
        ({"minn": 7}, "minn: expected 1 to 6, got 7"),
        ({"maxn": -1}, "maxn: expected 0 to"),
        ({"scheme": "word2vec"}, 'scheme: expected "fasttext" or "floret"'),
        ({"num_hashes": 2}, "fastText has one row an n-gram"),
        ({"num_hashes": 5, "scheme": "floret"}, "num_hashes: expected 1 to 4"),
        ({"first_row": -1}, "first_row: expected 0 to"),
        ({"missing": "hash"}, 'missing: expected "raise" or "skip"'),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        NgramHasher(**{"num_buckets": 10, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [[1, 2], ["a", b"b"], ["a\ud800"], "word"])
def test_bad_words_are_named(keys: object) -> None:
    with pytest.raises(ArgumentError, match="words"):
        NgramHasher(10)(keys)
