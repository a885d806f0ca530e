"""(feature, value) pairs: equal values of two fields are two keys."""

from __future__ import annotations

import mmh3
import numpy as np
import pytest

from sparse_embed import reference_hashes as twin
from sparse_embed.errors import ArgumentError
from sparse_embed.keys import KeyHasher

HASHER = KeyHasher(1_000_003, 2, seed=5)
PAIRS = [("country", "DE"), ("age", 31), ("device", b"ios"), ("age", np.int64(-1)), ("país", "DE")]


def by_twin(name: str, value: bytes, seed: int = 5) -> list[int]:
    return twin.rows(value, 1_000_003, 2, twin.murmur3_x64_128(name.encode(), seed))


def test_pairs_equal_the_twin() -> None:
    want = [
        by_twin("country", b"DE"),
        by_twin("age", twin.id_bytes(31)),
        by_twin("device", b"ios"),
        by_twin("age", twin.id_bytes(-1)),
        by_twin("país", b"DE"),
    ]
    assert HASHER(PAIRS).tolist() == want
    assert HASHER(tuple(PAIRS)).tolist() == want
    assert len({tuple(rows) for rows in want}) == len(want)


def test_a_named_column_is_the_same_as_pairs() -> None:
    values = ["DE", "FR", "münchen"]
    want = HASHER([("country", value) for value in values]).tolist()
    assert HASHER(values, feature="country").tolist() == want
    assert HASHER(np.array(values), feature=["country"] * 3).tolist() == want
    assert HASHER(values).tolist() != want
    ages = np.arange(100_000)
    assert HASHER(ages, feature="age")[31].tolist() == HASHER([("age", 31)])[0].tolist()
    names = ["age", "size"] * 50_000
    mixed = HASHER(ages, feature=names)
    assert mixed[::2].tolist() == HASHER(ages[::2], feature="age").tolist()
    assert mixed[1::2].tolist() == HASHER(ages[1::2], feature="size").tolist()


def test_one_column_of_names_over_many_blocks() -> None:
    values = [str(i % 97) for i in range(150_000)]
    names = [f"f{i % 5}" for i in range(150_000)]
    want = HASHER(values[:200], feature=names[:200]).tolist()
    whole = HASHER(values, feature=names)
    assert whole[:200].tolist() == want
    assert whole[97 * 5 * 250 : 97 * 5 * 250 + 200].tolist() == want


def test_dictionary_columns_with_names() -> None:
    pa = pytest.importorskip("pyarrow")
    values = ["DE", "FR", "DE", None]
    names = ["a", "a", "b", "b"]
    hasher = KeyHasher(1_000_003, missing="skip")
    want = hasher(values, feature=names).tolist()
    assert hasher(pa.array(values).dictionary_encode(), feature=pa.array(names)).tolist() == want
    assert want[0] != want[2]
    assert want[3] == -1


def test_missing_values_of_a_feature_have_a_row_of_that_feature() -> None:
    hasher = KeyHasher(1_000_003, missing="hash")
    rows = hasher([("age", None), ("size", None), ("age", None), ("age", "")]).tolist()
    assert rows[0] == rows[2]
    assert len(set(rows)) == 3
    assert rows[0] == hasher([None], feature="age")[0]
    state = tuple(h ^ (2**64 - 1) for h in mmh3.hash64("age", 0, signed=False))
    assert rows[0] == twin.rows(b"", 1_000_003, 1, state)[0]  # type: ignore[arg-type]


def test_sklearn_pairs_are_name_equals_value() -> None:
    hasher = KeyHasher(1 << 20, scheme="sklearn")
    want = hasher.signed(["country=DE", "device=ios"])
    for got in (
        hasher.signed([("country", "DE"), ("device", "ios")]),
        hasher.signed(["DE", "ios"], feature=["country", "device"]),
    ):
        assert got[0].tolist() == want[0].tolist()
        assert got[1].tolist() == want[1].tolist()


@pytest.mark.parametrize(
    ("keys", "feature", "message"),
    [
        ([("a", 1), "b"], None, r"keys\[1\]: expected a pair"),
        ([("a", 1), ("b",)], None, r"keys\[1\]: expected a pair"),
        ([("a", 1), (2, 3)], None, r"keys\[1\]: expected a pair"),
        ([("a", 1.5)], None, r"keys\[0\]: the value of feature 'a' should be str, bytes or int"),
        ([("a", 1), ("b", None)], None, r"keys\[1\]: the value of 'b' is missing"),
        ([("a", "\ud800")], None, r"of the pairs with str values, keys\[0\]: .* lone surrogate"),
        ([1, 2], ["a"], "feature: got 1 names for 2 keys"),
        ([1, 2], ["a", None], r"feature: of its names, keys\[1\] is missing"),
    ],
)
def test_bad_pairs_are_named(keys: object, feature: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        HASHER(keys, feature=feature)


def test_schemes_without_pairs_refuse() -> None:
    with pytest.raises(ArgumentError, match="the thinc recipe has no"):
        KeyHasher(10, scheme="thinc")([("a", 1)])
    with pytest.raises(ArgumentError, match=r"keys\[0\]: expected str \(scikit-learn counts"):
        KeyHasher(10, scheme="sklearn")([("a", 1)])
