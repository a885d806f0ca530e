"""What can be asked of word vectors once they are there: vectors, neighbours, analogies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sparse_embed import nearest
from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed._validate import as_integer
from sparse_embed.errors import ArgumentError, SparseEmbedError
from sparse_embed.keys import NgramVocabulary
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable
from sparse_embed.text import vectors_store
from sparse_embed.text.corpus import Vocabulary

_BLOCK = 1 << 14  # words looked up at a time: 6.5 MB at D = 100

Neighbours = list[tuple[str, float]]


class NotFittedError(SparseEmbedError, ValueError):
    """The model has not been fitted yet."""


class UnknownWordError(SparseEmbedError, KeyError):
    """A word that is not in the vocabulary and has no sub-words to make a vector from."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show quotes


class VectorQueries:
    """The reading half of `WordVectors`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self._store: Store | None = None
        self._known: tuple[Vocabulary, NgramVocabulary | None] | None = None
        self._forget()

    @property
    def embedding_dim(self) -> int:
        """D, numbers in a vector."""
        return int(self.options["embedding_dim"])

    @property
    def store(self) -> Store:
        """The store with the tables `input` and `output`; see `vectors_store` for its layout.

        Raises:
            NotFittedError: before `fit`.
        """
        if self._store is None:
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        return self._store

    @property
    def vocabulary(self) -> Vocabulary:
        """The words (UTF-8) and how often they occur."""
        store = self.store
        if self._known is None:
            self._known = vectors_store.read_vocabulary(store), None
        return self._known[0]

    @property
    def words(self) -> list[str]:
        """The words of the vocabulary, most frequent first."""
        return [word.decode() for word in self.vocabulary.words]

    @property
    def counts(self) -> IndexArray:
        """(V,) int64: how often each word occurs in the text."""
        return self.vocabulary.counts.copy()

    @property
    def _subwords(self) -> NgramVocabulary:
        """The bags of the vocabulary, hashed once when they are first needed."""
        vocabulary = self.vocabulary
        assert self._known is not None
        found = self._known[1]
        if found is None:
            word_rows = self.options["scheme"] == "fasttext"
            hasher = vectors_store.make_hasher(self.options)
            found = hasher.vocabulary(vocabulary.words, word_rows=word_rows)
            self._known = vocabulary, found
        return found

    def _adopt(self, store: Store) -> None:
        self._store = store
        self._known = None
        self._forget()

    def _set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """The same words with other counts."""
        vectors_store.write_vocabulary(self.store, vocabulary)
        assert self._known is not None
        self._known = vocabulary, self._known[1]

    def _forget(self) -> None:
        """Drop what was computed from rows that have changed since."""
        self._matrix: FloatArray | None = None

    def __len__(self) -> int:
        """Words in the vocabulary, V."""
        return len(self.vocabulary)

    def __contains__(self, word: object) -> bool:
        """Is the word in the vocabulary?  (Others may have a vector all the same.)"""
        return isinstance(word, str) and bool(self._numbers([word])[0] >= 0)

    def __getitem__(self, word: Any) -> FloatArray:
        """The vector of a word (D,), or of a list of words (n, D); see `vectors_of`."""
        return self._vector(word) if isinstance(word, str) else self.vectors_of(word)

    # ---- vectors --------------------------------------------------------------------------------

    def vectors_of(self, words: Iterable[str]) -> FloatArray:
        """The vectors of any words, also of those out of vocabulary.

        Returns:
            (n, D) float32.

        Raises:
            ArgumentError: not a list of strings.
            UnknownWordError: a word out of vocabulary that has no n-grams (it is too short, or the
                model has whole words only).
        """
        listed = _word_list(words)
        if not listed:
            return np.empty((0, self.embedding_dim), np.float32)
        indices, offsets = self._subwords.bags(listed)
        empty = np.flatnonzero(offsets[1:] == offsets[:-1])
        if len(empty):
            raise UnknownWordError(
                f"{listed[empty[0]]!r} is not in the vocabulary and has no n-grams of"
                f" {self.options['minn']} to {self.options['maxn']} characters"
                if self.options["maxn"]
                else f"{listed[empty[0]]!r} is not in the vocabulary"
            )
        return self.store.tables["input"].lookup(indices, offsets, mode="mean")

    @property
    def vectors(self) -> FloatArray:
        """The vectors of the whole vocabulary: (V, D) float32, in the order of `words`; read-only.

        Computed when first asked for, and kept until training goes on.
        """
        view = self._vectors().view()
        view.flags.writeable = False
        return view

    def _vectors(self) -> FloatArray:
        if self._matrix is None:
            matrix = np.empty((len(self), self.embedding_dim), np.float32)
            for begin in range(0, len(self), _BLOCK):
                numbers = np.arange(begin, min(begin + _BLOCK, len(self)))
                bags = self._subwords(numbers)
                matrix[numbers] = self.store.tables["input"].lookup(*bags, mode="mean")
            self._matrix = matrix
        return self._matrix

    def static_table(self) -> EmbeddingTable:
        """A frozen table in memory: row i is the vector of word i, (V, D), without optimizer.

        The input of a model that shall not change its word vectors.
        """
        table = EmbeddingTable.create(
            None, num_embeddings=len(self), embedding_dim=self.embedding_dim, optimizer=None
        )
        table.assign(np.arange(len(self)), self._vectors())
        return table

    # ---- neighbours -----------------------------------------------------------------------------

    def similarity(self, first: str, second: str) -> float:
        """The cosine of two words' vectors."""
        a, b = self.vectors_of([first, second])
        norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
        return float(a @ b) / norms if norms > 0 else 0.0

    def most_similar(
        self, positive: Any, negative: Any = (), k: int = 10, *, topn: int | None = None
    ) -> Neighbours:
        """The words nearest to the sum of some, less that of others.

        Args:
            positive: a word, a vector (D,), or a list of both.
            negative: as `positive`; taken away.
            k: how many (gensim: topn, which is taken too).

        Returns:
            [(word, cosine)], best first, without the words asked for.

        Raises:
            ArgumentError: nothing asked for; a vector of another length; k below 1.
            UnknownWordError: as `vectors_of`.

        Notes:
            Each vector counts with length 1, as in gensim (3CosAdd: Mikolov, Yih, Zweig, NAACL
            2013).  Exact: every word of the vocabulary is compared.
        """
        number = as_integer("k", k if topn is None else topn)
        if number < 1:
            raise ArgumentError(f"k: expected at least 1, got {number}")
        plus, minus = _asked("positive", positive), _asked("negative", negative)
        if not plus and not minus:
            raise ArgumentError("positive: expected at least one word or vector")
        query = np.zeros(self.embedding_dim, np.float32)
        for sign, asked in ((1, plus), (-1, minus)):
            for item in asked:
                query += sign * _unit(self._vector(item))
        named = [item for item in plus + minus if isinstance(item, str)]
        return self._nearest(query, number, named)

    def analogy(self, a: str, b: str, c: str, k: int = 10) -> Neighbours:
        """a is to b as c is to which words?  `most_similar([b, c], [a], k)`."""
        return self.most_similar([b, c], [a], k)

    def _nearest(self, query: FloatArray, k: int, without: list[str]) -> Neighbours:
        excluded = set(self._numbers(without).tolist()) if without else set()
        matrix = self._vectors()
        found, scores = nearest.search(
            query[None, :], k + len(excluded), "cosine", range(len(self)), lambda rows: matrix[rows]
        )
        words = self.vocabulary.words
        best = [
            (words[number].decode(), float(score))
            for number, score in zip(found[0].tolist(), scores[0], strict=True)
            if number not in excluded
        ]
        return best[:k]

    def _vector(self, item: Any) -> FloatArray:
        if isinstance(item, str):
            row: FloatArray = self.vectors_of([item])[0]
            return row
        vector = np.asarray(item)
        if vector.shape != (self.embedding_dim,) or vector.dtype.kind not in "fiu":
            raise ArgumentError(
                f"expected a word or a vector of {self.embedding_dim} numbers, got"
                f" {type(item).__name__} of shape {vector.shape}"
            )
        checked: FloatArray = vector.astype(np.float32)
        return checked

    def _numbers(self, words: list[str]) -> IndexArray:
        return self._subwords.numbers(words)


def _asked(name: str, items: Any) -> list[Any]:
    if isinstance(items, str) or (isinstance(items, np.ndarray) and items.ndim == 1):
        return [items]
    try:
        return list(items)
    except TypeError:
        raise ArgumentError(
            f"{name}: expected words or vectors (D,), got {type(items).__name__}"
        ) from None


def _unit(vector: FloatArray) -> FloatArray:
    norm = np.float32(np.linalg.norm(vector))
    unit: FloatArray = vector / norm if norm > 0 else vector
    return unit


def _word_list(words: Any) -> list[str]:
    listed = [words] if isinstance(words, str) else list(words)
    for place, word in enumerate(listed):
        if not isinstance(word, str):
            raise ArgumentError(f"words[{place}]: expected a string, got {word!r}")
    return listed
