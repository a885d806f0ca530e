"""How good are word vectors: word similarity against human judgement, and analogies, from files.

Both formats are those of gensim's `evaluate_word_pairs` and `evaluate_word_analogies`, and both
measures too, so that figures can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.stats

from sparse_embed import nearest
from sparse_embed.errors import ArgumentError
from sparse_embed.text.vectors_queries import VectorQueries

_QUESTIONS = 1 << 10  # analogies ranked at a time


@dataclass(frozen=True)
class WordPairs:
    """Correlation of cosines with human scores, over `pairs` pairs; `left_out` had a word out of
    vocabulary."""

    spearman: float
    pearson: float
    pairs: int
    left_out: int


@dataclass(frozen=True)
class Analogies:
    """Share of right answers over `questions`; `left_out` had a word out of vocabulary.

    sections: name -> (right, questions).
    """

    accuracy: float
    questions: int
    left_out: int
    sections: dict[str, tuple[int, int]]


def evaluate_word_pairs(
    model: VectorQueries,
    path: str | os.PathLike[str],
    *,
    delimiter: str = "\t",
    lower: bool = True,
    subwords: bool = False,
) -> WordPairs:
    """Compare cosines with what people said (WordSim-353, SimLex-999, MEN, ...).

    Args:
        path: lines "word, word, score"; lines that begin with # are passed over, and so is a first
            line without a score.
        lower: look words up in lower case.
        subwords: also pairs with words out of vocabulary, where the model makes vectors of them.

    Raises:
        ArgumentError: a line of another kind; fewer than two pairs are known.
        OSError: the file cannot be read.
    """
    first: list[str] = []
    second: list[str] = []
    scores: list[float] = []
    left_out = 0
    for number, line in _lines(path):
        fields = [field.strip() for field in line.split(delimiter)]
        try:
            a, b, score = fields[0], fields[1], float(fields[2])
        except (IndexError, ValueError):
            if number == 1:
                continue
            raise ArgumentError(
                f"{os.fspath(path)}, line {number}: expected two words and a score, got {line!r}"
            ) from None
        if lower:
            a, b = a.lower(), b.lower()
        if subwords or (a in model and b in model):
            first.append(a)
            second.append(b)
            scores.append(score)
        else:
            left_out += 1
    if len(scores) < 2:
        raise ArgumentError(f"{os.fspath(path)}: {len(scores)} of its pairs are in the vocabulary")
    x, y = model.vectors_of(first), model.vectors_of(second)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines = (x * y).sum(axis=1) / np.where(norms > 0, norms, 1)
    return WordPairs(
        float(scipy.stats.spearmanr(scores, cosines).statistic),
        float(scipy.stats.pearsonr(scores, cosines).statistic),
        len(scores),
        left_out,
    )


def evaluate_word_analogies(
    model: VectorQueries,
    path: str | os.PathLike[str],
    *,
    restrict_vocab: int | None = 300_000,
    lower: bool = True,
) -> Analogies:
    """a is to b as c is to d: how often d is the word nearest to b - a + c, of all but these three.

    Args:
        path: lines of four words; ": name" begins a section (word2vec's questions-words.txt).
        restrict_vocab: questions and answers from this many of the most frequent words only.
        lower: look words up in lower case.

    Raises:
        ArgumentError: a line of another kind; no question's words are all known.
        OSError: the file cannot be read.
    """
    words = model.words[:restrict_vocab]
    number_of = {word: place for place, word in enumerate(words)}
    section, left_out = "", 0
    questions: list[tuple[int, int, int, int]] = []
    names: list[str] = []
    for number, line in _lines(path):
        if line.startswith(":"):
            section = line[1:].strip()
            continue
        fields = (line.lower() if lower else line).split()
        if len(fields) != 4:
            raise ArgumentError(
                f"{os.fspath(path)}, line {number}: expected four words, got {line!r}"
            )
        found = tuple(number_of.get(field, -1) for field in fields)
        if min(found) < 0:
            left_out += 1
            continue
        questions.append(found)  # type: ignore[arg-type]
        names.append(section)
    if not questions:
        raise ArgumentError(f"{os.fspath(path)}: none of its questions is in the vocabulary")
    vectors = model.vectors[: len(words)]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.ascontiguousarray(vectors / np.where(norms > 0, norms, 1), np.float32)
    asked = np.array(questions, np.int64)
    right = np.zeros(len(asked), bool)
    for begin in range(0, len(asked), _QUESTIONS):
        a, b, c, d = asked[begin : begin + _QUESTIONS].T
        queries = np.ascontiguousarray(units[b] - units[a] + units[c])
        found_rows, _ = nearest.search(
            queries, 4, "dot", range(len(units)), lambda rows: units[rows]
        )
        given = (found_rows[:, :, None] == np.stack((a, b, c), axis=1)[:, None, :]).any(axis=2)
        best = found_rows[np.arange(len(given)), given.argmin(axis=1)]
        right[begin : begin + len(given)] = best == d
    sections: dict[str, tuple[int, int]] = {}
    for name, hit in zip(names, right.tolist(), strict=True):
        hits, total = sections.get(name, (0, 0))
        sections[name] = hits + hit, total + 1
    return Analogies(float(right.mean()), len(right), left_out, sections)


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """(line number, line) of all that are neither empty nor comments."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                yield number, line.strip()
