"""Files of other programs: word2vec's and fastText's, ours read by them and theirs by us."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from sparse_embed.errors import ArgumentError
from sparse_embed.text import WordVectors
from tests.text.test_vectors import SMALL, topics

OOV = ["apples", "hammerhead", "unheard-of", "münchen", "日本語"]


@pytest.fixture(scope="module")
def model():
    return WordVectors(**SMALL | {"num_buckets": 200}).fit(topics())


@pytest.mark.parametrize("name", ["v.txt", "v.vec", "v.bin", "v.vec.gz", "v.bin.gz"])
def test_word2vec_there_and_back(model, tmp_path, name):
    assert model.save_word2vec(tmp_path / name) == len(model)
    again = WordVectors.load_word2vec(tmp_path / name, batch_size=64, sample=0)
    assert again.words == model.words
    assert (again.vectors == model.vectors).all()
    assert WordVectors.load_word2vec(tmp_path / name, limit=5).words == model.words[:5]
    with pytest.raises(KeyError):
        again["apples"]
    again.partial_fit(topics(20))
    assert (again.vectors != model.vectors).any()


def test_the_text_format_byte_by_byte(tmp_path):
    path = tmp_path / "v.vec"
    path.write_bytes("2 3\nmünchen 0.5 -1 2e-3\r\nnew\u00a0york 1 2 3 \n".encode())
    model = WordVectors.load_word2vec(path, model_path=tmp_path / "model")
    assert model.words == ["münchen", "new\u00a0york"]
    assert (model["münchen"] == np.array([0.5, -1, 2e-3], np.float32)).all()
    model.close()
    with WordVectors.load(tmp_path / "model") as again:
        assert (again["new\u00a0york"] == [1, 2, 3]).all()


def test_the_binary_format_byte_by_byte(tmp_path):
    rows = struct.pack("<2f", 1, 2), struct.pack("<2f", 3, 4)
    for end in (b"\n", b""):  # word2vec's own, and gensim's
        (tmp_path / "v.bin").write_bytes(b"2 2\na " + rows[0] + end + b"b " + rows[1] + end)
        model = WordVectors.load_word2vec(tmp_path / "v.bin")
        assert (model.vectors == [[1, 2], [3, 4]]).all()
    (tmp_path / "v.bin").write_bytes(b"2 2\n\xff " + rows[0] + b"a " + rows[1])
    assert WordVectors.load_word2vec(tmp_path / "v.bin").words == ["\ufffd", "a"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("v.vec", b"", "expected a first line"),
        ("v.vec", b"the 0.1 0.2\n", "expected a first line"),
        ("v.vec", b"0 2\n", "expected words"),
        ("v.vec", b"2 2\na 1 2\n", "line 3.*the file ends"),
        ("v.vec", b"2 2\na 1 2\nb 1\n", "line 3: expected a word and 2 numbers"),
        ("v.vec", b"2 2\na 1 2\nb 1 x\n", "line 3"),
        ("v.bin", b"9 2\na " + bytes(8), "expected word 1 of 9"),
        ("v.bin", b"2 2\na " + bytes(7), "ends in the vector of word 0"),
        ("v.dat", b"2 2\n", "path: expected .txt"),
    ],
)
def test_damaged_word2vec_files(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArgumentError, match=message):
        WordVectors.load_word2vec(tmp_path / name)


def test_words_that_word2vec_cannot_hold(tmp_path):
    model = WordVectors(**SMALL).fit([["new york", "paris"]] * 3)
    with pytest.raises(ArgumentError, match="white space"):
        model.save_word2vec(tmp_path / "v.txt")


# ---- fastText's .bin ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"sg": False}, {"maxn": 0}], ids=str)
def test_fasttext_there_and_back(tmp_path, options):
    model = WordVectors(**SMALL | {"num_buckets": 200} | options).fit(topics(50))
    model.save_fasttext(tmp_path / "m.bin")
    again = WordVectors.load_fasttext(tmp_path / "m.bin", model_path=tmp_path / "model", seed=0)
    assert again.words == model.words and (again.counts == model.counts).all()
    assert (again.vectors == model.vectors).all()
    rows = np.arange(len(model))
    tables = model.store.tables, again.store.tables
    assert (tables[0]["output"].lookup(rows) == tables[1]["output"].lookup(rows)).all()
    for name in ("sg", "window", "negative", "sample", "maxn", "min_count"):
        assert again.options[name] == model.options[name], name
    if not options:
        assert (again.vectors_of(OOV) == model.vectors_of(OOV)).all()
    again.partial_fit(topics(20))
    assert (again.vectors != model.vectors).any()
    again.save_fasttext(tmp_path / "n.bin")


def _tiny(**changes) -> bytes:
    """A model of the words "ab" and "</s>", 2 columns, 3 buckets, written by hand."""
    args = {
        "dim": 2, "ws": 5, "epoch": 1, "minCount": 1, "neg": 5, "wordNgrams": 1, "loss": 2,
        "model": 2, "bucket": 3, "minn": 2, "maxn": 3, "lrUpdateRate": 100,
    }  # fmt: skip
    extra = {"magic": 793712314, "version": 12, "nwords": 2, "pruned": -1, "quant": 0, "rows": 5}
    args |= {key: value for key, value in changes.items() if key in args}
    extra |= {key: value for key, value in changes.items() if key in extra}
    data = struct.pack("<2i", extra["magic"], extra["version"])
    data += struct.pack("<12id", *args.values(), 1e-4)
    data += struct.pack("<3i2q", 2, extra["nwords"], 2 - extra["nwords"], 7, extra["pruned"])
    data += b"ab\0" + struct.pack("<qb", 4, 0) + b"</s>\0" + struct.pack("<qb", 3, 0)
    data += struct.pack("<B2q", extra["quant"], extra["rows"], 2)
    data += np.arange(1, 11, dtype="<f4").tobytes()
    data += struct.pack("<B2q", 0, 2, 2) + np.arange(1, 5, dtype="<f4").tobytes()
    return data


def _fnv(text: bytes) -> int:
    h = 2166136261
    for byte in text:
        h = ((h ^ (byte | (0xFFFFFF00 if byte > 127 else 0))) * 16777619) & 0xFFFFFFFF
    return h


def test_fasttext_byte_by_byte(tmp_path):
    (tmp_path / "m.bin").write_bytes(_tiny())
    model = WordVectors.load_fasttext(tmp_path / "m.bin")
    assert model.words == ["ab", "</s>"] and model.counts.tolist() == [4, 3]
    rows = np.arange(1, 11, dtype=np.float32).reshape(5, 2)
    grams = [b"<a", b"<ab", b"ab", b"ab>", b"b>"]
    own = rows[[0] + [2 + _fnv(gram) % 3 for gram in grams]].mean(axis=0)
    np.testing.assert_allclose(model["ab"], own, rtol=1e-6)
    assert (model["</s>"] == rows[1]).all()  # the end of line has no n-grams
    other = rows[[2 + _fnv(gram) % 3 for gram in (b"<\xc3\xa9", b"<\xc3\xa9>", b"\xc3\xa9>")]]
    np.testing.assert_allclose(model["é"], other.mean(axis=0), rtol=1e-6)
    assert (model.store.tables["output"].lookup([1]) == [[3, 4]]).all()
    model.save_fasttext(tmp_path / "n.bin")
    ours = bytearray((tmp_path / "n.bin").read_bytes())
    assert bytes(ours) == _tiny()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": 1}, "not a fastText model"),
        ({"version": 13}, "version 11 or 12"),
        ({"dim": 0}, "make no sense"),
        ({"dim": 3}, "the input matrix has"),
        ({"model": 9}, "make no sense"),
        ({"nwords": 1}, "expected 1 distinct words"),
        ({"nwords": -1}, "dictionary makes no sense"),
        ({"pruned": 5}, "pruned"),
        ({"quant": 1}, "quantised"),
        ({"rows": 4}, "has 4 rows, expected 5"),
        ({"rows": 1 << 40}, "the input matrix has"),
    ],
    ids=str,
)
def test_damaged_fasttext_files(tmp_path, changes, message):
    (tmp_path / "m.bin").write_bytes(_tiny(**changes))
    with pytest.raises(ArgumentError, match=message):
        WordVectors.load_fasttext(tmp_path / "m.bin", model_path=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_fasttext_files_cut_anywhere(tmp_path):
    whole = _tiny()
    for size in range(len(whole)):
        (tmp_path / "m.bin").write_bytes(whole[:size])
        with pytest.raises(ArgumentError):
            WordVectors.load_fasttext(tmp_path / "m.bin", model_path=tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_what_fasttext_files_cannot_hold(tmp_path):
    model = WordVectors(**SMALL | {"scheme": "floret"}).fit(topics(20))
    with pytest.raises(ArgumentError, match="floret"):
        model.save_fasttext(tmp_path / "m.bin")
    (tmp_path / "t.bin").write_bytes(_tiny())
    with pytest.raises(ArgumentError, match="maxn: a loaded model has its own"):
        WordVectors.load_fasttext(tmp_path / "t.bin", maxn=4)


@pytest.mark.parametrize("kind", ["skipgram", "cbow"])
def test_a_model_that_fasttext_trained(tmp_path, kind):
    """Facebook's own package: its vectors, also of words never seen, to 5e-6; and it reads ours."""
    fasttext = pytest.importorskip("fasttext", reason="needs fasttext-wheel")
    (tmp_path / "text").write_text("\n".join(topics()) + "\n", encoding="utf-8")
    theirs = fasttext.train_unsupervised(
        str(tmp_path / "text"), model=kind, dim=64, minCount=1, epoch=2, bucket=300, thread=1,
        verbose=0,
    )  # fmt: skip
    theirs.save_model(str(tmp_path / "theirs.bin"))
    ours = WordVectors.load_fasttext(tmp_path / "theirs.bin")
    assert ours.words == theirs.words
    assert ours.options["sg"] == (kind == "skipgram")
    for word in [*theirs.words, *OOV]:
        assert np.abs(ours[word] - theirs.get_word_vector(word)).max() <= 5e-6, word
    out = ours.store.tables["output"].lookup(np.arange(len(ours)))
    assert (out == theirs.get_output_matrix()).all()
    ours.partial_fit(topics(30))
    ours.save_fasttext(tmp_path / "ours.bin")
    again = fasttext.load_model(str(tmp_path / "ours.bin"))
    for word in [*ours.words, *OOV]:
        assert np.abs(ours[word] - again.get_word_vector(word)).max() <= 5e-6, word


def test_gensim_reads_ours(model, tmp_path):
    gensim = pytest.importorskip("gensim.models", reason="needs gensim")
    model.save_fasttext(tmp_path / "m.bin")
    theirs = gensim.fasttext.load_facebook_vectors(str(tmp_path / "m.bin"))
    for word in [*model.words, *OOV]:
        assert np.abs(model[word] - theirs[word]).max() <= 5e-6, word
    model.save_word2vec(tmp_path / "v.bin")
    vectors = gensim.KeyedVectors.load_word2vec_format(str(tmp_path / "v.bin"), binary=True)
    assert (vectors["apple"] == model["apple"]).all()
    theirs = [word for word, _ in vectors.most_similar(["apple", "saw"], ["pear"], topn=5)]
    assert [word for word, _ in model.most_similar(["apple", "saw"], ["pear"], k=5)] == theirs
    vectors.save_word2vec_format(str(tmp_path / "g.bin"), binary=True)
    assert (WordVectors.load_word2vec(tmp_path / "g.bin")["pear"] == model["pear"]).all()


def test_packed_file_that_is_damaged(tmp_path):
    (tmp_path / "v.vec.gz").write_bytes(gzip.compress(b"2 2\na 1 2\nb 3 4\n")[:-20])
    with pytest.raises((OSError, EOFError)):
        WordVectors.load_word2vec(tmp_path / "v.vec.gz")
