"""Word vectors as a classifier's input: from a file, a pair of arrays, or a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.keys import KeyHasher
from sparse_embed.text.features import TextFeatures


@dataclass(frozen=True)
class Pretrained:
    """V words and their vectors (V, D) float32."""

    words: list[str]
    values: FloatArray

    def hashed(self, features: TextFeatures) -> tuple[IndexArray, FloatArray]:
        """The rows that these words have in a classifier's table, and their vectors; of two words
        that share a row, the first in the file (usually the more frequent)."""
        rows = KeyHasher(features.num_embeddings, seed=features.seed)(self.words)
        unique, first = np.unique(rows, return_index=True)
        return unique, self.values[first]


def read(given: Any, embedding_dim: int) -> Pretrained | None:
    """What the argument `pretrained` stands for.

    Raises:
        ArgumentError: something else, repeated words, or vectors of another length.
        OSError: the file cannot be read.
    """
    if given is None:
        return None
    if isinstance(given, str | os.PathLike):
        from sparse_embed.text.vec_files import load_word2vec

        model = load_word2vec(given)
        words, vectors = model.words, model.vectors
    elif isinstance(given, tuple) and len(given) == 2:
        words, vectors = given
    elif hasattr(given, "words") and hasattr(given, "vectors"):
        words, vectors = given.words, given.vectors
    else:
        raise ArgumentError(
            "pretrained: expected a path, a pair (words, vectors) or a model with both, got"
            f" {type(given).__name__}"
        )
    listed = [str(word) for word in words]
    values = np.ascontiguousarray(vectors, np.float32)
    if values.ndim == 2 and len(values) == len(listed) and values.shape[1] != embedding_dim:
        raise ArgumentError(
            f"pretrained: expected vectors of embedding_dim = {embedding_dim} numbers, got"
            f" {values.shape[1]}: give embedding_dim={values.shape[1]} too"
        )
    if values.shape != (len(listed), embedding_dim):
        raise ArgumentError(
            f"pretrained: expected {len(listed)} vectors of embedding_dim = {embedding_dim}"
            f" numbers, got shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ArgumentError("pretrained: expected finite numbers")
    if len(set(listed)) != len(listed):
        raise ArgumentError("pretrained: expected distinct words, got repeated ones")
    if not listed:
        raise ArgumentError("pretrained: expected at least one word")
    return Pretrained(listed, values)
