"""Keys to rows: ours against mmh3 in a loop, thinc's HashEmbed and fastText's get_word_vector."""

from __future__ import annotations

import random
import string
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks.harness import Case, Competitor, Disagreement, Settings, gate, race

ABOUT = "strings and ids to rows and to vectors; words never seen; a corpus of words and bigrams"


def run(settings: Settings) -> Iterator[Case]:
    quick = settings.quick
    yield from _strings(settings, 5_000 if quick else 1_000_000)
    yield _pooled(settings, 2_000 if quick else 100_000)
    yield _unknown_words(settings, 500 if quick else 50_000)
    yield _text(settings)


def random_words(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    letters = string.ascii_lowercase + string.digits
    return ["".join(rng.choices(letters, k=rng.randint(shortest, longest))) for _ in range(count)]


def _strings(settings: Settings, count: int) -> Iterator[Case]:
    """Strings of 6 to 22 letters to rows; mmh3.hash is the fastest function of mmh3."""
    import mmh3

    words = random_words(count, 6, 22, seed=0)
    rows = 1_000_003
    hasher = se.KeyHasher(rows)
    wanted = [(mmh3.hash64(word, 0, signed=False)[0] * rows) >> 64 for word in words]

    def loop(_: int) -> list[int]:
        return [mmh3.hash(word) for word in words]

    def loop_128(_: int) -> list[tuple[int, int]]:
        return [mmh3.hash64(word) for word in words]

    columns: dict[str, Any] = {
        "list[str]": words,
        "list[bytes]": [word.encode() for word in words],
        "NumPy U array": np.array(words),
    }
    absent = {}
    try:
        import pyarrow as pa
    except ImportError as error:
        absent["Arrow"] = f"not installed ({error})"
    else:
        columns["Arrow string"] = pa.array(words)
        columns["Arrow string_view"] = pa.array(words, pa.string_view())
    for name, column in columns.items():

        def ours(_: int, column: Any = column) -> Any:
            return hasher(column)

        gate([Competitor(name, ours, lambda f=ours: f(0))], wanted, 0.0, f"{name} to rows")
        competitors = [Competitor("sparse_embed", ours), Competitor("mmh3.hash loop", loop)]
        if name == "list[str]":
            competitors.append(Competitor("mmh3.hash64 loop", loop_128))
        case = race(
            f"{name} to rows: {count:,} strings", competitors, settings.count(9, 2), absent=absent
        )
        case.facts["million a second"] = count / 1e6 / case.median("sparse_embed")
        yield case


def _pooled(settings: Settings, count: int) -> Case:
    """Strings to vectors: 4 rows of 64 floats summed, of a table of a million rows; thinc's table.

    thinc hashes ids, so its side begins with spaCy's string ids (also timed without them).
    """
    rows, dim, seed = 1_000 if settings.quick else 1_000_000, 64, 3
    name = f"strings to pooled vectors: {count:,}, 4 rows each, {rows:,} x {dim}"
    try:
        from spacy.strings import hash_string
        from thinc.api import HashEmbed, NumpyOps
    except ImportError as error:
        return Case(name, absent={"thinc": f"not installed ({error})"})
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
    hasher = se.KeyHasher(rows, 4, seed, scheme="thinc")

    def hashed() -> Any:
        return np.array([hash_string(word) for word in words], np.uint64)

    ids = hashed()

    def ours(_: int) -> Any:
        return table.lookup(hasher(words), mode="sum")

    def theirs(_: int) -> Any:
        return layer.predict(hashed())

    competitors = [
        Competitor("sparse_embed", ours, lambda: ours(0)),
        Competitor("thinc with spaCy's ids", theirs, lambda: theirs(0)),
        Competitor("thinc, its ids given", lambda i: layer.predict(ids)),
    ]
    gate(competitors, theirs(0), 1e-5, name)
    return race(name, competitors, settings.count(9, 2))


def _unknown_words(settings: Settings, count: int) -> Case:
    """Vectors of out-of-vocabulary words: mean of their 3- to 6-gram rows."""
    dim, buckets = 64, 5_000 if settings.quick else 500_000
    name = f"out-of-vocabulary words: {count:,}, 3- to 6-grams, {buckets:,} x {dim}"
    try:
        import fasttext
    except ImportError as error:
        return Case(name, absent={"fastText": f"not installed ({error})"})
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
    hasher = se.NgramHasher(buckets, first_row=len(weight) - buckets)

    def ours(_: int) -> Any:
        return table.lookup(*hasher(words), mode="mean")

    def theirs(_: int) -> Any:
        return [model.get_word_vector(word) for word in words]

    competitors = [
        Competitor("sparse_embed", ours, lambda: ours(0)),
        Competitor("fastText", theirs, lambda: np.stack(theirs(0))),
    ]
    gate(competitors, np.stack(theirs(0)), 1e-6, name)
    return race(name, competitors, settings.count(7, 2))


def _text(settings: Settings) -> Case:
    """A corpus as words and bigrams into 2M rows, and its census against a count by brute force."""
    rows = 2_000_000
    if settings.text is None:
        words = random_words(400, 3, 7, seed=8)
        rng = random.Random(9)
        texts = [" ".join(rng.choices(words, k=60)) for _ in range(50 if settings.quick else 5000)]
        name = f"words and bigrams: {len(texts):,} made-up texts (--text FILE for real ones)"
    else:
        import lzma

        with lzma.open(settings.text, "rt", encoding="utf-8") as file:
            texts = [line.rstrip("\n").split("\t")[2] for line in file]
        name = f"words and bigrams of {settings.text.name}: {len(texts):,} texts"
    hasher = se.WordNgramHasher(rows, max_n=2)
    census = hasher.collisions(texts)
    counted = _brute_force(hasher, texts)
    found = (census.distinct, census.collisions)
    if found != counted:
        raise Disagreement(f"census says {found} keys and collisions, a count by hand {counted}")
    competitors = [
        Competitor("sparse_embed", lambda i: hasher(texts)),
        Competitor("sparse_embed, census", lambda i: hasher.collisions(texts)),
    ]
    case = race(f"{name}, {rows:,} rows", competitors, settings.count(5, 1), warmup=1)
    case.facts = {
        "rows made": len(hasher(texts)[0]),
        "distinct": census.distinct,
        "collisions": census.collisions,
        "expected": float(census.expected_collisions),
    }
    return case


def _brute_force(hasher: se.WordNgramHasher, texts: list[str]) -> tuple[int, int]:
    """(distinct keys, those that share a row), with a dictionary of the words themselves."""
    rows = iter(hasher(texts)[0].tolist())
    row_of: dict[bytes, int] = {}
    for text in texts:
        words = text.encode().split()
        for key in [*words, *(a + b" " + b for a, b in pairwise(words))]:
            row = next(rows)
            if row_of.setdefault(key, row) != row:
                raise Disagreement(f"{key!r} has two rows")
    owners = Counter(row_of.values())
    return len(row_of), sum(owners[row] > 1 for row in row_of.values())
