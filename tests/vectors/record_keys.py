"""Record what other systems make of the same keys, as tests/vectors/keys.json.

    pip install thinc spacy scikit-learn fasttext-wheel floret
    python tests/vectors/record_keys.py

Run by hand when a recipe is added; the tests read the JSON, and also ask the packages themselves
where they are installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import tempfile
from typing import Any

import fasttext
import floret
import numpy as np
from sklearn.feature_extraction import FeatureHasher
from spacy.strings import StringStore, hash_string
from thinc.api import HashEmbed, NumpyOps

WORDS = [
    "a", "I", "new york", "münchen", "北海道", "😀", "spacy", "foo", "bar", "<apple>", "naïve",
    "команда", "x" * 31, "y" * 64, "tab\there", "ab", "abc", "abcdefgh", "123456789", "ﬁ",
]  # fmt: skip
GRAM_WORDS = [
    "a",
    "I",
    "cat",
    "münchen",
    "北海道",
    "😀",
    "apple",
    "asteroid",
    "ß",
    "zz",
    "команда",
    "x" * 20,
]
TEXT = "the cat sat on the mat and münchen is a town in 北海道\n" * 3
IDS = [0, 1, 2, 255, 12345, 2**32, 2**63 + 11, 2**64 - 1, 10639093010105930009]
OUT = pathlib.Path(__file__).with_name("keys.json")


def thinc_section() -> dict[str, Any]:
    ops = NumpyOps()
    seeds = [0, 1, 8, 2**31 - 1]
    ids = np.array(IDS, np.uint64)
    layer = HashEmbed(nO=4, nV=50, seed=8, initializer=None, column=None)
    layer.ops = ops
    layer.initialize()
    table = np.arange(200, dtype="f").reshape(50, 4) / 7
    layer.set_param("E", table)
    return {
        "ids": [str(i) for i in IDS],
        "keys": {str(seed): ops.hash(ids, seed).tolist() for seed in seeds},
        "hashembed": {"seed": 8, "nV": 50, "nO": 4, "y": layer.predict(ids).tolist()},
    }


def sklearn_section() -> dict[str, Any]:
    rows, signs = [], []
    for word in WORDS:
        row = FeatureHasher(1000, input_type="string").transform([[word]]).tocoo()
        rows.append(int(row.col[0]))
        signs.append(int(row.data[0]))
    pair = FeatureHasher(1000).transform([{"country": "DE"}]).tocoo()
    return {
        "n_features": 1000, "rows": rows, "signs": signs,
        "pair": [int(pair.col[0]), int(pair.data[0])],
    }  # fmt: skip


def subwords_of(model: Any, num_words: int) -> dict[str, list[int]]:
    """Bucket numbers of the n-grams of words that the model does not know."""
    found = {}
    for word in GRAM_WORDS:
        assert model.get_word_id(word + "q") < 0
        found[word + "q"] = (np.asarray(model.get_subwords(word + "q")[1]) - num_words).tolist()
    return found


def gram_section(directory: str) -> dict[str, Any]:
    path = f"{directory}/text.txt"
    pathlib.Path(path).write_text(TEXT)
    common = {"dim": 3, "bucket": 1000, "minCount": 1, "epoch": 1, "thread": 1, "verbose": 0}
    found: dict[str, Any] = {"num_buckets": 1000, "fasttext": [], "floret": []}
    for minn, maxn in ((3, 6), (1, 3), (2, 4)):
        model = fasttext.train_unsupervised(path, minn=minn, maxn=maxn, **common)
        words = model.get_words()
        entry = {
            "minn": minn, "maxn": maxn, "words": words, "bags": subwords_of(model, len(words)),
            "known": {word: model.get_subwords(word)[1].tolist() for word in words},
        }  # fmt: skip
        if minn == 3:
            entry["input"] = model.get_input_matrix().astype(float).tolist()
            entry["vectors"] = {
                word: model.get_word_vector(word).astype(float).tolist() for word in entry["bags"]
            }
        found["fasttext"].append(entry)
    for hashes in (1, 2, 4):
        model = floret.train_unsupervised(
            path, minn=3, maxn=6, mode="floret", hashCount=hashes, **common
        )
        count = len(model.get_words())
        bags = subwords_of(model, count)
        found["floret"].append({"num_hashes": hashes, "minn": 3, "maxn": 6, "bags": bags})
    return found


def line_section(directory: str) -> dict[str, Any]:
    """A supervised model's sentence vectors: means of the rows of words and word n-grams."""
    path = f"{directory}/labelled.txt"
    lines = [f"__label__{i % 2} {line}" for i, line in enumerate(TEXT.splitlines())]
    pathlib.Path(path).write_text("\n".join(lines) + "\n")
    model = fasttext.train_supervised(
        path, dim=3, bucket=1000, minCount=1, epoch=3, thread=1, verbose=0, wordNgrams=3
    )
    texts = ["the cat sat on the mat", "münchen is in 北海道", "the"]
    return {
        "num_buckets": 1000, "max_n": 3, "words": model.get_words(), "texts": texts,
        "input": model.get_input_matrix().astype(float).tolist(),
        "vectors": [model.get_sentence_vector(text).astype(float).tolist() for text in texts],
    }  # fmt: skip


def main() -> None:
    store = StringStore()
    with tempfile.TemporaryDirectory() as directory:
        grams, lines = gram_section(directory), line_section(directory)
    packages = ("thinc", "spacy", "scikit-learn", "fasttext-wheel", "floret")
    vectors = {
        "made_by": {name: importlib.metadata.version(name) for name in packages},
        "words": WORDS,
        "thinc": thinc_section(),
        "spacy": {"hash": [str(hash_string(word)) for word in WORDS], "empty": str(store[""])},
        "sklearn": sklearn_section(),
        "ngrams": grams,
        "word_ngrams": lines,
    }
    OUT.write_text(json.dumps(vectors, ensure_ascii=False, indent=None, separators=(",", ":")))


if __name__ == "__main__":
    main()
