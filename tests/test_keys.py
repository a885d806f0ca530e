"""KeyHasher's default scheme: rows equal mmh3's and the plain-Python twin's, however keys come."""

from __future__ import annotations

import doctest
import random
import tracemalloc

import mmh3
import numpy as np
import pytest

from sparse_embed import reference_hashes
from sparse_embed.errors import ArgumentError
from sparse_embed.kernels import _jit
from sparse_embed.keys import KeyHasher
from sparse_embed.keys import input as key_input

WORDS = [
    "",
    "a",
    "new york",
    "münchen",
    "北海道",
    "a\0b",
    "tail\0",
    "😀",
    "x" * 15,
    "y" * 16,
    "z" * 17,
]


def random_bytes(count: int, longest: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randint(0, longest)) for _ in range(count)]


def rows_by_mmh3(keys: list[bytes], rows: int, seed: int = 0) -> list[int]:
    return [(mmh3.hash64(key, seed, signed=False)[0] * rows) >> 64 for key in keys]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1])
def test_hashes_equal_mmh3(seed: int) -> None:
    keys = random_bytes(100_000, 64, seed)
    ours = KeyHasher(10, seed=seed).hashes(keys)
    assert ours.dtype == np.uint64
    assert ours.tolist() == [list(mmh3.hash64(key, seed, signed=False)) for key in keys]


def test_hashes_of_megabytes_equal_mmh3() -> None:
    rng = random.Random(1)
    keys = [rng.randbytes(size) for size in (1 << 20, 3_000_001, 0, 5_242_887)]
    ours = KeyHasher(10, seed=7).hashes(keys)
    assert ours.tolist() == [list(mmh3.hash64(key, 7, signed=False)) for key in keys]


@pytest.mark.parametrize("rows", [1, 2, 10, 1 << 20, 1_000_003, (1 << 40) + 7, 1 << 62, 1 << 63])
def test_rows_are_floor_of_hash_times_rows(rows: int) -> None:
    keys = random_bytes(500, 40, rows)
    assert KeyHasher(rows, seed=5)(keys).tolist() == rows_by_mmh3(keys, rows, 5)


@pytest.mark.parametrize("num_hashes", [2, 3, 4, 9])
def test_several_rows_equal_twin_and_first_row_stays(num_hashes: int) -> None:
    keys = [word.encode() for word in WORDS] + random_bytes(200, 40, 3)
    ours = KeyHasher(99_991, num_hashes, seed=11)(keys)
    assert ours.shape == (len(keys), num_hashes)
    twin = [reference_hashes.rows(key, 99_991, num_hashes, 11) for key in keys]
    assert ours.tolist() == twin
    assert ours[:, 0].tolist() == KeyHasher(99_991, seed=11)(keys).tolist()


def test_rows_are_uniform_and_columns_independent() -> None:
    """Chi-square of 64 cells per column and of pairs of columns: 63 and 4095 degrees of freedom."""
    rows = KeyHasher(64, 3)(np.arange(262_144))
    for j in range(3):
        counts = np.bincount(rows[:, j], minlength=64)
        assert ((counts - 4096) ** 2 / 4096).sum() < 63 + 6 * np.sqrt(2 * 63)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pairs = np.bincount(rows[:, i] * 64 + rows[:, j], minlength=4096)
        assert ((pairs - 64) ** 2 / 64).sum() < 4095 + 6 * np.sqrt(2 * 4095)


def test_two_shared_rows_do_not_imply_the_third() -> None:
    rows = KeyHasher(8, 3)(np.arange(60_000))
    same = np.flatnonzero((rows[:, 0] == rows[0, 0]) & (rows[:, 1] == rows[0, 1]))
    share = (rows[same, 2] == rows[0, 2]).mean()
    assert len(same) > 700
    assert abs(share - 1 / 8) < 0.05


def test_golden_values() -> None:
    """Today's rows of a few keys: a model on disk depends on them for good."""
    assert KeyHasher(1_000_003)(["new york", "münchen"]).tolist() == [27_912, 622_089]
    assert KeyHasher(1_000_003)([5, -1, 2**62]).tolist() == [61_840, 628_491, 932_619]
    assert KeyHasher(1_000_003, 3, seed=7)(["new york"]).tolist() == GOLDEN_3
    assert KeyHasher(10).hashes([0]).tolist() == [
        [2_945_182_322_382_062_539, 17_462_001_654_787_800_658]
    ]


GOLDEN_3 = [reference_hashes.rows(b"new york", 1_000_003, 3, 7)]


# ---- the same key, however it comes -------------------------------------------------------------


def test_strings_agree_in_every_container() -> None:
    words = [word for word in WORDS if not word.endswith("\0")]
    want = rows_by_mmh3([word.encode() for word in words], 99_991)
    hasher = KeyHasher(99_991)
    encoded = [word.encode() for word in words]
    for keys in (
        words,
        tuple(words),
        encoded,
        np.array(words),
        np.array(words).astype(np.array(words).dtype.newbyteorder()),
        np.array(encoded),
        np.array(words, object),
        np.array(encoded, object),
        np.array(words, np.dtypes.StringDType()),
        [np.str_(word) for word in words],
        np.array(words)[::-1][::-1],
    ):
        assert hasher(keys).tolist() == want


def test_trailing_nuls_count_except_in_fixed_width_arrays() -> None:
    hasher = KeyHasher(99_991)
    assert hasher(["tail\0"]).tolist() == rows_by_mmh3([b"tail\0"], 99_991)
    assert hasher(np.array(["tail\0", "\0\0"])).tolist() == rows_by_mmh3([b"tail", b""], 99_991)
    assert hasher(np.array([b"tail\0", b"a\0b"])).tolist() == rows_by_mmh3(
        [b"tail", b"a\0b"], 99_991
    )


def test_arrays_keep_their_shape() -> None:
    words = np.array([["a", "b", "c"], ["d", "e", "f"]])
    assert KeyHasher(50)(words).shape == (2, 3)
    assert KeyHasher(50, 4)(words).shape == (2, 3, 4)
    assert KeyHasher(50, 4)(np.arange(6).reshape(1, 6)).shape == (1, 6, 4)
    assert KeyHasher(50)(words.T).tolist() == KeyHasher(50)(words).T.tolist()


@pytest.mark.parametrize(
    "empty",
    [
        [],
        (),
        np.array([], np.int32),
        np.array([], "U3"),
        np.array([], object),
        np.empty((0, 2), "S1"),
    ],
)
def test_no_keys_give_no_rows(empty: object) -> None:
    assert KeyHasher(50)(empty).size == 0
    assert KeyHasher(50)(empty).dtype == np.int64
    assert KeyHasher(50, 3)(empty).shape[-1] == 3


def test_zero_width_arrays_hold_empty_strings() -> None:
    want = rows_by_mmh3([b"", b""], 50, 3)
    assert KeyHasher(50, seed=3)(np.array(["", ""])).tolist() == want
    assert KeyHasher(50, seed=3)(np.zeros(2, "S0")).tolist() == want


@pytest.mark.parametrize(
    "size", [0, 1, 2047, 2048, 2049, key_input.BLOCK, key_input.BLOCK + 1, 200_001]
)
def test_block_edges(size: int) -> None:
    keys = [str(i) for i in range(size)]
    want = rows_by_mmh3([key.encode() for key in keys], 12_345)
    assert KeyHasher(12_345)(keys).tolist() == want


def test_long_strings_outgrow_the_packing_buffer() -> None:
    keys = ["x" * 3_000_000, "é" * 2_000_000, "", "short"] * 2
    want = rows_by_mmh3([key.encode() for key in keys], 12_345)
    assert KeyHasher(12_345)(keys).tolist() == want


def test_more_than_2_gib_of_strings_in_little_memory() -> None:
    """A block ends at 16 MiB: the list holds one string 2200 times, 2.3 GB in all."""
    tracemalloc.start()
    rows = KeyHasher(12_345)(["x" * (1 << 20), "y"] * 2200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    want = rows_by_mmh3([b"x" * (1 << 20), b"y"], 12_345)
    assert rows.tolist() == want * 2200
    assert peak < 1 << 26


def test_a_missing_key_among_long_strings() -> None:
    keys = ["x" * 9_000_000, None, "y" * 9_000_000, "z", None]
    rows = KeyHasher(12_345, missing="skip")(keys)
    present = [key.encode() for key in keys if key is not None]
    assert rows[[0, 2, 3]].tolist() == rows_by_mmh3(present, 12_345)
    assert rows[[1, 4]].tolist() == [-1, -1]


def test_packing_without_the_c_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_input, "_c_api", lambda: False)
    keys = WORDS * 7_000
    want = rows_by_mmh3([key.encode() for key in keys], 12_345)
    assert KeyHasher(12_345)(keys).tolist() == want
    with pytest.raises(ArgumentError, match=r"keys\[70000\]: expected str"):
        KeyHasher(5)(["a"] * 70_000 + [3])
    with pytest.raises(ArgumentError, match=r"keys\[1\]: .* lone surrogate U\+DC80"):
        KeyHasher(5)(["a", "\udc80"])


def test_invalid_utf8_bytes_are_hashed_as_bytes() -> None:
    keys = [b"\xff\xfe", b"\x80", b"\xed\xa0\x80"]
    assert KeyHasher(12_345)(keys).tolist() == rows_by_mmh3(keys, 12_345)


# ---- integers -----------------------------------------------------------------------------------

INTEGERS = "bBhHiIlLqQ"


@pytest.mark.parametrize("code", INTEGERS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_integers_hash_by_value(code: str, order: str) -> None:
    dtype = np.dtype(code).newbyteorder(order)
    info = np.iinfo(dtype)
    values = [info.min, info.max, 0, 1, 5, info.max // 3]
    want = [reference_hashes.rows(reference_hashes.id_bytes(v), 99_991)[0] for v in values]
    assert KeyHasher(99_991)(np.array(values, dtype)).tolist() == want
    assert KeyHasher(99_991)(values).tolist() == want
    read_only = np.array(values, dtype)
    read_only.flags.writeable = False
    assert KeyHasher(99_991)(read_only[::2]).tolist() == want[::2]


def test_integers_hash_as_their_eight_bytes() -> None:
    values = [0, 1, -1, 2**63 - 1, -(2**63)]
    want = rows_by_mmh3([v.to_bytes(8, "little", signed=True) for v in values], 99_991, 3)
    assert KeyHasher(99_991, seed=3)(values).tolist() == want
    assert (
        KeyHasher(99_991, seed=3)(range(3)).tolist()
        == KeyHasher(99_991, seed=3)([0, 1, 2]).tolist()
    )


def test_string_and_integer_that_look_alike_differ() -> None:
    assert KeyHasher(2**60)(["5"])[0] != KeyHasher(2**60)([5])[0]


def test_minus_one_and_uint64_max_are_one_key() -> None:
    assert KeyHasher(2**60)([-1])[0] == KeyHasher(2**60)([2**64 - 1])[0]


# ---- determinism --------------------------------------------------------------------------------


def test_rows_do_not_depend_on_threads() -> None:
    keys = random_bytes(50_000, 64, 9)
    hasher = KeyHasher(1 << 40, 3)
    want = hasher(keys)
    before = _jit.get_num_threads()
    try:
        for threads in range(1, before + 1):
            _jit.set_num_threads(threads)
            assert (hasher(keys) == want).all()
    finally:
        _jit.set_num_threads(before)


# ---- missing keys -------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    "keys",
    [
        ["a", None, "b", NAN],
        [b"a", None, b"b", None],
        np.array(["a", None, "b", NAN], object),
        [3, None, 4, NAN],
        [None, "a", None, "b"],
    ],
)
def test_missing_keys(keys: list[object]) -> None:
    gone = [key is None or key != key for key in keys]
    with pytest.raises(ArgumentError, match=rf"keys\[{gone.index(True)}\] is missing"):
        KeyHasher(1000)(keys)
    present = [key for key, g in zip(keys, gone, strict=True) if not g]
    skipped = KeyHasher(1000, missing="skip")(keys)
    assert (skipped == -1).tolist() == gone
    assert skipped[~np.array(gone)].tolist() == KeyHasher(1000)(present).tolist()
    hashed = KeyHasher(1000, 2, missing="hash", seed=4)(keys)
    own = reference_hashes.rows(b"", 1000, 2, (2**64 - 5, 2**64 - 5))
    assert hashed[gone].tolist() == [own] * sum(gone)


def test_all_keys_missing() -> None:
    assert KeyHasher(10, missing="skip")([None, NAN]).tolist() == [-1, -1]
    assert KeyHasher(10, 2, missing="skip", scheme="thinc")([None]).tolist() == [[-1, -1]]
    with pytest.raises(ArgumentError, match=r"keys\[0\] is missing"):
        KeyHasher(10)([None])


def test_masked_arrays() -> None:
    keys = np.ma.masked_array([1, 2, 3], [False, True, False])
    assert KeyHasher(10, missing="skip")(keys)[1] == -1
    with pytest.raises(ArgumentError, match=r"keys\[1\] is missing"):
        KeyHasher(10)(keys)


# ---- refusals -----------------------------------------------------------------------------------

REFUSED = [
    (["a", 1], r"keys\[1\]: expected str, as the first key is, got int 1"),
    (["a", b"c"], r"keys\[1\]: expected str, as the first key is, got bytes b'c'"),
    ([b"a", "c"], r"keys\[1\]: expected bytes, as the first key is, got str 'c'"),
    ([1, "a"], r"keys\[1\]: expected an int, as the others are, got str 'a'"),
    ([1, 1.5], r"keys\[1\]: expected an int, as the others are, got float 1.5"),
    ([1, True], r"keys\[1\]: expected an int, as the others are, got bool True"),
    ([True], r"keys\[0\]: expected str, bytes or int keys of one kind, got bool True"),
    ([1.5], r"keys: floating-point ids"),
    (np.array([1.0, NAN]), r"keys: floating-point ids \(float64, among them NaN\)"),
    (np.array([1.0]), r"keys: floating-point ids \(float64\)"),
    (np.array([True]), r"keys: .* dtype bool"),
    (np.array(["2020-01-01"], "M8[D]"), r"keys: .* dtype datetime64"),
    ("abc", r"keys: got one str, expected a sequence of keys"),
    (b"abc", r"keys: got one bytes"),
    ({1, 2}, r"keys: expected a list, .* got set"),
    (None, r"keys: expected a list, .* got NoneType"),
    (["ok", "bad\udc80"], r"keys\[1\]: .* the lone surrogate U\+DC80"),
    (np.array(["ok", "\ud800"]), r"keys\[1\]: .* the lone surrogate U\+D800"),
    ([0, 2**64], r"keys\[1\]: 18446744073709551616 does not fit 64 bits"),
    ([0, -(2**63) - 1], r"keys\[1\]: -9223372036854775809 does not fit 64 bits"),
    ([-1, 2**63], r"negative ids \(-1\) and ids of 2\^63 or more"),
    (["a"] * 70_000 + [3], r"keys\[70000\]: expected str"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_bad_keys_are_named(keys: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        KeyHasher(10)(keys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings: expected 1 to 9223372036854775808, got 0"),
        ({"num_embeddings": 2**63 + 1}, "num_embeddings: expected 1 to"),
        ({"num_embeddings": 1.5}, "num_embeddings: expected an integer, got 1.5"),
        ({"num_hashes": 0}, "num_hashes: expected 1 to 1024, got 0"),
        ({"seed": -1}, "seed: expected 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed: expected 0 to 4294967295"),
        ({"scheme": "md5"}, "scheme: expected one of murmur3, thinc, .*, got 'md5'"),
        ({"scheme": "thinc", "num_hashes": 5}, "num_hashes: expected 1 to 4, got 5"),
        (
            {"scheme": "thinc", "num_embeddings": 2**32 + 1},
            "num_embeddings: expected 1 to 4294967296",
        ),
        ({"scheme": "fasttext", "seed": 3}, "seed: the fasttext recipe has none to choose, got 3"),
        ({"missing": "drop"}, 'missing: expected "raise", "skip" or "hash"'),
        ({"missing": "hash", "scheme": "floret"}, 'missing: "hash" is defined for murmur3'),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        KeyHasher(**{"num_embeddings": 10, **arguments})


def test_no_kernel_compiles_twice() -> None:
    from sparse_embed.kernels import hashing

    hasher = KeyHasher(10)
    kernels = (
        hashing.hash_strings_cpu(0, 0, hashing.ONE_ROW),
        hashing.hash_ids_cpu(0, hashing.ONE_ROW),
    )
    hasher(["a"]), hasher([1])
    before = [len(kernel.signatures) for kernel in kernels]
    hasher(["a", "b"] * 5), hasher(np.array([1, 2], np.int8)), hasher(["ä", None][:1])
    assert [len(kernel.signatures) for kernel in kernels] == before


def test_docstring_examples() -> None:
    from sparse_embed.keys import hasher as keys

    result = doctest.testmod(keys)
    assert result.attempted >= 6
    assert result.failed == 0
