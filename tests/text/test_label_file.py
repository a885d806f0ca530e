"""fastText's files, and the commands that read them."""

from __future__ import annotations

import csv
import gzip
import json

import pytest
from click.testing import CliRunner

import sparse_embed as se
from sparse_embed.cli import cli
from sparse_embed.text import TextClassifier
from sparse_embed.text.columns_file import read_columns
from sparse_embed.text.label_file import read_labelled, single
from tests.text.test_classifier import LABELS, NEW_LABELS, NEW_TEXTS, TEXTS


def test_reading(tmp_path):
    path = tmp_path / "train"
    content = "__label__a __label__b How much?\n\n  no label \nlast __label__ü\n"
    path.write_bytes(content.encode())
    expected = (["How much?", "no label", "last"], [["a", "b"], [], ["ü"]])
    assert read_labelled(path) == expected
    path.write_bytes(gzip.compress(content.encode()))
    assert read_labelled(path) == expected
    assert single([["a"], ["b"]]) == ["a", "b"]
    assert single([["a"], []]) is None
    with pytest.raises(se.ArgumentError, match="no word begins with '#'"):
        read_labelled(path, prefix="#")
    path.write_bytes(b"__label__a good\n__label__b \xff\n")
    with pytest.raises(se.ArgumentError, match="line 2: expected UTF-8"):
        read_labelled(path)
    path.write_bytes(gzip.compress(content.encode())[:-9])
    with pytest.raises(se.ArgumentError, match="damaged gzip"):
        read_labelled(path)


def write(path, texts, labels) -> str:
    lines = [f"__label__{name} {text}\n" for text, name in zip(texts, labels, strict=True)]
    path.write_text("".join(lines))
    return str(path)


def run(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(cli, list(arguments), input=stdin)


def test_train_and_predict(tmp_path):
    train = write(tmp_path / "train", TEXTS, LABELS)
    valid = write(tmp_path / "valid", NEW_TEXTS, NEW_LABELS)
    model = str(tmp_path / "model")
    options = ["-o", model, "--validation", valid, "--embedding-dim", "16", "--epochs", "20"]
    done = run("train", "classifier", train, *options, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["P@1"] > 0.9
    assert (found["texts"], found["labels"]) == (300, 2)

    done = run("test", model, valid, "--json")
    assert json.loads(done.stdout) == {"texts": 200, "P@1": found["P@1"], "R@1": found["R@1"]}
    two = tmp_path / "two"
    two.write_text("#good #bad great fun\n#good great\nno label\n#never so so\n")
    done = run("test", model, str(two), "--label-prefix", "#", "-k", "5", "--json")
    assert json.loads(done.stdout) == {"texts": 3, "P@2": 3 / 6, "R@2": 3 / 4}
    assert "none of its labels" in run("test", model, str(two), "--label-prefix", "#n").output

    questions = "great fun\n\n__label__good dull and bad\n"
    done = run("predict", model, stdin=questions)
    assert done.exit_code == 0, done.output
    first, _, last = done.stdout.splitlines()  # an empty line has its line too
    assert (first, last) == ("good", "bad")
    done = run("predict", model, "-k", "5", "--json", stdin=questions)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(row["labels"]) for row in rows] == [2, 2, 2]
    with TextClassifier.load(model) as loaded:
        chance = loaded.predict_proba(["great fun"])[0]
    assert rows[0]["probabilities"] == sorted(chance.tolist(), reverse=True)
    (tmp_path / "q").write_text(questions)
    done = run("predict", model, str(tmp_path / "q"), "--probabilities")
    assert done.stdout.splitlines()[0].startswith("good 0.")

    assert run("train", "classifier", train, "-o", model).exit_code == 1  # exists already
    again = ("train", "classifier", train, "-o", model, "--resume")
    done = run(*again, "--word-ngrams", "3")
    assert done.exit_code == 1 and "--word-ngrams: the training in" in done.output
    assert "begun with 2, got 3" in done.output
    done = run(*again, "--raw")
    assert done.exit_code == 1 and "--raw: the training in" in done.output
    done = run(*again, "--embedding-dim", "16", "--epochs", "20")
    assert "the training in" not in done.output
    nowhere = str(tmp_path / "nowhere")
    assert run("train", "classifier", train, "-o", nowhere, "--resume").exit_code == 1
    assert isinstance(run("predict", nowhere, stdin="a").exception, se.NotAStoreError)


def test_reading_columns(tmp_path):
    path = tmp_path / "reviews.csv"
    content = (
        '\ufeffid,review,sentiment\n1,"Great, ""ü""\nindeed",pos\n\n2,' + "x" * 200_000 + ",neg\n"
    )
    expected = [('Great, "ü"\nindeed', "pos"), ("x" * 200_000, "neg")]
    columns = ("review", "sentiment")
    path.write_text(content)
    assert list(read_columns(path, columns)) == expected
    path.write_bytes(gzip.compress(content.encode()))
    assert list(read_columns(path, columns)) == expected
    assert [text for (text,) in read_columns(path, ("id",))] == ["1", "2"]
    with pytest.raises(
        se.ArgumentError, match="no column 'label' in its first line, which has 'id,"
    ):
        list(read_columns(path, ("review", "label")))
    path.write_bytes(gzip.compress(content.encode())[:-9])
    with pytest.raises(se.ArgumentError, match="damaged gzip"):
        list(read_columns(path, columns))
    tabs = tmp_path / "reviews.tsv"
    tabs.write_bytes(b"pos\tgood, really\nneg\tbad\n")
    assert list(read_columns(tabs, ("2", "1"))) == [("good, really", "pos"), ("bad", "neg")]
    with pytest.raises(se.ArgumentError, match="no column '3'"):
        list(read_columns(tabs, ("3", "1")))
    tabs.write_bytes(b"pos\tgood\nneg\n")
    with pytest.raises(se.ArgumentError, match="line 2: expected 2 columns or more, found 1"):
        list(read_columns(tabs, ("2", "1")))
    tabs.write_bytes(b"pos\tgood\nneg\t\xff\n")
    with pytest.raises(se.ArgumentError, match="expected UTF-8"):
        list(read_columns(tabs, ("2", "1")))


def test_train_and_predict_columns(tmp_path):
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(TEXTS, LABELS, strict=True)])
    data, model = str(tmp_path / "reviews.csv"), str(tmp_path / "model")
    columns = ["--text-column", "text", "--label-column", "label"]
    options = ["-o", model, "--validation", data, "--embedding-dim", "16", "--epochs", "20"]
    done = run("train", "classifier", data, *columns, *options, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["P@1"] > 0.9
    done = run("predict", model, data, "--text-column", "text")
    assert done.exit_code == 0, done.output
    with TextClassifier.load(model) as loaded:
        assert done.stdout.split() == loaded.predict(TEXTS).tolist()
    done = run("test", model, data, *columns, "--json")
    assert json.loads(done.stdout)["P@1"] > 0.9
    assert run("test", model, data, *columns[:2]).exit_code == 2
    both = run("test", model, data, *columns, "--label-prefix", "#")
    assert both.exit_code == 2
    assert "--label-prefix" in both.output
    assert run("train", "classifier", data, *columns[:2], "-o", "x").exit_code == 2
    assert run("predict", model, data, "--delimiter", ";").exit_code == 2
    assert run("predict", model, "--text-column", "text", stdin="text").exit_code == 2


def test_early_stopping_and_pretrained_from_the_command_line(tmp_path):
    train = write(tmp_path / "train", TEXTS, LABELS)
    valid = write(tmp_path / "valid", [*NEW_TEXTS, "so so"], [*NEW_LABELS, "never seen"])
    vectors = tmp_path / "v.vec"
    numbers = " ".join(["0.1"] * 16)
    vectors.write_text(f"2 16\ngreat {numbers}\ndull {numbers}\n")
    path = str(tmp_path / "model")
    options = ["--validation", valid, "--early-stopping", "--pretrained", str(vectors), "--static"]
    done = run("train", "classifier", train, "-o", path, *options, "--json")
    assert isinstance(done.exception, se.ArgumentError)
    assert "give embedding_dim=16 too" in str(done.exception)
    done = run("train", "classifier", train, "-o", path, *options, "--embedding-dim", "16")
    assert done.exit_code == 0, done.output
    with TextClassifier.load(path) as loaded:
        assert loaded.early_stopping and "fixed" in loaded.store.tables
        assert loaded.store.metadata["best_score"] < 1  # nothing can be right about the last one


def test_resume_from_the_command_line(tmp_path):
    train, path = write(tmp_path / "train", TEXTS, LABELS), tmp_path / "model"
    options = {"embedding_dim": 16, "epochs": 4, "loss": "softmax", "path": path}

    def stop(at):
        if at.epoch == 3:
            raise KeyboardInterrupt

    model = TextClassifier(**options)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*read_labelled_single(train), progress=stop)
    model.close()
    done = run("train", "classifier", train, "-o", str(path), "--resume", "--json")
    assert done.exit_code == 0, done.output
    with TextClassifier.load(path) as loaded:
        assert loaded.store.metadata["epochs_done"] == 4


def read_labelled_single(path: str):
    texts, labels = read_labelled(path)
    return texts, single(labels)
