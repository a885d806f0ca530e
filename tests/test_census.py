"""The census against a brute-force count with dictionaries, and against its own formulas."""

from __future__ import annotations

import collections
import gzip
import itertools
import json
import lzma
import os
import pathlib
from typing import Any

import numpy as np
import pytest

from sparse_embed.errors import ArgumentError
from sparse_embed.keys import KeyHasher, file_census
from sparse_embed.keys import census as census_module
from sparse_embed.keys.census import census_of, expected_clash, expected_used_rows, rows_needed
from sparse_embed.keys.file_census import read_keys, report
from sparse_embed.keys.word_ngrams import WordNgramHasher


def brute_force(keys: list[Any], rows: list[list[int]]) -> dict[str, Any]:
    """Counts by dictionaries: traffic, distinct, used rows, keys without a row of their own."""
    rows_of = dict(zip(keys, map(tuple, rows), strict=True))
    counts = collections.Counter(keys)
    users = collections.defaultdict(set)
    for key, its in rows_of.items():
        for row in its:
            users[row].add(key)
    clashing = [k for k, its in rows_of.items() if all(len(users[row]) > 1 for row in its)]
    same = collections.Counter(tuple(sorted(its)) for its in rows_of.values())
    return {
        "keys": len(keys),
        "distinct": len(counts),
        "used_rows": len(users),
        "collisions": len(clashing),
        "clashing_traffic": sum(counts[k] for k in clashing) / len(keys),
        "identical": sum(n for n in same.values() if n > 1),
    }


def zipf_words(count: int, seed: int) -> list[str]:
    return [f"w{i}" for i in np.random.default_rng(seed).zipf(1.3, count).tolist()]


@pytest.mark.parametrize("num_hashes", [1, 2, 3])
@pytest.mark.parametrize("rows", [50, 1000, 100_000, 1 << 40])
def test_counts_equal_brute_force(num_hashes: int, rows: int) -> None:
    keys = zipf_words(5000, rows % 97)
    hasher = KeyHasher(rows, num_hashes, seed=3)
    found = hasher.collisions(keys)
    want = brute_force(keys, hasher(keys).reshape(len(keys), -1).tolist())
    assert {name: getattr(found, name) for name in want} == pytest.approx(want)
    assert (found.num_embeddings, found.num_hashes, found.missing) == (rows, num_hashes, 0)


@pytest.mark.parametrize("scheme", ["thinc", "floret", "fasttext", "sklearn", "spacy"])
def test_counts_of_other_schemes(scheme: str) -> None:
    keys = zipf_words(3000, 5)
    hasher = KeyHasher(997, 2 if scheme in ("thinc", "floret") else 1, scheme=scheme)
    found = hasher.collisions(keys)
    want = brute_force(keys, hasher(keys).reshape(len(keys), -1).tolist())
    assert {name: getattr(found, name) for name in want} == pytest.approx(want)


def test_worst_pairs_are_the_busiest() -> None:
    keys = zipf_words(5000, 1)
    hasher = KeyHasher(300)
    found = hasher.collisions(keys, top=5)
    counts = collections.Counter(keys)
    groups = collections.defaultdict(list)
    for key in counts:
        groups[int(hasher([key])[0])].append(counts[key])
    lesser = sorted((sorted(g)[-2] for g in groups.values() if len(g) > 1), reverse=True)
    assert [clash.counts[1] for clash in found.worst] == lesser[:5]
    for clash in found.worst:
        assert clash.counts == tuple(counts[key] for key in clash.keys)
        assert hasher(list(clash.keys)).tolist() == [clash.row, clash.row]


@pytest.mark.parametrize("num_hashes", [1, 2, 4])
def test_an_ideal_hash_meets_the_expectations(num_hashes: int) -> None:
    """200 k keys in 400 k rows: within 6 standard deviations (pairs collide together: factor 2)."""
    found = KeyHasher(400_000, num_hashes, seed=2).collisions(np.arange(200_000))
    spread = 6 * np.sqrt(2 * found.expected_collisions) + 1
    assert abs(found.collisions - found.expected_collisions) < spread
    assert abs(found.used_rows - found.expected_used_rows) < 6 * np.sqrt(found.expected_used_rows)
    assert found.expected_clashing_traffic == pytest.approx(found.expected_collisions / 200_000)


def test_grid_counts_tables_of_other_sizes() -> None:
    keys = zipf_words(5000, 7)
    found = KeyHasher(1000, 2, seed=9).collisions(keys)
    for cell in found.grid:
        other = KeyHasher(cell.num_embeddings, cell.num_hashes, seed=9)
        want = 1 - other.collisions(keys).clashing_traffic
        assert cell.clean_traffic == pytest.approx(want)
        clash = expected_clash(found.distinct, cell.num_embeddings, cell.num_hashes)
        assert cell.expected_clean_traffic == pytest.approx(1 - clash)
    thinc = KeyHasher(1000, 2, scheme="thinc").collisions(keys)
    assert {cell.num_hashes for cell in thinc.grid if cell.clean_traffic is not None} == {
        1,
        2,
        3,
        4,
    }
    sklearn = KeyHasher(1000, scheme="sklearn").collisions(keys)
    for cell in sklearn.grid:
        assert (cell.clean_traffic is None) == (cell.num_hashes > 1)
        if cell.num_hashes == 1:
            want = KeyHasher(cell.num_embeddings, scheme="sklearn").collisions(keys)
            assert cell.clean_traffic == pytest.approx(1 - want.clashing_traffic)


@pytest.mark.parametrize("num_hashes", [1, 2, 3])
@pytest.mark.parametrize("target", [0.5, 0.9, 0.999])
def test_rows_needed_reach_the_target(num_hashes: int, target: float) -> None:
    rows = rows_needed(100_000, target, num_hashes)
    assert 1 - expected_clash(100_000, rows, num_hashes) >= target
    assert 1 - expected_clash(100_000, int(rows * 0.999), num_hashes) < target


def test_formulas_at_the_edges() -> None:
    assert expected_clash(1, 10) == 0.0
    assert expected_clash(2, 1) == 1.0
    assert expected_clash(2, 10) == pytest.approx(0.1)
    assert expected_used_rows(3, 1) == 1.0
    assert expected_used_rows(2, 10) == pytest.approx(1.9)
    assert rows_needed(1, 0.9) == 1
    with pytest.raises(ArgumentError, match="clean_traffic: expected between 0 and 1"):
        rows_needed(10, 1.0)


def test_empty_single_and_missing_keys() -> None:
    empty = KeyHasher(10).collisions([])
    assert (empty.keys, empty.distinct, empty.collisions, empty.clashing_traffic) == (0, 0, 0, 0.0)
    one = KeyHasher(10, 2).collisions(["a", "a"])
    assert (one.keys, one.distinct, one.collisions) == (2, 1, 0)
    skip = KeyHasher(1, missing="skip").collisions(["a", None, "b", None, "b"])
    assert (skip.keys, skip.missing, skip.distinct, skip.collisions) == (3, 2, 2, 2)
    assert skip.worst[0].keys == ("b", "a")
    kept = KeyHasher(1, missing="hash").collisions(["a", None, "b", None])
    assert (kept.keys, kept.missing, kept.distinct) == (4, 0, 3)
    with pytest.raises(ArgumentError, match=r"keys\[1\] is missing"):
        KeyHasher(1).collisions(["a", None])


def test_keys_of_any_container() -> None:
    pairs = [("a", 1), ("b", 1), ("a", 1)]
    found = KeyHasher(1).collisions(pairs)
    assert (found.distinct, found.worst[0].keys) == (2, (("a", 1), ("b", 1)))
    numbers = np.array([[5, 6], [5, 7]])
    found = KeyHasher(1, 2).collisions(numbers)
    assert (found.keys, found.distinct, found.identical) == (4, 3, 3)
    assert found.worst[0].keys == (5, 6)
    assert KeyHasher(1).collisions(np.array(["x", "y"])).worst[0].keys == ("x", "y")
    assert KeyHasher(9).collisions([1, 2, 1], feature="age").distinct == 2


def test_arrow_keys_are_named_as_python_values() -> None:
    pa = pytest.importorskip("pyarrow")
    found = KeyHasher(1).collisions(pa.chunked_array([["x"], ["y", "x"]]))
    assert found.worst[0].keys == ("x", "y")


def test_equal_first_words_do_not_merge_names() -> None:
    names = np.array([[1, 1], [1, 2], [1, 1], [1, 3], [2, 1]], np.uint64)
    found = census_of(names, np.zeros((5, 1), np.int64), 1)
    assert (found.distinct, found.keys) == (4, 5)


def test_sorting_and_counting_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = zipf_words(3000, 2)
    want = [KeyHasher(700, k).collisions(keys) for k in (1, 2)]
    monkeypatch.setattr(census_module, "_COUNTABLE", 0)
    assert [KeyHasher(700, k).collisions(keys) for k in (1, 2)] == want


def test_bad_rows_are_named() -> None:
    with pytest.raises(ArgumentError, match="rows: expected 0 to num_embeddings - 1 = 4"):
        census_of(np.arange(2), np.array([0, 5]), 5)
    with pytest.raises(ArgumentError, match="names, rows: expected one row per name, got 3, 2"):
        census_of(np.arange(3), np.array([0, 4]), 5)


def test_texts() -> None:
    texts = ["a b a b", "b a", "", "c"]
    grams = ["a", "b", "a", "b", "a b", "b a", "a b", "b", "a", "b a", "c"]
    for rows in (3, 1000):
        hasher = WordNgramHasher(rows)
        found = hasher.collisions(texts)
        want = brute_force(grams, hasher(texts)[0].reshape(-1, 1).tolist())
        assert {name: getattr(found, name) for name in want} == pytest.approx(want)
    (worst,) = (
        WordNgramHasher(1, max_n=1, scheme="fasttext", first_row=7)
        .collisions(["a b", "a"], top=1)
        .worst
    )
    assert (worst.keys, worst.counts) == (("a", "b"), (2, 1))
    counted = [cell.clean_traffic for cell in WordNgramHasher(3).collisions(texts).grid]
    assert None not in counted[:5]
    assert counted[5:] == [None] * 15


def test_file_report(tmp_path: pathlib.Path) -> None:
    lines = ["k1\tx", "k2\ty", "k1\té"]
    plain, packed = tmp_path / "keys.tsv", tmp_path / "keys.tsv.gz"
    plain.write_text("\n".join(lines) + "\n")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_keys(plain) == [line.encode() for line in lines]
    assert read_keys(packed, column=0) == [b"k1", b"k2", b"k1"]
    with pytest.raises(ArgumentError, match="line 1: no column 2, found 2"):
        read_keys(plain, column=2)
    found = report(read_keys(packed, column=1), 1)
    assert found.distinct == 3
    data = json.loads(json.dumps(found.as_dict()))
    assert data["keys"] == 3
    assert sorted(data["worst"][0]["keys"] + ["é"])[-1] == "é"
    assert report(["a", None], 5).missing == 1


def test_plot(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "census.png"
    KeyHasher(500).collisions(zipf_words(1000, 1)).plot(path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_grid_rows_equal_the_kernels() -> None:
    keys = [f"k{i}" for i in range(500)]
    for scheme, most in (("murmur3", 6), ("thinc", 4), ("floret", 4), ("sklearn", 1)):
        hasher = KeyHasher(10, scheme=scheme)
        words = hasher.hashes(keys).reshape(len(keys), -1)
        for rows in (1, 7, 1 << 20, (1 << 31) - 1):
            want = KeyHasher(rows, most, scheme=scheme)(keys).reshape(len(keys), -1)
            assert (file_census.rows_of_words(hasher, words, rows, most) == want).all()


@pytest.mark.slow
def test_a_corpus_of_six_million_tokens() -> None:
    """Words and bigrams of English Wikinews in 2M rows, against dictionaries."""
    given = os.environ.get("SPARSE_EMBED_SHARED_DATA")
    here = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
    path = (pathlib.Path(given) if given else here) / "wikinews-en" / "wikinews.tsv.xz"
    if not path.exists():
        pytest.skip("shared/data/wikinews-en is not here")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        texts = [line.rstrip("\n").split("\t")[2] for line in file]
    hasher = WordNgramHasher(2_000_000)
    grams: list[Any] = []
    for text in texts:
        tokens = text.encode().replace(b"\0", b" ").split()
        grams += tokens
        grams += itertools.pairwise(tokens)
    rows = hasher(texts)[0].reshape(-1, 1)
    assert len(rows) == len(grams) > 11_000_000
    counts = collections.Counter(grams)
    row_of = dict(zip(grams, rows[:, 0].tolist(), strict=True))
    users = collections.Counter(row_of.values())
    clashing = [gram for gram, row in row_of.items() if users[row] > 1]
    found = hasher.collisions(texts)
    assert (found.keys, found.distinct) == (len(grams), len(counts))
    assert (found.used_rows, found.collisions) == (len(users), len(clashing))
    assert found.clashing_traffic == pytest.approx(sum(counts[g] for g in clashing) / len(grams))
    assert abs(found.collisions - found.expected_collisions) < 6 * len(counts) ** 0.5
    for clash in found.worst:
        assert (
            len(
                {
                    row_of[tuple(key.encode().split()) if " " in key else key.encode()]
                    for key in clash.keys
                }
            )
            == 1
        )
