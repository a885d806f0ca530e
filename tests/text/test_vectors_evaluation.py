"""Word similarity and analogies from files, against gensim's own figures; aligning two spaces."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from sparse_embed.errors import ArgumentError
from sparse_embed.text import WordVectors
from sparse_embed.text.alignment import align
from sparse_embed.text.corpus import Vocabulary
from sparse_embed.text.vectors_evaluation import evaluate_word_analogies, evaluate_word_pairs

DIM = 64


def model_of(words: list[str], vectors: np.ndarray) -> WordVectors:
    vocabulary = Vocabulary([word.encode() for word in words], np.ones(len(words), np.int64))
    model = WordVectors.of(vocabulary, embedding_dim=vectors.shape[1], maxn=0, min_count=1)
    model.store.tables["input"].assign(np.arange(len(words)), vectors.astype(np.float32))
    model.finish_reading()
    return model


@pytest.fixture(scope="module")
def space():
    """500 words with an offset between "w<i>" and "q<i>", as between cities and countries."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((250, DIM))
    offset = 1.5 * rng.standard_normal(DIM)
    near = base + offset + 1.6 * rng.standard_normal((250, DIM))
    words = [f"w{i}" for i in range(250)] + [f"q{i}" for i in range(250)]
    return model_of(words, np.concatenate((base, near)))


def _pairs_file(path, space):
    rng = np.random.default_rng(1)
    rows = ["Word 1\tWord 2\tHuman", "# a comment", ""]
    for _ in range(60):
        i, j = rng.integers(0, 250, 2)
        cosine = space.similarity(f"w{i}", f"q{j}")
        rows.append(f"W{i}\tq{j}\t{cosine + 0.1 * rng.standard_normal():.3f}")
    rows.append("w1\tnever\t3.0")
    path.write_text("\n".join(rows))


def test_word_pairs(space, tmp_path):
    _pairs_file(tmp_path / "pairs.tsv", space)
    found = evaluate_word_pairs(space, tmp_path / "pairs.tsv")
    lines = [line.split("\t") for line in (tmp_path / "pairs.tsv").read_text().split("\n")[3:-1]]
    own = [space.similarity(a.lower(), b) for a, b, _ in lines]
    scores = [float(score) for *_, score in lines]
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(own, scores).statistic)
    assert found.pearson == pytest.approx(np.corrcoef(own, scores)[0, 1])
    assert (found.pairs, found.left_out) == (60, 1)


def _analogies_file(path):
    rng = np.random.default_rng(2)
    rows = [": one"]
    for k in range(300):
        if k == 200:
            rows.append(": two")
        i, j = rng.choice(250, 2, replace=False)
        rows.append(f"w{i} q{i} W{j} q{j}")
    path.write_text("\n".join([*rows, "w1 q1 never q2"]))


def test_analogies(space, tmp_path):
    _analogies_file(tmp_path / "questions.txt")
    found = evaluate_word_analogies(space, tmp_path / "questions.txt")
    assert (found.questions, found.left_out) == (300, 1)
    assert 0.5 < found.accuracy < 1
    assert {name: total for name, (_, total) in found.sections.items()} == {"one": 200, "two": 100}
    asked = [line.split() for line in (tmp_path / "questions.txt").read_text().split("\n")]
    right = [
        space.analogy(a, b, c.lower(), k=1)[0][0] == d
        for a, b, c, d in (words for words in asked[:40] if len(words) == 4)
    ]
    half = (tmp_path / "half.txt").write_text("\n".join(" ".join(words) for words in asked[:40]))
    assert half and evaluate_word_analogies(space, tmp_path / "half.txt").accuracy == np.mean(right)


def test_gensim_measures_the_same(space, tmp_path):
    gensim = pytest.importorskip("gensim.models", reason="needs gensim")
    _pairs_file(tmp_path / "pairs.tsv", space)
    _analogies_file(tmp_path / "questions.txt")
    theirs = gensim.KeyedVectors(DIM)
    theirs.add_vectors(space.words, space.vectors)
    pearson, spearman, _ = theirs.evaluate_word_pairs(str(tmp_path / "pairs.tsv"))
    found = evaluate_word_pairs(space, tmp_path / "pairs.tsv")
    assert found.spearman == pytest.approx(spearman.statistic, abs=1e-6)
    assert found.pearson == pytest.approx(pearson.statistic, abs=1e-6)
    accuracy, _ = theirs.evaluate_word_analogies(str(tmp_path / "questions.txt"))
    ours = evaluate_word_analogies(space, tmp_path / "questions.txt")
    assert ours.accuracy == pytest.approx(accuracy, abs=1e-9)


def test_bad_evaluation_files(space, tmp_path):
    bad = tmp_path / "bad"
    bad.write_text("w1\tw2\t1\nw1 w2\n")
    with pytest.raises(ArgumentError, match="line 2: expected two words and a score"):
        evaluate_word_pairs(space, bad)
    bad.write_text("x\ty\t1\n")
    with pytest.raises(ArgumentError, match="0 of its pairs"):
        evaluate_word_pairs(space, bad)
    bad.write_text("w1 w2 w3\n")
    with pytest.raises(ArgumentError, match="line 1: expected four words"):
        evaluate_word_analogies(space, bad)
    bad.write_text("a b c d\n")
    with pytest.raises(ArgumentError, match="none of its questions"):
        evaluate_word_analogies(space, bad)


# ---- alignment ----------------------------------------------------------------------------------


def _rotated(space, noise: float):
    rng = np.random.default_rng(3)
    rotation, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
    vectors = space.vectors @ rotation
    vectors = vectors + noise * rng.standard_normal(vectors.shape)
    order = rng.permutation(len(space))
    words = np.array([f"{word}-x" for word in space.words])
    pairs = list(zip(space.words, words.tolist(), strict=True))
    return model_of(words[order].tolist(), vectors[order]), rotation, pairs


def test_a_rotated_copy_is_recovered(space):
    target, rotation, pairs = _rotated(space, 0.0)
    aligned = align(space, target, pairs[:100])
    assert aligned.pairs == 100
    np.testing.assert_allclose(aligned.rotation, rotation, atol=1e-5)
    mapped = aligned.vectors_of(["w7"])[0]
    np.testing.assert_allclose(mapped, target["w7-x"], atol=1e-4)
    for method in ("csls", "nearest"):
        assert aligned.accuracy(pairs[100:], method=method) == (1.0, 400)
        [[(word, score)]] = aligned.translate("q3", method=method)
        assert word == "q3-x" and score > 0


def test_csls_finds_more_than_the_plain_neighbour(space):
    target, _, pairs = _rotated(space, 1.8)
    aligned = align(space, target, pairs[:150])
    plain, count = aligned.accuracy(pairs[150:], method="nearest")
    csls, _ = aligned.accuracy(pairs[150:], method="csls")
    assert count == 350
    assert 0.2 < plain < csls
    assert aligned.accuracy(pairs[150:], 10)[0] > csls


def test_csls_is_its_formula(space):
    target, _, pairs = _rotated(space, 1.0)
    aligned = align(space, target, pairs[:150])
    x = space.vectors @ aligned.rotation
    y = target.vectors
    cosines = x @ y.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    near_x = np.sort(cosines, axis=1)[:, -5:].mean(axis=1)
    near_y = np.sort(cosines, axis=0)[-5:].mean(axis=0)
    csls = 2 * cosines - near_x[:, None] - near_y[None, :]
    found = aligned.translate(space.words[:50], 3, neighbours=5)
    for row, best in zip(csls, found, strict=False):
        assert [target.words.index(word) for word, _ in best] == np.argsort(-row)[:3].tolist()
        np.testing.assert_allclose([s for _, s in best], np.sort(row)[::-1][:3], atol=1e-5)


def test_bad_alignments(space):
    other = model_of(["a", "b"], np.ones((2, 1)))
    with pytest.raises(ArgumentError, match="same embedding_dim, got 64 and 1"):
        align(space, other, [("w1", "a")])
    with pytest.raises(ArgumentError, match="none has both"):
        align(space, space, [("w1", "never")])
    with pytest.raises(ArgumentError, match=r"pairs\[1\]: expected \(source word, target word\)"):
        align(space, space, [("w1", "w1"), "w2"])
    aligned = align(space, space, [("w1", "w1"), ("w2", "w2")])
    with pytest.raises(ArgumentError, match="method"):
        aligned.translate("w1", method="best")
    with pytest.raises(ArgumentError, match="k, neighbours"):
        aligned.translate("w1", 0)
    with pytest.raises(KeyError):
        aligned.translate("never")
