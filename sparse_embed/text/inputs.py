"""Texts to a network's input: hashed, filtered, with pretrained words in their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sparse_embed._typing import IndexArray
from sparse_embed.text.features import Bags, TextFeatures, distinct, kept, padded
from sparse_embed.text.network import Input, Shape


@dataclass(frozen=True)
class Inputs:
    """From texts to row numbers, as training had them.

    Args:
        features: how texts become rows.
        shape: the network's.
        fixed_words: words with pretrained vectors that do not train, to their row in `fixed`.
        rows: sorted rows that are used; None: all.
    """

    features: TextFeatures
    shape: Shape
    fixed_words: Mapping[str, int]
    rows: IndexArray | None

    def __call__(self, texts: list[str]) -> Input:
        """Bags, or padded row numbers for a flattened network."""
        return self.of_bags(self.bags(texts))

    def of_bags(self, bags: Bags) -> Input:
        """The same from bags."""
        if self.shape.pooling == "flatten":
            return Input(padded(bags, self.shape.length), None)
        return Input(*bags)

    def bags(self, texts: list[str]) -> Bags:
        """Row numbers and offsets; E + v stands for row v of `fixed`."""
        bags = self.features(texts)
        if self.fixed_words:
            self._fix(bags, texts)
        if self.features.binary:
            bags = distinct(bags)
        return bags if self.rows is None else kept(bags, self.rows)

    def _fix(self, bags: Bags, texts: list[str]) -> None:
        """A bag begins with the text's words in their order."""
        indices, offsets = bags
        get, rows = self.fixed_words.get, self.features.num_embeddings
        for text, start in zip(self.features.words(texts), offsets.tolist(), strict=False):
            numbers = np.array([get(word, -1) for word in text.split()], np.int64)
            known = np.flatnonzero(numbers >= 0)
            indices[start + known] = rows + numbers[known]
