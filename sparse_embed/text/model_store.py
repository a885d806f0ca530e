"""A TextClassifier as a store: its metadata and arrays, written once and read back.

tables    see `network.py`
metadata  {"model": {"name", constructor arguments}, "network": {...}, "labels": kind,
           "fingerprint": of the training data, "epochs_done", "finished"}
arrays    labels.* (`labels.py`); rows: sorted rows in use, if some are left out;
          fixed.names, fixed.ends: UTF-8 words of the table `fixed`
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.errors import NotAStoreError
from sparse_embed.store import Store
from sparse_embed.text import resuming
from sparse_embed.text.features import TextFeatures
from sparse_embed.text.labels import Labels
from sparse_embed.text.network import Shape
from sparse_embed.text.settings import Settings

NAME = "TextClassifier"


def arguments_of(settings: Settings) -> dict[str, Any]:
    """The constructor's arguments as metadata has them; the optimizer is the table's."""
    features = settings.features
    weights = settings.class_weight
    if isinstance(weights, dict):
        weights = [[_json(label), float(weight)] for label, weight in weights.items()]
    return {
        "embedding_dim": settings.embedding_dim,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "lr_schedule": "linear" if settings.linear else "constant",
        "word_ngrams": features.word_ngrams,
        "minn": features.minn,
        "maxn": features.maxn,
        "num_embeddings": features.num_embeddings,
        "normalize": features.normalize,
        **({"binary": True} if features.binary else {}),
        "min_count": settings.min_count,
        "max_features": settings.max_features,
        "pooling": settings.pooling,
        **({"max_length": settings.length} if settings.pooling == "flatten" else {}),
        "dropout": settings.dropout,
        "batch_norm": settings.batch_norm,
        "loss": settings.loss,
        **({"label_sampling": True} if settings.label_sampling else {}),
        "class_weight": weights,
        "early_stopping": settings.early_stopping,
        "validation_fraction": settings.validation_fraction,
        "patience": settings.patience,
        "seed": settings.seed,
    }


def describe(store: Store, settings: Settings, shape: Shape, labels: Labels) -> None:
    """Write what `read_description` and `read_shape` need; the caller commits."""
    store.metadata["model"] = {"name": NAME, **arguments_of(settings)}
    store.metadata["network"] = {"outputs": shape.outputs, "loss": shape.loss}
    store.metadata["labels"] = labels.kind
    store.metadata["epochs_done"] = 0
    labels.to_arrays(store.arrays)


def check_same(store: Store, settings: Settings) -> None:
    """Refuse to go on with another fit.

    Raises:
        ArgumentError: an argument differs.
    """
    recorded = {key: value for key, value in store.metadata["model"].items() if key != "name"}
    optimizer = {"optimizer": store.tables["words"].optimizer}
    resuming.check_same(
        recorded | optimizer, arguments_of(settings) | {"optimizer": settings.optimizer}
    )


def _json(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def read_description(store: Store) -> tuple[dict[str, Any], Labels]:
    """The constructor's arguments, and the labels.

    Raises:
        NotAStoreError: the store holds something else.
    """
    recorded = store.metadata.get("model")
    found = recorded.get("name") if isinstance(recorded, dict) else None
    if not isinstance(recorded, dict) or found != NAME:
        raise NotAStoreError(
            f"{store.path}: expected a {NAME}, found a store of"
            f" {'something else' if found is None else found}"
        )
    if not {"words", "dense"} <= set(store.tables):
        raise NotAStoreError(f"{store.path}: expected tables words and dense, found {store.tables}")
    arguments = {key: value for key, value in recorded.items() if key != "name"}
    weights = arguments.get("class_weight")
    if isinstance(weights, list):
        arguments["class_weight"] = {label: weight for label, weight in weights}
    arguments["optimizer"] = store.tables["words"].optimizer
    labels = Labels.from_arrays(str(store.metadata.get("labels")), store.arrays)
    return arguments, labels


def read_shape(store: Store) -> tuple[Shape, TextFeatures, dict[str, int], IndexArray | None]:
    """What `Network` and `Inputs` are made of."""
    model, network = store.metadata["model"], store.metadata["network"]
    features = TextFeatures(
        model["num_embeddings"],
        model["word_ngrams"],
        model["minn"],
        model["maxn"],
        model["normalize"],
        model["seed"] & 0xFFFFFFFF,
        model.get("binary", False),
    )
    shape = Shape(
        num_embeddings=model["num_embeddings"],
        embedding_dim=model["embedding_dim"],
        outputs=network["outputs"],
        length=model.get("max_length", 1),
        pooling=model["pooling"],
        loss=network["loss"],
        dropout=model["dropout"],
        batch_norm=model["batch_norm"],
        seed=model["seed"],
    )
    rows = np.array(store.arrays["rows"]) if "rows" in store.arrays else None
    return shape, features, _words(store), rows


def write_words(store: Store, words: list[str]) -> None:
    """The words of `fixed`, row by row."""
    encoded = [word.encode() for word in words]
    store.arrays["fixed.names"] = np.frombuffer(b"".join(encoded), np.uint8)
    store.arrays["fixed.ends"] = np.cumsum([len(word) for word in encoded], dtype=np.int64)


def _words(store: Store) -> dict[str, int]:
    if "fixed.names" not in store.arrays:
        return {}
    names, ends = store.arrays["fixed.names"].tobytes(), store.arrays["fixed.ends"].tolist()
    parts = zip([0, *ends[:-1]], ends, strict=True)
    return {names[start:end].decode(): place for place, (start, end) in enumerate(parts)}


def probabilities(scores: FloatArray, loss: str) -> FloatArray:
    """(N, classes) from scores (N, C); one score is that of the second of two classes."""
    if scores.shape[1] == 1 or loss == "ova":
        with np.errstate(over="ignore"):  # e^89 is infinite in float32, and 1 / inf is right
            chance: FloatArray = np.float32(1) / (np.float32(1) + np.exp(-scores))
        return np.concatenate([1 - chance, chance], axis=1) if scores.shape[1] == 1 else chance
    chance = np.exp(scores - scores.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    return chance
