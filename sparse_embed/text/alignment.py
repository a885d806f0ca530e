"""Two languages in one space: a rotation from a small dictionary, and translation through it.

    W = argmin |X W - Y|_F  over orthogonal W  =  U V',     U S V' = svd(X' Y)

X and Y are the vectors of the dictionary's words, of length 1.  The orthogonal
Procrustes problem (Schönemann 1966); for word vectors: Xing et al., NAACL 2015, Artetxe et al.,
EMNLP 2016.  CSLS: Conneau et al., Word Translation Without Parallel Data, ICLR 2018, section 2.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from sparse_embed import nearest, ops
from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed._validate import as_integer
from sparse_embed.errors import ArgumentError
from sparse_embed.text.vectors_queries import VectorQueries

_BLOCK = 1 << 12


@dataclass(frozen=True, eq=False)
class Alignment:
    """A map from one model's vectors to another's.

    rotation: (D, D) float32, orthogonal: `source vector @ rotation` lies in the target's space.
    pairs: how many of the dictionary's pairs both vocabularies had.
    """

    source: VectorQueries
    target: VectorQueries
    rotation: FloatArray
    pairs: int

    def vectors_of(self, words: Iterable[str]) -> FloatArray:
        """The vectors of the source's words in the target's space: (n, D) float32."""
        mapped: FloatArray = self.source.vectors_of(words) @ self.rotation
        return mapped

    def translate(
        self, words: Any, k: int = 1, *, method: str = "csls", neighbours: int = 10
    ) -> list[list[tuple[str, float]]]:
        """The target's words that are nearest to each of the source's.

        Args:
            words: a word or a list of words; also such as are out of vocabulary, given sub-words.
            k: how many.
            method: "csls" takes from the cosine how near both words are to everything (their mean
                cosine to their `neighbours` nearest in the other language), so that words that are
                near to all of them do not come up for each; "nearest" is the plain cosine.
            neighbours: for "csls".

        Returns:
            For each word [(word, score)], best first.

        Raises:
            ArgumentError: an unknown method; k or neighbours below 1.
            UnknownWordError: a word without a vector.

        Notes:
            CSLS(x, y) = 2 cos(x, y) - r_T(x) - r_S(y).  Compares all words of both vocabularies
            when it is first called; r_S is kept.
        """
        number, around = as_integer("k", k), as_integer("neighbours", neighbours)
        if number < 1 or around < 1:
            raise ArgumentError(f"k, neighbours: expected at least 1, got {number} and {around}")
        if method not in ("csls", "nearest"):
            raise ArgumentError(f'method: expected "csls" or "nearest", got {method!r}')
        listed = [words] if isinstance(words, str) else list(words)
        queries = _unit(self.vectors_of(listed))
        candidates = _unit(self.target.vectors)
        names = self.target.words
        if method == "nearest":
            found, scores = _search(queries, candidates, number)
        else:
            hubs = self._hubness(around)
            near = _search(queries, candidates, around)[1].mean(axis=1)
            found = np.full((len(queries), min(number, len(candidates))), -1, np.int64)
            scores = np.zeros(found.shape, np.float32)
            for begin in range(0, len(candidates), _BLOCK):
                part = np.arange(begin, min(begin + _BLOCK, len(candidates)))
                cosines = ops.scores(candidates[part], queries, "dot")
                csls = 2 * cosines - near[:, None] - hubs[part][None, :]
                ops.merge_top_k(np.ascontiguousarray(csls), part, "dot", found, scores)
        return [
            [(names[i], float(s)) for i, s in zip(row, row_scores, strict=True)]
            for row, row_scores in zip(found.tolist(), scores, strict=True)
        ]

    def accuracy(
        self, pairs: Iterable[Sequence[str]], k: int = 1, *, method: str = "csls"
    ) -> tuple[float, int]:
        """Precision at k: how many of the first words have one of their translations among the
        first k, and of how many words that was measured (both words of a pair known)."""
        wanted: dict[str, set[str]] = {}
        for first, second in _checked(pairs):
            if first in self.source and second in self.target:
                wanted.setdefault(first, set()).add(second)
        if not wanted:
            raise ArgumentError("pairs: none has both its words in the vocabularies")
        found = self.translate(list(wanted), k, method=method)
        hits = sum(
            bool(wanted[word] & {name for name, _ in best})
            for word, best in zip(wanted, found, strict=True)
        )
        return hits / len(wanted), len(wanted)

    def _hubness(self, neighbours: int) -> FloatArray:
        """(V_target,) r_S: the mean cosine of each target word to its nearest source words."""
        kept: dict[int, FloatArray] = self.__dict__.setdefault("_hubs", {})
        if neighbours not in kept:
            sources = _unit(self.source.vectors @ self.rotation)
            targets = _unit(self.target.vectors)
            near = [
                _search(targets[begin : begin + _BLOCK], sources, neighbours)[1].mean(axis=1)
                for begin in range(0, len(targets), _BLOCK)
            ]
            kept[neighbours] = np.concatenate(near)
        return kept[neighbours]


def align(
    source: VectorQueries, target: VectorQueries, pairs: Iterable[Sequence[str]]
) -> Alignment:
    """Rotate the source's vectors so that the words of a dictionary lie on their translations.

    Args:
        source, target: `WordVectors` of the same embedding_dim.
        pairs: (source word, target word); pairs with a word out of vocabulary are left out.

    Returns:
        An `Alignment`: `translate`, `vectors_of`, `accuracy`.

    Raises:
        ArgumentError: other dimensions; no pair with both words known; not pairs of strings.
    """
    if source.embedding_dim != target.embedding_dim:
        raise ArgumentError(
            f"source, target: expected the same embedding_dim, got {source.embedding_dim} and"
            f" {target.embedding_dim}"
        )
    known = [pair for pair in _checked(pairs) if pair[0] in source and pair[1] in target]
    if not known:
        raise ArgumentError("pairs: none has both its words in the vocabularies")
    x = _unit(source.vectors_of([first for first, _ in known]))
    y = _unit(target.vectors_of([second for _, second in known]))
    rotation, _ = scipy.linalg.orthogonal_procrustes(x.astype(np.float64), y.astype(np.float64))
    return Alignment(source, target, rotation.astype(np.float32), len(known))


def _checked(pairs: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    checked = []
    for place, pair in enumerate(pairs):
        whole = isinstance(pair, list | tuple) and len(pair) == 2
        if not whole or not all(isinstance(word, str) for word in pair):
            raise ArgumentError(
                f"pairs[{place}]: expected (source word, target word), got {pair!r}"
            )
        checked.append((pair[0], pair[1]))
    return checked


def _unit(rows: FloatArray) -> FloatArray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: FloatArray = np.ascontiguousarray(rows / np.where(norms > 0, norms, 1), np.float32)
    return units


def _search(queries: FloatArray, rows: FloatArray, k: int) -> tuple[IndexArray, FloatArray]:
    return nearest.search(queries, k, "dot", range(len(rows)), lambda part: rows[part])
