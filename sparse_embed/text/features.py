"""Texts to bags of rows: words, word n-grams and character n-grams in one table.

    features(texts)  ->  indices (L,), offsets (B + 1,)     or (B, length), -1 where there is none

A text's bag holds its words, then its word n-grams (`WordNgramHasher`), then the character n-grams
of its words (`NgramHasher`, fastText's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_embed._typing import AnyArray, IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.keys import NgramHasher, WordNgramHasher
from sparse_embed.text.tokenize import normalize

Bags = tuple[IndexArray, IndexArray]
PADDING = -1
_BLOCK = 1 << 12  # texts at a time


@dataclass(frozen=True)
class TextFeatures:
    """How texts become rows.

    Args:
        num_embeddings: rows to hash into, E.
        word_ngrams: longest n-gram in words; 1: words alone.
        minn, maxn: lengths of character n-grams; maxn = 0: none.
        normalize: lower case, signs apart (`tokenize.normalize`).
        seed: of the hash.
        binary: a text has each row once, however often it occurs; `Inputs` sees to it, when
            pretrained words are in their places.
    """

    num_embeddings: int
    word_ngrams: int = 2
    minn: int = 0
    maxn: int = 0
    normalize: bool = True
    seed: int = 0
    binary: bool = False

    def __call__(self, texts: Any) -> Bags:
        """The bag of each text.

        Raises:
            ArgumentError: not a sequence of strings; the first that is not one is named.
        """
        words = self.words(texts)
        bags = WordNgramHasher(self.num_embeddings, self.word_ngrams, seed=self.seed)(words)
        return joined(bags, self._characters(words)) if self.maxn else bags

    def words(self, texts: Any) -> list[str]:
        """The texts as they are hashed: words between white space."""
        listed = as_texts(texts)
        return [normalize(text) for text in listed] if self.normalize else listed

    def _characters(self, words: list[str]) -> Bags:
        tokens = [text.split() for text in words]
        ends = np.cumsum([0, *(len(text) for text in tokens)])
        rows = min(self.num_embeddings, 1 << 32)
        hasher = NgramHasher(rows, self.minn, self.maxn)
        indices, offsets = hasher([token for text in tokens for token in text])
        return indices, offsets[ends]


def as_texts(texts: Any) -> list[str]:
    """A list of strings.

    Raises:
        ArgumentError: one string alone, no sequence, or something that is not a string.
    """
    if isinstance(texts, str | bytes):
        raise ArgumentError(f"texts: expected a sequence of strings, got one: {texts[:40]!r}")
    if getattr(texts, "ndim", 1) != 1:
        raise ArgumentError(f"texts: expected one dimension, got shape {texts.shape}")
    try:
        listed = list(texts)
    except TypeError:
        raise ArgumentError(
            f"texts: expected a sequence of strings, got {type(texts).__name__}"
        ) from None
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            raise ArgumentError(f"texts[{place}]: expected a string, got {text!r}")
    return listed


def take(bags: Bags, order: IndexArray) -> Bags:
    """The bags of some texts, in this order."""
    indices, offsets = bags
    counts = np.diff(offsets)[order]
    new = np.concatenate([[0], np.cumsum(counts)])
    places = np.repeat(offsets[:-1][order] - new[:-1], counts)
    places += np.arange(new[-1])
    return indices[places], new


def joined(first: Bags, second: Bags) -> Bags:
    """Bag i is the first's, then the second's."""
    offsets = first[1] + second[1]
    indices = np.empty(offsets[-1], np.int64)
    for (rows, own), before in ((first, second[1][:-1]), (second, first[1][1:])):
        indices[np.arange(len(rows)) + np.repeat(before, np.diff(own))] = rows
    return indices, offsets


def kept(bags: Bags, rows: IndexArray) -> Bags:
    """Without what is not among these sorted rows."""
    indices, offsets = bags
    places = np.minimum(np.searchsorted(rows, indices), max(len(rows) - 1, 0))
    keep = rows[places] == indices if len(rows) else np.zeros(len(indices), bool)
    ends = np.concatenate([[0], np.cumsum(keep)])
    return indices[keep], ends[offsets]


def distinct(bags: Bags) -> Bags:
    """Each row of a bag once, ascending."""
    indices, offsets = bags
    rows = int(indices.max(initial=0)) + 1
    block = max(1, min(_BLOCK, (1 << 62) // rows))  # text and row in one integer
    found: list[IndexArray] = [np.empty(0, np.int64)]
    counts = np.zeros(len(offsets), np.int64)
    for begin in range(0, len(offsets) - 1, block):
        ends = offsets[begin : begin + block + 1]
        texts = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        both = np.sort(texts * rows + indices[ends[0] : ends[-1]])
        first = np.ones(len(both), bool)
        np.not_equal(both[1:], both[:-1], out=first[1:])
        texts, kept_rows = np.divmod(both[first], rows)
        found.append(kept_rows)
        counts[begin + 1 : begin + len(ends)] = np.bincount(texts, minlength=len(ends) - 1)
    return np.concatenate(found), np.cumsum(counts)


def padded(bags: Bags, length: int) -> AnyArray:
    """(B, length): the last `length` rows of each bag, in front of them -1 (Keras' convention)."""
    indices, offsets = bags
    counts = np.minimum(np.diff(offsets), length)
    out = np.full((len(counts), length), PADDING, np.int64)
    rows = np.repeat(np.arange(len(counts)), counts)
    ends = np.concatenate([[0], np.cumsum(counts)])
    step = np.arange(ends[-1]) - np.repeat(ends[1:], counts)  # -count .. -1
    out[rows, length + step] = indices[np.repeat(offsets[1:], counts) + step]
    return out


def frequent(indices: IndexArray, min_count: int, max_features: int | None) -> IndexArray:
    """Rows that occur at least `min_count` times, the `max_features` most frequent of them
    (ties: the smaller row), sorted."""
    rows, counts = np.unique(indices, return_counts=True)
    rows, counts = rows[counts >= min_count], counts[counts >= min_count]
    if max_features is not None and len(rows) > max_features:
        rows = np.sort(rows[np.argsort(-counts, kind="stable")[:max_features]])
    return rows
