"""Each scheme gives its own system's numbers: shared vectors, recorded vectors, the packages."""

from __future__ import annotations

import json
import os
import pathlib
import random
from typing import Any

import mmh3
import numpy as np
import pytest

from sparse_embed import reference_hashes as twin
from sparse_embed.errors import ArgumentError
from sparse_embed.keys import KeyHasher
from sparse_embed.keys.schemes import SCHEMES

HERE = pathlib.Path(__file__).parent
RECORDED = json.loads((HERE / "vectors" / "keys.json").read_text())


@pytest.fixture(scope="module")
def vectors() -> pathlib.Path:
    given = os.environ.get("SPARSE_EMBED_SHARED_DATA")
    folder = pathlib.Path(given) if given else HERE.parent.parent / "shared" / "data"
    if not (folder / "hash-vectors").is_dir():
        pytest.skip("shared/data/hash-vectors is not here")
    return folder / "hash-vectors"


def random_bytes(count: int, longest: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randint(0, longest)) for _ in range(count)]


# ---- the twins themselves -----------------------------------------------------------------------


def smhasher_code(hash_to_bytes: Any, width: int) -> int:
    """SMHasher's verification: hashes of prefixes of 0, 1, 2 .. with seeds 256, 255 .., hashed."""
    hashes = b"".join(hash_to_bytes(bytes(range(i)), 256 - i) for i in range(256))
    assert len(hashes) == 256 * width
    return int.from_bytes(hash_to_bytes(hashes, 0)[:4], "little")


def test_twins_pass_smhasher() -> None:
    def x64_128(data: bytes, seed: int) -> bytes:
        return b"".join(h.to_bytes(8, "little") for h in twin.murmur3_x64_128(data, seed))

    assert smhasher_code(x64_128, 16) == 0x6384BA69
    assert (
        smhasher_code(lambda d, s: twin.murmur3_x86_32(d, s).to_bytes(4, "little"), 4) == 0xB0F57EE3
    )
    assert smhasher_code(lambda d, s: twin.murmur64a(d, s).to_bytes(8, "little"), 8) == 0x1F0D3804


def test_shared_murmur_vectors(vectors: pathlib.Path) -> None:
    shared = json.loads((vectors / "hash_vectors.json").read_text())
    assert len(shared["murmur3_x86_32"]) == 27
    for case in shared["murmur3_x86_32"]:
        data = bytes.fromhex(case["hex"])
        ours = KeyHasher(10, seed=case["seed"], scheme="sklearn").hashes([data])
        assert ours.view(np.uint32)[0] == case["h"] == twin.murmur3_x86_32(data, case["seed"])
    for case in shared["murmur3_128"]:
        data = bytes.fromhex(case["hex"])
        ours = KeyHasher(10, seed=case["seed"]).hashes([data])[0].tolist()
        assert ours == [case["lo"], case["hi"]]
    codes = shared["smhasher_verification"]
    assert codes["MurmurHash64A"]["code"] == 0x1F0D3804
    assert codes["MurmurHash3_x64_128"]["code"] == 0x6384BA69


# ---- thinc --------------------------------------------------------------------------------------


def check_thinc(section: dict[str, Any]) -> None:
    ids = np.array([int(i) for i in section["ids"]], np.uint64)
    for seed, keys in section["keys"].items():
        hasher = KeyHasher(50, 4, int(seed), scheme="thinc")
        assert hasher.hashes(ids).tolist() == keys
        assert hasher(ids).tolist() == [[key % 50 for key in four] for four in keys]
        one = KeyHasher(50, 1, int(seed), scheme="thinc")
        assert one(ids).tolist() == [four[0] % 50 for four in keys]
    layer = section["hashembed"]
    table = np.arange(layer["nV"] * layer["nO"], dtype=np.float32).reshape(layer["nV"], -1)
    rows = KeyHasher(layer["nV"], 4, layer["seed"], scheme="thinc")(ids)
    summed = (table / 7)[rows].sum(axis=1)
    np.testing.assert_allclose(summed, layer["y"], rtol=1e-6)


def test_thinc_shared_vectors(vectors: pathlib.Path) -> None:
    check_thinc(json.loads((vectors / "thinc_hashembed.json").read_text()))


def test_thinc_recorded_vectors() -> None:
    check_thinc(RECORDED["thinc"])


def test_thinc_package() -> None:
    thinc = pytest.importorskip("thinc.api")
    ids = np.random.default_rng(0).integers(0, 2**64, 5000, np.uint64)
    for seed in (0, 7, 2**31 - 1):
        keys = thinc.NumpyOps().hash(ids, seed)
        assert (KeyHasher(50, 4, seed, scheme="thinc").hashes(ids) == keys).all()


def test_thinc_hashes_strings_by_their_spacy_id() -> None:
    words = ["", *RECORDED["words"]]
    ids = np.array([twin.spacy_id(word) for word in words], np.uint64)
    hasher = KeyHasher(10_007, 4, 3, scheme="thinc")
    assert hasher(words).tolist() == hasher(ids).tolist()


# ---- spaCy, fastText, floret, scikit-learn ------------------------------------------------------


def test_spacy_recorded_vectors() -> None:
    hasher = KeyHasher(1_000_003, scheme="spacy")
    ids = [int(i) for i in RECORDED["spacy"]["hash"]]
    assert hasher.hashes(RECORDED["words"]).tolist() == ids
    assert hasher(RECORDED["words"]).tolist() == [i % 1_000_003 for i in ids]
    assert hasher.hashes([""]).tolist() == [int(RECORDED["spacy"]["empty"])] == [0]
    assert hasher.hashes(["spacy"]).tolist() == [10639093010105930009]


def test_spacy_package() -> None:
    strings = pytest.importorskip("spacy.strings")
    words = [key.hex() for key in random_bytes(3000, 20, 4) if key]
    ours = KeyHasher(10, scheme="spacy").hashes(words)
    assert ours.tolist() == [strings.hash_string(word) for word in words]


def test_fasttext_shared_vectors(vectors: pathlib.Path) -> None:
    words = json.loads((vectors / "fasttext_hash.json").read_text())
    assert len(words) == 14
    hasher = KeyHasher(2_000_000, scheme="fasttext")
    assert hasher.hashes(list(words)).tolist() == list(words.values())
    assert hasher(list(words)).tolist() == [h % 2_000_000 for h in words.values()]


def test_fasttext_published_hashes() -> None:
    hashes = KeyHasher(2_000_000, scheme="fasttext").hashes(["<ap", "<é", "语"])
    assert hashes.tolist() == [1520206650, 672036627, 3069033119]


def test_floret_published_hash() -> None:
    hasher = KeyHasher(1000, 4, scheme="floret")
    words = [2944390534, 3823770033, 2625612939, 4129847746]
    assert hasher.hashes(["<apple>"]).tolist() == [words]
    assert hasher(["<apple>"]).tolist() == [[word % 1000 for word in words]]
    assert KeyHasher(1000, 4, None, scheme="floret").seed == 2166136261


def check_sklearn(words: list[str], size: int, rows: list[int], signs: list[int]) -> None:
    ours, our_signs = KeyHasher(size, scheme="sklearn").signed(words)
    assert ours.tolist() == rows
    assert our_signs.tolist() == signs
    assert KeyHasher(size, scheme="sklearn")(words).tolist() == rows


def test_sklearn_recorded_vectors() -> None:
    section = RECORDED["sklearn"]
    check_sklearn(RECORDED["words"], section["n_features"], section["rows"], section["signs"])
    row, sign = KeyHasher(section["n_features"], scheme="sklearn").signed([("country", "DE")])
    assert [row[0], sign[0]] == section["pair"]
    hashes = [KeyHasher(10, seed=s, scheme="sklearn").hashes(["foo"])[0] for s in (0, 42)]
    assert hashes == [-156908512, -1322301282]


def test_sklearn_package() -> None:
    extraction = pytest.importorskip("sklearn.feature_extraction")
    words = list({key.hex() for key in random_bytes(2000, 12, 8) if key})
    for size in (7, 1 << 20, (1 << 31) - 1):
        coo = extraction.FeatureHasher(size, input_type="string").transform([[w] for w in words])
        coo = coo.tocoo()
        order = np.argsort(coo.row)
        rows, signs = coo.col[order].tolist(), coo.data[order].astype(int).tolist()
        check_sklearn(words, size, rows, signs)


def test_sklearn_of_the_most_negative_hash() -> None:
    """|-2^31| = 2^31 mod n, which scikit-learn computes as (2147483647 - (n - 1)) % n."""
    assert twin.sklearn_row(b"", 1000, 0) == (0, 1)
    for size in (3, 1000, (1 << 31) - 1):
        assert (1 << 31) % size == (2147483647 - (size - 1)) % size


# ---- integer recipes ----------------------------------------------------------------------------


def test_fbgemm_zch_vectors() -> None:
    keys = [0, 1, 42, 10**12]
    want = [18435680919526311008, 15431879060277903125, 5430222864781560104, 4747215227925206304]
    hasher = KeyHasher(1_000_003, scheme="fbgemm_zch")
    assert hasher.hashes(keys).tolist() == want == [twin.fbgemm_zch(key) for key in keys]
    assert hasher(keys).tolist() == [h % 1_000_003 for h in want]
    assert hasher.hashes([-7]).tolist() == [twin.fbgemm_zch(-7)]


def test_fmix64_vectors() -> None:
    hasher = KeyHasher(1 << 63, scheme="fmix64")
    assert hasher.hashes([1, 42]).tolist() == [12994781566227106604, 9297814886316923340]
    keys = np.random.default_rng(1).integers(0, 2**64, 3000, np.uint64)
    hashes = [twin.fmix64(int(key)) for key in keys]
    assert hasher.hashes(keys).tolist() == hashes
    assert hasher(keys).tolist() == [h % (1 << 63) for h in hashes]


# ---- all of them --------------------------------------------------------------------------------

TWINS = {
    "floret": lambda key: list(twin.halves(*twin.murmur3_x64_128(key, 2166136261))),
    "fasttext": twin.fasttext_hash,
    "spacy": lambda key: twin.murmur64a(key, 1) if key else 0,
    "thinc": lambda key: list(
        twin.halves(*twin.murmur3_x64_128(twin.id_bytes(twin.murmur64a(key, 1) if key else 0)))
    ),
}


@pytest.mark.parametrize("name", sorted(TWINS))
def test_string_schemes_equal_their_twins(name: str) -> None:
    keys = random_bytes(3000, 40, 12)
    assert KeyHasher(10, scheme=name).hashes(keys).tolist() == [TWINS[name](key) for key in keys]


def test_sklearn_hashes_equal_mmh3() -> None:
    keys = random_bytes(100_000, 64, 5)
    for seed in (0, 1, 2**32 - 1):
        ours = KeyHasher(10, seed=seed, scheme="sklearn").hashes(keys)
        assert ours.tolist() == [mmh3.hash(key, seed) for key in keys]


@pytest.mark.parametrize("scheme", list(SCHEMES.values()), ids=list(SCHEMES))
def test_the_other_kind_of_key_is_refused(scheme: Any) -> None:
    hasher = KeyHasher(10, scheme=scheme.name)
    if not scheme.strings:
        with pytest.raises(ArgumentError, match=f"the {scheme.name} recipe hashes integers, got"):
            hasher(["a"])
    if not scheme.ids:
        with pytest.raises(ArgumentError, match=f"the {scheme.name} recipe hashes strings, got"):
            hasher([1])
    elif not scheme.signed:
        with pytest.raises(ArgumentError, match=r"keys\[1\] = -3: the .* recipe hashes unsigned"):
            hasher(np.array([1, -3]))
        assert hasher(np.array([-3]).view(np.uint64)).shape == (1,)


def test_only_sklearn_has_signs() -> None:
    with pytest.raises(ArgumentError, match='only the "sklearn" scheme has signs'):
        KeyHasher(10).signed(["a"])
