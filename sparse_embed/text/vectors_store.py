"""Word vectors as a store: two tables, the vocabulary, and how far training came, in one commit.

tables    input (rows of words and sub-words, D), output (V, D)
            fastText   row i < V is word i, row V + h its n-gram's bucket h (as in fastText)
            floret     words and n-grams share the buckets
arrays    words uint8 (UTF-8, one after the other), ends (V,) int64, counts (V,) int64
metadata  {"model": {"name": "WordVectors", ...}, "progress": {...}}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparse_embed.errors import CorruptStoreError, NotAStoreError
from sparse_embed.initializers import Uniform, Zeros
from sparse_embed.keys import NgramHasher
from sparse_embed.optim import Optimizer
from sparse_embed.store import Store
from sparse_embed.text.corpus import Vocabulary


@dataclass
class Progress:
    """How far a training came: `tokens_done` of `epochs * tokens` read.

    lr: where the learning rate started.  runs: trainings before this one.  batch_size: tokens.
    """

    epochs: int
    tokens: int
    tokens_done: int
    lr: float
    runs: int
    batch_size: int

    @property
    def finished(self) -> bool:
        return self.tokens_done >= self.epochs * self.tokens


def make_hasher(description: dict[str, Any]) -> NgramHasher:
    """The sub-words of a model; maxn = 0: none (floret keeps the word itself)."""
    extra: dict[str, Any] = {}
    if description["scheme"] == "floret":
        extra = {"num_hashes": description["num_hashes"]}
        if "hash_seed" in description:
            extra["seed"] = description["hash_seed"]
    return NgramHasher(
        max(1, description["num_buckets"]),
        description["minn"] if description["maxn"] else 0,
        description["maxn"],
        description["scheme"],
        **extra,
    )


def input_rows(description: dict[str, Any], words: int) -> int:
    """Rows of the input table."""
    buckets = int(description["num_buckets"])
    if description["scheme"] == "floret":
        return buckets
    return words + (buckets if description["maxn"] else 0)


def create_store(
    path: str | None,
    description: dict[str, Any],
    vocabulary: Vocabulary,
    *,
    optimizer: Optimizer,
    cache_bytes: int | None,
    overwrite: bool,
) -> Store:
    """A new store for a model with this description and vocabulary.

    First weights are fastText's: input rows uniform in +-1/D, output rows zero.

    Raises:
        StoreError: `path` exists (and is not to be overwritten) or cannot be written.
    """
    store = Store.create(path, overwrite=overwrite)
    dim = description["embedding_dim"]
    try:
        store.create_table(
            "input",
            num_embeddings=input_rows(description, len(vocabulary)),
            embedding_dim=dim,
            init=Uniform(1 / dim),
            optimizer=optimizer,
            seed=description["seed"],
            cache_bytes=cache_bytes,
        )
        store.create_table(
            "output",
            num_embeddings=len(vocabulary),
            embedding_dim=dim,
            init=Zeros(),
            optimizer=optimizer,
            cache_bytes=cache_bytes,
        )
        write_vocabulary(store, vocabulary)
    except BaseException:
        store.discard()
        raise
    store.metadata["model"] = {"name": "WordVectors", **description}
    return store


def write_vocabulary(store: Store, vocabulary: Vocabulary) -> None:
    """Into the arrays; the next commit makes it durable."""
    store.arrays["words"] = np.frombuffer(b"".join(vocabulary.words), np.uint8)
    store.arrays["ends"] = np.cumsum([len(word) for word in vocabulary.words], dtype=np.int64)
    store.arrays["counts"] = vocabulary.counts


def read_vocabulary(store: Store) -> Vocabulary:
    """From the arrays.

    Raises:
        CorruptStoreError: they do not fit together.
    """
    try:
        words, ends = store.arrays["words"].tobytes(), store.arrays["ends"]
        counts = store.arrays["counts"]
    except KeyError as error:
        raise CorruptStoreError(f"{store.path}: its array {error} is missing") from None
    rows = store.tables["output"].num_embeddings
    whole = len(ends) == len(counts) == rows and ends.dtype == counts.dtype == np.int64
    if not whole or (np.diff(ends) <= 0).any() or int(ends[0]) <= 0 or int(ends[-1]) != len(words):
        raise CorruptStoreError(f"{store.path}: its vocabulary does not fit its {rows} rows")
    starts = [0, *ends[:-1].tolist()]
    listed = [words[a:b] for a, b in zip(starts, ends.tolist(), strict=True)]
    return Vocabulary(listed, np.array(counts, np.int64))


def read_description(store: Store) -> dict[str, Any]:
    """The metadata's "model" without its name.

    Raises:
        NotAStoreError: the store holds something else.
    """
    recorded = store.metadata.get("model")
    found = recorded.get("name") if isinstance(recorded, dict) else None
    if not isinstance(recorded, dict) or found != "WordVectors" or set(store.tables) != {
        "input",
        "output",
    }:  # fmt: skip
        raise NotAStoreError(
            f"{store.path}: expected WordVectors, found a store of {found or 'something else'}"
        )
    return {key: value for key, value in recorded.items() if key != "name"}


def read_progress(store: Store) -> Progress | None:
    """The last training, or None when there was none."""
    recorded = store.metadata.get("progress")
    if recorded is None:
        return None
    try:
        return Progress(**recorded)
    except TypeError as error:
        raise CorruptStoreError(f"{store.path}: its metadata is damaged: {error}") from None


def write_progress(store: Store, progress: Progress) -> None:
    """Into the metadata; the next commit makes it durable."""
    store.metadata["progress"] = asdict(progress)
