"""TextClassifier: what it learns, promises and refuses."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import sparse_embed as se
from sparse_embed.text import TextClassifier
from sparse_embed.text.estimator import NotFittedError
from sparse_embed.text.labels import Targets
from sparse_embed.text.settings import Settings

GOOD = ["great", "fun", "good", "lovely", "superb", "fine"]
BAD = ["dull", "bad", "awful", "sad", "poor", "weak"]
PLAIN = ["the", "film", "was", "a", "story", "of", "two", "people", "and", "it", "had", "music"]


def made_up(number: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    liked = rng.random(number) < 0.5
    texts = []
    for like in liked:
        words = [*rng.choice(PLAIN, 8), *rng.choice(GOOD if like else BAD, 2)]
        texts.append(" ".join(rng.permutation(words)))
    return texts, np.where(liked, "good", "bad")


def small(**options) -> TextClassifier:
    few = {"embedding_dim": 16, "num_embeddings": 1 << 16, "epochs": 10, "lr": 0.1}  # quick ones
    return TextClassifier(**{**few, **options})


def rows_of(model: TextClassifier) -> dict[str, bytes]:
    found = {}
    for name, table in model.store.tables.items():
        rows = table.trained_indices()
        found[name] = table.lookup(rows).tobytes() + rows.tobytes()
    return found


TEXTS, LABELS = made_up(300)
NEW_TEXTS, NEW_LABELS = made_up(200, seed=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "mean", "lr": 0.1},
        {"pooling": "sum", "minn": 3, "maxn": 4},
        {"pooling": "max", "lr": 0.1},
        {"dropout": 0.2, "batch_norm": True},
        {"optimizer": "adam", "loss": "ova", "epochs": 30, "lr": 0.01},
        {"optimizer": "sgd", "lr": 0.2},
        {"pooling": "flatten", "optimizer": "adagrad", "max_length": 12, "epochs": 20},
        {"min_count": 2, "max_features": 200},
    ],
    ids=str,
)
def test_learns(options):
    model = small(**options).fit(TEXTS, LABELS)
    assert model.score(NEW_TEXTS, NEW_LABELS) > 0.9
    chance = model.predict_proba(NEW_TEXTS)
    assert chance.shape == (200, 2)
    np.testing.assert_allclose(chance.sum(axis=1), 1, rtol=1e-6)
    assert np.array_equal(model.predict(NEW_TEXTS), model.classes_[chance.argmax(axis=1)])
    assert (model.decision_function(NEW_TEXTS) > 0).tolist() == (chance[:, 1] > 0.5).tolist()


@pytest.mark.parametrize("loss", ["softmax", "ova"])
def test_more_classes_with_numbers_as_labels(loss):
    texts = TEXTS + [f"{text} zzz" for text in TEXTS]
    labels = [10 * (label == "good") + 1 for label in LABELS] + [-3] * len(TEXTS)
    model = small(loss=loss).fit(texts, labels)
    assert model.classes_.tolist() == [-3, 1, 11]
    assert model.score(texts, labels) > 0.95
    found, chance = model.predict_top(["great zzz", "great fun"], k=2)
    assert found.shape == chance.shape == (2, 2)
    assert found[:, 0].tolist() == [-3, 11]
    assert (chance[:, 0] >= chance[:, 1]).all()


def test_several_labels_a_text():
    tags = [[label, "long"] if len(text) > 45 else [label] for text, label in zip(TEXTS, LABELS)]  # noqa: B905
    tags[0] = []
    model = small(epochs=30).fit(TEXTS, tags)
    assert model.classes_.tolist() == ["bad", "good", "long"]
    assert all(isinstance(row, list) for row in model.predict(TEXTS))
    precision, recall = model.precision_recall_at(TEXTS, tags, k=1)
    assert precision > 0.9
    assert recall > 0.5
    softmax = small(loss="softmax").fit(TEXTS, tags)
    np.testing.assert_allclose(softmax.predict_proba(TEXTS).sum(axis=1), 1, rtol=1e-5)

    columns = np.array([[name in row for name in model.classes_] for row in tags]).astype(int)
    same = small(epochs=30).fit(TEXTS, columns)
    assert rows_of(same) == rows_of(model)
    assert same.predict(TEXTS).tolist() == [
        [int(name in row) for name in model.classes_] for row in model.predict(TEXTS)
    ]
    sparse = small(epochs=30).fit(TEXTS, scipy.sparse.csr_array(columns))
    assert rows_of(sparse) == rows_of(model)
    assert same.score(TEXTS, columns) == model.score(TEXTS, tags)


def test_label_sampling_visits_one_label_of_several(tmp_path):
    offsets = np.array([0, 2, 2, 3, 6])
    targets = Targets(np.array([0, 4, 7, 1, 2, 3], np.int32), offsets)
    drawn = [targets.drawn(seed=5, epoch=epoch) for epoch in range(3000)]
    assert all(one.offsets.tolist() == [0, 1, 1, 2, 3] for one in drawn)
    first, second, third = np.array([one.classes for one in drawn]).T
    assert set(second) == {7}
    for found, labels in ((first, [0, 4]), (third, [1, 2, 3])):
        counts = [int((found == label).sum()) for label in labels]
        assert sum(counts) == 3000
        assert max(counts) - min(counts) < 200  # 4 standard deviations
    assert (targets.drawn(5, 7).classes == drawn[7].classes).all()
    assert any((targets.drawn(6, k).classes != drawn[k].classes).any() for k in range(5))

    tags = [[label, "any"] for label in LABELS]
    options = {"loss": "softmax", "label_sampling": True, "epochs": 4}
    whole = small(**options).fit(TEXTS, tags)
    assert rows_of(whole) != rows_of(small(loss="softmax", epochs=4).fit(TEXTS, tags))
    chance = whole.predict_proba(NEW_TEXTS)
    assert abs(chance[:, whole.classes_.tolist().index("any")].mean() - 0.5) < 0.1
    model = small(**options, path=tmp_path / "m")
    with pytest.raises(Stop):
        model.fit(TEXTS, tags, progress=stop_at(3))
    model.close()
    with TextClassifier.load(tmp_path / "m", "r+") as again:
        assert again.label_sampling
        assert rows_of(again.fit(TEXTS, tags, resume=True)) == rows_of(whole)
    with pytest.raises(se.ArgumentError, match='label_sampling: only loss="softmax"'):
        small(label_sampling=True).fit(TEXTS, tags)


def test_weights_move_the_balance():
    texts, labels = ["same words"] * 10, ["a"] * 8 + ["b"] * 2
    plain = small(epochs=50).fit(texts, labels).predict_proba(texts[:1])[0, 1]
    balanced = small(epochs=50, class_weight="balanced").fit(texts, labels)
    by_class = small(epochs=50, class_weight={"b": 4.0}).fit(texts, labels)
    by_text = small(epochs=50).fit(texts, labels, sample_weight=[1] * 8 + [4] * 2)
    assert plain == pytest.approx(0.2, abs=0.05)
    for model in (balanced, by_class, by_text):
        assert model.predict_proba(texts[:1])[0, 1] == pytest.approx(0.5, abs=0.05)
    assert rows_of(by_class) == rows_of(by_text)


def test_same_seed_same_model_for_any_number_of_threads():
    options = {"epochs": 3, "dropout": 0.1, "batch_norm": True}
    models = []
    threads = se.get_num_threads()
    try:
        for count in {1, threads}:
            se.set_num_threads(count)
            models += [small(**options).fit(TEXTS, LABELS) for _ in range(2)]
    finally:
        se.set_num_threads(threads)
    first = rows_of(models[0])
    assert all(rows_of(model) == first for model in models[1:])
    assert rows_of(small(**options, seed=1).fit(TEXTS, LABELS)) != first


class Stop(Exception):
    pass


def stop_at(epoch: int):
    def progress(at):
        if at.epoch == epoch and at.done % len(TEXTS):
            raise Stop

    return progress


@pytest.mark.parametrize("options", [{}, {"dropout": 0.1, "batch_norm": True}], ids=str)
def test_an_interrupted_fit_is_usable_and_goes_on(tmp_path, options):
    whole = small(epochs=4, **options).fit(TEXTS, LABELS)
    model = small(epochs=4, path=tmp_path / "m", **options)
    with pytest.raises(Stop):
        model.fit(TEXTS, LABELS, progress=stop_at(3))
    assert model.store.metadata["epochs_done"] == 2
    assert model.score(TEXTS, LABELS) > 0.8
    model.close()

    again = TextClassifier.load(tmp_path / "m", "r+")
    with pytest.raises(se.ArgumentError, match="not the texts"):
        again.fit(TEXTS[::-1], LABELS, resume=True)
    again.close()
    again = TextClassifier.load(tmp_path / "m", "r+")
    again.fit(TEXTS, LABELS, resume=True)
    assert rows_of(again) == rows_of(whole)
    with pytest.raises(se.ArgumentError, match="nothing is left"):
        again.fit(TEXTS, LABELS, resume=True)
    again.close()


def test_a_new_model_of_the_same_arguments_goes_on(tmp_path):
    whole = rows_of(small(epochs=4).fit(TEXTS, LABELS))
    model = small(epochs=4, path=tmp_path / "m")
    with pytest.raises(Stop):
        model.fit(TEXTS, LABELS, progress=stop_at(3))
    model.close()
    for name, other in (("seed", 5), ("lr", 0.001), ("binary", True)):
        changed = small(epochs=4, path=tmp_path / "m", **{name: other})
        said = "optimizer" if name == "lr" else name
        with pytest.raises(se.ArgumentError, match=f"{said}: the fit to be resumed had"):
            changed.fit(TEXTS, LABELS, resume=True)
    again = small(epochs=4, path=tmp_path / "m").fit(TEXTS, LABELS, resume=True)
    assert rows_of(again) == whole
    again.close()


@pytest.mark.parametrize("committed", [False, True])
def test_resuming_where_no_fit_was(tmp_path, committed):
    """Nothing there, or nothing committed: it begins.  Somebody else's store is left alone."""
    fresh = small(epochs=2, path=tmp_path / "fresh").fit(TEXTS, LABELS, resume=True)
    expected = rows_of(fresh)
    fresh.close()
    with se.Store.create(tmp_path / "m") as store:
        store.create_table("words", num_embeddings=8, embedding_dim=4)
        if committed:
            store.commit()
        store.close(checkpoint=False)
    model = small(epochs=2, path=tmp_path / "m")
    if committed:
        with pytest.raises(se.NotAStoreError, match="something else"):
            model.fit(TEXTS, LABELS, resume=True)
        with se.Store.open(tmp_path / "m") as store:
            assert set(store.tables) == {"words"}
    else:
        assert rows_of(model.fit(TEXTS, LABELS, resume=True)) == expected
        model.close()


def test_interrupted_in_memory_leaves_no_model():
    model = small(epochs=4)
    with pytest.raises(Stop):
        model.fit(TEXTS, LABELS, progress=stop_at(3))
    with pytest.raises(NotFittedError):
        model.predict(TEXTS)


@pytest.mark.parametrize("on_disk", [False, True])
def test_early_stopping_returns_to_the_best_epoch(tmp_path, on_disk):
    path = tmp_path / "m" if on_disk else None
    scores: dict[int, float] = {}
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(len(LABELS)) < 0.3, "bad", LABELS)  # so that scores go up and down
    options = {"epochs": 12, "patience": 2, "lr": 0.3, "early_stopping": True}
    model = small(path=path, **options).fit(
        TEXTS,
        noisy,
        eval_set=(NEW_TEXTS, NEW_LABELS),
        progress=lambda at: scores.update({at.epoch: at.score}),
    )
    best = model.store.metadata["best_score"]
    assert model.score(NEW_TEXTS, NEW_LABELS) == pytest.approx(best)
    assert best >= max(list(scores.values())[1:])
    assert model.store.metadata["epochs_done"] <= len(scores)
    held_out = small(**options).fit(TEXTS, noisy)
    assert held_out.store.metadata["epochs_done"] >= 1


@pytest.mark.parametrize(
    ("texts", "epochs"), [(0, 20), (50_000, 20), (100_000, 10), (200_000, 5), (10**7, 5)]
)
def test_epochs_by_the_number_of_texts(texts, epochs):
    assert Settings.of(TextClassifier(), texts).epochs == epochs
    assert Settings.of(TextClassifier(epochs=7), texts).epochs == 7


@pytest.mark.parametrize(
    ("texts", "epochs"), [(0, 20), (3_750, 20), (7_500, 10), (25_000, 3), (10**7, 3)]
)
def test_epochs_of_a_flattened_network(texts, epochs):
    assert Settings.of(TextClassifier(pooling="flatten"), texts).epochs == epochs
    assert Settings.of(TextClassifier(pooling="flatten", epochs=7), texts).epochs == 7


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, se.Adagrad(lr=0.05)),
        ({"lr": 0.2}, se.Adagrad(lr=0.2)),
        ({"optimizer": "adam"}, se.LazyAdam(lr=0.01)),
        ({"pooling": "flatten"}, se.LazyAdam(lr=0.001)),
        ({"pooling": "flatten", "lr": 0.2}, se.LazyAdam(lr=0.2)),
        ({"pooling": "flatten", "optimizer": "adam"}, se.LazyAdam(lr=0.001)),
        ({"pooling": "flatten", "optimizer": "adagrad"}, se.Adagrad(lr=0.05)),
        ({"pooling": "flatten", "optimizer": se.SGD(lr=0.3)}, se.SGD(lr=0.3)),
    ],
    ids=str,
)
def test_the_pooling_chooses_what_is_not_given(options, expected):
    settings = Settings.of(TextClassifier(**options), 100)
    assert settings.optimizer == expected
    assert settings.features.word_ngrams == (1 if "pooling" in options else 2)


def test_flatten_learns_with_nothing_else_given(tmp_path):
    texts, labels = made_up(1000)
    model = TextClassifier(128, pooling="flatten", max_length=500, max_features=10_000)
    assert model.fit(texts, labels).score(NEW_TEXTS, NEW_LABELS) > 0.95
    assert model.get_params()["optimizer"] is model.get_params()["word_ngrams"] is None
    model.save(tmp_path / "m")
    with TextClassifier.load(tmp_path / "m") as loaded:
        assert np.array_equal(loaded.predict_proba(NEW_TEXTS), model.predict_proba(NEW_TEXTS))
        assert (loaded.word_ngrams, loaded.epochs) == (1, 20)
        assert loaded.optimizer == se.LazyAdam(lr=0.001)


def test_save_and_load(tmp_path):
    model = small(class_weight={"good": 2.0}, minn=3, maxn=4, min_count=2).fit(TEXTS, LABELS)
    model.save(tmp_path / "m")
    with TextClassifier.load(tmp_path / "m") as loaded:
        assert np.array_equal(loaded.predict_proba(NEW_TEXTS), model.predict_proba(NEW_TEXTS))
        assert loaded.classes_.tolist() == ["bad", "good"]
        shown = {
            k: v for k, v in loaded.get_params().items() if k not in ("path", "optimizer", "lr")
        }
        expected = {
            k: v for k, v in model.get_params().items() if k not in ("path", "optimizer", "lr")
        }
        assert shown == expected | {"word_ngrams": 2}  # None, as the pooling chose
        with pytest.raises(se.SparseEmbedError):
            loaded.fit(TEXTS, LABELS)
    with se.Store.create(tmp_path / "other") as store:
        store.create_table("rows", num_embeddings=1, embedding_dim=1)
    with pytest.raises(se.SparseEmbedError, match="TextClassifier"):
        TextClassifier.load(tmp_path / "other")


def test_pretrained_vectors():
    words = [*GOOD, *BAD]
    vectors = np.zeros((len(words), 16), np.float32)
    vectors[: len(GOOD), 3], vectors[len(GOOD) :, 3] = 1, -1
    seen = {word: word for word in PLAIN}  # training sees two words of each side, questions others
    seen |= {word: GOOD[k % 2] for k, word in enumerate(GOOD)}
    seen |= {word: BAD[k % 2] for k, word in enumerate(BAD)}
    texts = [" ".join(seen[word] for word in text.split()) for text in TEXTS]
    others = ["superb fine", "lovely", "weak poor", "awful"]
    expected = ["good", "good", "bad", "bad"]
    assert small(word_ngrams=1).fit(texts, LABELS).score(others, expected) < 1
    for static in (False, True):
        model = small(pretrained=(words, vectors), static=static, word_ngrams=1)
        assert model.fit(texts, LABELS).score(others, expected) == 1
    fixed = model.store.tables["fixed"]
    assert np.array_equal(fixed.lookup(np.arange(len(words))), vectors)
    adagrad = {"optimizer": "adagrad", "lr": 0.2, "epochs": 60}
    for options in ({"pooling": "mean"}, {"pooling": "flatten", "max_length": 12}):
        model = small(pretrained=(words, vectors), static=True, word_ngrams=1, **adagrad, **options)
        model.fit(TEXTS, LABELS)
        assert model.score(NEW_TEXTS, NEW_LABELS) > 0.9


def test_static_model_is_loaded_with_its_words(tmp_path):
    words, vectors = GOOD, np.eye(len(GOOD), 16, dtype=np.float32)
    model = small(pretrained=(words, vectors), static=True).fit(TEXTS, LABELS)
    model.save(tmp_path / "m")
    with TextClassifier.load(tmp_path / "m") as loaded:
        assert np.array_equal(loaded.predict_proba(NEW_TEXTS), model.predict_proba(NEW_TEXTS))


def test_empty_and_unknown_texts_get_the_bias():
    model = small().fit(TEXTS, LABELS)
    chance = model.predict_proba(["", "   ", "TEXTS"])
    assert np.array_equal(chance[0], chance[1])
    assert np.isfinite(chance).all()
    assert model.predict_proba([]).shape == (0, 2)
    assert small(epochs=1).fit(["", "word"], ["a", "b"]).predict([""]).shape == (1,)


def test_binary_counts_a_word_once_a_text(tmp_path):
    texts = ["fun fun fun", "dull dull", "fun", "dull"]
    with small(word_ngrams=1, binary=True).fit(texts, ["a", "b"] * 2) as words:
        once, twice = words.predict_proba(["fun dull", "fun dull fun dull fun"])
        assert once.tolist() == twice.tolist()
        assert np.diff(words.bags(["fun fun fun dull"])[1]).tolist() == [2]
        words.save(tmp_path / "words")
    with TextClassifier.load(tmp_path / "words") as again:
        assert again.binary
        assert np.diff(again.bags(["fun fun fun dull"])[1]).tolist() == [2]
    with small(word_ngrams=1).fit(texts, ["a", "b"] * 2) as counted:
        assert np.diff(counted.bags(["fun fun fun dull"])[1]).tolist() == [4]


def test_one_hot_is_the_lookup():
    model = small().fit(TEXTS, LABELS)
    table = model.store.tables["words"]
    indices, offsets = model.bags(NEW_TEXTS)
    matrix = model.one_hot(NEW_TEXTS)
    weight = table.lookup(np.arange(table.num_embeddings))
    assert np.array_equal(matrix @ weight, table.lookup(indices, offsets, mode="sum"))


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("one string", ["a"], "texts: expected a sequence of strings, got one"),
        (["a", 3], [0, 1], r"texts\[1\]: expected a string, got 3"),
        (["a", None], [0, 1], r"texts\[1\]: expected a string, got None"),
        (["a", b"b"], [0, 1], r"texts\[1\]"),
        ([["a"], ["b"]], [0, 1], r"texts\[0\]: expected a string"),
        (["a", "b"], ["x", "x"], "at least two classes to tell apart, got only 'x'"),
        (["a", "b"], ["x", 1], "labels: expected one type, got 'x' and 1"),
        (["a", "b"], ["x", None], r"labels\[1\]: expected a str or an int, got None"),
        (["a", "b"], [0.5, 1.0], r"labels\[0\]: expected a str or an int, got 0.5"),
        (["a", "b"], [float("nan"), 1.0], r"labels\[0\]"),
        (["a", "b"], ["x", ["y"]], "a list for each text or one label for each"),
        (["a", "b"], ["x", "y", "x"], "labels: expected 2, one a text, got 3"),
        (["a", "b"], "xy", "labels: expected one for each text"),
        (["a", "b"], [[0, 2], [1, 0]], None),
        (["a", "b"], np.array([[0, 2], [1, 0]]), "zeros and ones"),
        ([], [], "at least two classes"),
    ],
    ids=str,
)
def test_bad_data(texts, labels, message):
    if message is None:
        small(epochs=1).fit(texts, labels)
        return
    model = small()
    with pytest.raises(se.ArgumentError, match=message):
        model.fit(texts, labels)
    with pytest.raises(NotFittedError):
        model.predict(["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"epochs": 0}, "epochs"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": 0.1, "optimizer": se.SGD(lr=0.1)}, "lr: give it in optimizer or alone"),
        ({"optimizer": "adamw"}, "optimizer"),
        ({"pooling": "median"}, "pooling"),
        ({"pooling": "flatten", "word_ngrams": 2}, "word_ngrams=1"),
        ({"pooling": "flatten", "minn": 2, "maxn": 3}, "maxn=0"),
        ({"pooling": "flatten", "binary": True}, "binary"),
        ({"loss": "hinge"}, "loss"),
        ({"dropout": 1.0}, "dropout"),
        ({"maxn": 3}, "minn"),
        ({"minn": 4, "maxn": 3}, "minn"),
        ({"class_weight": {"nobody": 1.0}}, "none of the labels"),
        ({"class_weight": {"good": float("nan")}}, "class_weight"),
        ({"class_weight": "even"}, "class_weight"),
        ({"static": True}, "static"),
        ({"pretrained": (["a", "a"], np.zeros((2, 16)))}, "distinct"),
        ({"pretrained": (["a"], np.zeros((1, 5)))}, "embedding_dim = 16"),
        ({"pretrained": (["a"], np.full((1, 16), np.nan))}, "finite"),
        ({"pretrained": 3}, "pretrained"),
        ({"early_stopping": True, "validation_fraction": 0.0}, "validation_fraction"),
        ({"seed": -1}, "seed"),
        ({"lr_schedule": "cosine"}, "lr_schedule"),
    ],
    ids=str,
)
def test_bad_settings(options, message):
    with pytest.raises(se.ArgumentError, match=message):
        small(**options).fit(TEXTS, LABELS)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_bad_weights(wrong):
    with pytest.raises(se.ArgumentError, match=r"sample_weight\[1\]"):
        small().fit(TEXTS, LABELS, sample_weight=[1.0, wrong, *[1.0] * (len(TEXTS) - 2)])
    with pytest.raises(se.ArgumentError, match="shape"):
        small().fit(TEXTS, LABELS, sample_weight=[1.0])


def test_divergence_is_named():
    with pytest.raises(se.ArgumentError, match="diverged in epoch"):
        small(optimizer="sgd", lr=1e30).fit(TEXTS, LABELS)


def test_not_fitted():
    model = small()
    for call in (model.predict, model.predict_proba, model.bags, model.one_hot, model.save):
        with pytest.raises(NotFittedError, match="call fit first"):
            call(["a"])
    with pytest.raises(NotFittedError):
        model.fit(TEXTS, LABELS, resume=True)


def test_bad_questions():
    model = small(epochs=1).fit(TEXTS, LABELS)
    with pytest.raises(se.ArgumentError, match=r"texts\[0\]"):
        model.predict([1])
    with pytest.raises(se.ArgumentError, match="k: expected 1 to 2"):
        model.predict_top(["a"], k=3)
    with pytest.raises(se.ArgumentError, match="one a text"):
        model.score(["a"], ["good", "bad"])
    with pytest.raises(se.ArgumentError, match="kind"):
        model.score(["a"], [["good"]])
