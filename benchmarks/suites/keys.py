"""Keys: ours against mmh3 in a loop, thinc's HashEmbed and fastText's get_word_vector.

    python benchmarks/suites/keys.py                 # all that the installed packages allow
    python benchmarks/suites/keys.py pooled --json keys.json

Each measure checks that both sides compute the same before it times them, then runs them in turn
(ours, theirs, ours, theirs ..), so that a busy machine slows both.  Ratios are of medians; the
spread is that of the ratios of single turns.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se
from sparse_embed.keys import KeyHasher
from sparse_embed.keys.ngrams import NgramHasher
from sparse_embed.keys.word_ngrams import WordNgramHasher

Measure = dict[str, Any]


def race(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], units: int, turns: int
) -> Measure:
    """Time two callables in turn, after one warm-up of each."""
    ours(), theirs()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(turns):
        for side, run in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    ours_median, theirs_median = (statistics.median(seconds[s]) for s in ("ours", "theirs"))
    return {
        "name": name,
        "ratio": theirs_median / ours_median,
        "ratio_spread": [min(ratios), max(ratios)],
        "ours_per_second": units / ours_median,
        "theirs_per_second": units / theirs_median,
        "best_ratio": min(seconds["theirs"]) / min(seconds["ours"]),
        "seconds": seconds,
    }


def random_words(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    letters = string.ascii_lowercase + string.digits
    return ["".join(rng.choices(letters, k=rng.randint(shortest, longest))) for _ in range(count)]


def measure_strings(count: int = 1_000_000, turns: int = 7) -> list[Measure]:
    """Strings of 6 to 22 letters to rows; theirs is mmh3.hash, the fastest function of mmh3."""
    import mmh3

    words = random_words(count, 6, 22, seed=0)
    encoded = [word.encode() for word in words]
    rows = 1_000_003
    hasher = KeyHasher(rows)
    want = [(mmh3.hash64(word, 0, signed=False)[0] * rows) >> 64 for word in words]
    assert hasher(words).tolist() == want, "gate: rows differ from mmh3's"

    def loop() -> list[int]:
        return [mmh3.hash(word) for word in words]

    def loop_128() -> list[tuple[int, int]]:
        return [mmh3.hash64(word) for word in words]

    columns: dict[str, Any] = {
        "list[str]": words,
        "list[bytes]": encoded,
        "U array": np.array(words),
    }
    try:
        import pyarrow as pa
    except ImportError:
        pass
    else:
        columns["Arrow string"] = pa.array(words)
        columns["Arrow string_view"] = pa.array(words, pa.string_view())
    measures = []
    for name, column in columns.items():
        assert hasher(column).tolist() == want, f"gate: {name} differs"
        ours = functools.partial(hasher, column)
        measures.append(race(f"{name} vs mmh3.hash loop", ours, loop, count, turns))
    measures.append(
        race("list[str] vs mmh3.hash64 loop", lambda: hasher(words), loop_128, count, min(turns, 5))
    )
    return measures


def measure_pooled(count: int = 100_000, turns: int = 7) -> list[Measure]:
    """Strings to vectors: 4 rows of 64 floats summed, of a table of a million rows; thinc's table.

    thinc hashes ids, so its side begins with spaCy's string ids (also timed without them).
    """
    from spacy.strings import hash_string
    from thinc.api import HashEmbed, NumpyOps

    rows, dim, seed = 1_000_000, 64, 3
    words = random_words(count, 4, 12, seed=1)
    layer = HashEmbed(nO=dim, nV=rows, seed=seed)
    layer.ops = NumpyOps()
    layer.initialize()
    weight = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
    layer.set_param("E", weight)
    table = se.EmbeddingTable.create(
        None, num_embeddings=rows, embedding_dim=dim, init=se.Zeros(), optimizer=None
    )
    table.assign(np.arange(rows), weight)
    hasher = KeyHasher(rows, 4, seed, scheme="thinc")
    ids = np.array([hash_string(word) for word in words], np.uint64)

    def ours() -> Any:
        return table.lookup(hasher(words), mode="sum")

    def theirs() -> Any:
        return layer.predict(np.array([hash_string(word) for word in words], np.uint64))

    np.testing.assert_allclose(ours(), theirs(), rtol=1e-4, atol=1e-5)
    name = "strings to 4-row sums (64 dims, 1M rows)"
    return [
        race(f"{name} vs thinc with spaCy ids", ours, theirs, count, turns),
        race(f"{name} vs thinc, its ids given", ours, lambda: layer.predict(ids), count, turns),
    ]


def measure_unknown_words(count: int = 50_000, turns: int = 5, dim: int = 64) -> list[Measure]:
    """Vectors of out-of-vocabulary words: mean of their 3- to 6-gram rows, 500k buckets."""
    import fasttext

    buckets = 500_000
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "text"
        path.write_text(" ".join(random_words(2000, 3, 9, seed=5)) + "\n")
        model = fasttext.train_unsupervised(
            str(path), dim=dim, bucket=buckets, minCount=1, epoch=1, thread=2, verbose=0
        )
    weight = model.get_input_matrix()
    table = se.EmbeddingTable.create(
        None, num_embeddings=len(weight), embedding_dim=dim, init=se.Zeros(), optimizer=None
    )
    table.assign(np.arange(len(weight)), np.ascontiguousarray(weight, np.float32))
    words = random_words(count, 10, 14, seed=6)
    hasher = NgramHasher(buckets, first_row=len(weight) - buckets)

    def ours() -> Any:
        return table.lookup(*hasher(words), mode="mean")

    def theirs() -> Any:
        return [model.get_word_vector(word) for word in words]

    np.testing.assert_allclose(ours(), np.stack(theirs()), rtol=1e-4, atol=1e-6)
    return [race(f"OOV 3-6-gram vectors ({dim} dims) vs fastText", ours, theirs, count, turns)]


def measure_text(path: str, turns: int = 3) -> list[Measure]:
    """A corpus (.tsv.xz, text in the third column) as words and bigrams into 2M rows; seconds."""
    import lzma

    with lzma.open(path, "rt", encoding="utf-8") as file:
        texts = [line.rstrip("\n").split("\t")[2] for line in file]
    hasher = WordNgramHasher(2_000_000, max_n=2)
    seconds = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        indices, _offsets = hasher(texts)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    census = hasher.collisions(texts)
    return [
        {
            "name": "words and bigrams into 2M rows",
            "rows_made": len(indices),
            "seconds": seconds[1:],
            "census_seconds": time.perf_counter() - start,
            "distinct": census.distinct,
            "collisions": census.collisions,
            "expected_collisions": census.expected_collisions,
        }
    ]


MEASURES: dict[str, Callable[..., list[Measure]]] = {
    "strings": measure_strings,
    "pooled": measure_pooled,
    "unknown": measure_unknown_words,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MEASURES], help="which (default: all)")
    parser.add_argument("--text", help="a corpus for the text measure (.tsv.xz)")
    parser.add_argument("--json", help="write the measures with their raw samples here")
    given = parser.parse_args(arguments)
    found: list[Measure] = []
    for name in given.names or MEASURES:
        try:
            measures = MEASURES[name]()
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        for measure in measures:
            low, high = measure["ratio_spread"]
            print(
                f"{measure['name']}: {measure['ratio']:.2f}x [{low:.2f} to {high:.2f}],"
                f" of the quickest turns {measure['best_ratio']:.2f}x,"
                f" {measure['ours_per_second'] / 1e6:.2f} M/s"
                f" against {measure['theirs_per_second'] / 1e6:.2f} M/s"
            )
        found += measures
    if given.text:
        found += measure_text(given.text)
        print(json.dumps(found[-1]))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
