"""`train vectors` and `nearest` on words."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed.text import WordVectors
from tests.test_cli import run, run_json  # noqa: F401 - fixtures
from tests.text.test_vectors import topics

OPTIONS = (
    "--embedding-dim", 64, "--min-count", 1, "--num-buckets", 1000, "--sample", 0, "--epochs", 2,
)  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(topics()))
    return path


def test_train_and_ask(run, run_json, text, tmp_path):  # noqa: F811
    model = tmp_path / "model"
    written = ("--word2vec", tmp_path / "v.vec")
    made = run_json("train", "vectors", text, "-o", model, *OPTIONS, *written)
    assert (made["words"], made["tokens"]) == (12, 2400)
    own = WordVectors(
        embedding_dim=64, min_count=1, num_buckets=1000, sample=0, epochs=2
    ).fit(text)  # fmt: skip
    with WordVectors.load(model) as loaded:
        assert (loaded.vectors == own.vectors).all()
    assert (WordVectors.load_word2vec(tmp_path / "v.vec").vectors == own.vectors).all()

    found = run_json("nearest", model, "apple", "apples", "-k", 3)
    assert found["in_vocabulary"] == [True, False]
    assert found["nearest"][0] == [word for word, _ in own.most_similar("apple", k=3)]
    np.testing.assert_allclose(
        found["scores"][0], [score for _, score in own.most_similar("apple", k=3)]
    )
    code, out, _ = run("nearest", model, "apples", "-k", 2)
    assert code == 0 and "apples (not in the vocabulary)" in out and "apple " in out
    rows = run_json("nearest", model, 3, "--table", "output", "-k", 1)
    assert rows["nearest"] == [[3]]


def test_refusals(run, text, tmp_path):  # noqa: F811
    model = tmp_path / "model"
    assert run("train", "vectors", text, "-o", model, *OPTIONS, "--maxn", 0)[0] == 0
    code, _, err = run("train", "vectors", text, "-o", model, *OPTIONS)
    assert code == 1 and "exists already" in err
    code, _, err = run("train", "vectors", text, "-o", model, "--resume")
    assert code == 2 and "was not interrupted" in err
    for option, value, stored in (("--window", 9, 5), ("--cbow", None, False), ("--lr", 0.5, 0.05)):
        other = [option] if value is None else [option, value]
        code, _, err = run("train", "vectors", text, "-o", model, "--resume", *other)
        assert code == 1 and f"{option}: the training in" in err and f"with {stored}, got" in err
    code, _, err = run("nearest", model, "apple", "unknown")
    assert code == 1 and "'unknown' is not in the vocabulary" in err
    code, _, err = run("nearest", model, "apple", "--metric", "dot")
    assert code == 2 and "cosine only" in err
    code, _, err = run("nearest", model, "apple", "--table", "output")
    assert code == 2 and "row numbers" in err
    (tmp_path / "empty.txt").write_text("")
    code, _, err = run("train", "vectors", tmp_path / "empty.txt", "-o", tmp_path / "other")
    assert code == 2 and "found 0 words" in err
    assert not (tmp_path / "other").exists()
