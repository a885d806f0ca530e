"""Texts as bags of words and word n-grams, hashed: no vocabulary, one pass.

indices, offsets = WordNgramHasher(2_000_000, max_n=2)(["the cat sat", "on the mat"])
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels import hashing, word_ngram_kernels
from sparse_embed.kernels._jit import counter_of_items, guard_fork, new_counter
from sparse_embed.keys.census import Census
from sparse_embed.keys.chunks import Strings
from sparse_embed.keys.hasher import KeyHasher, checked_integer
from sparse_embed.keys.ngrams import Bags, Indices, bags_of

_SCHEMES = {"murmur3": hashing.MURMUR3, "fasttext": hashing.FASTTEXT}


class WordNgramHasher:
    """Texts to the rows of their words and word n-grams.

    Tokens are what lies between ASCII whitespace (and NUL), bytes as they are: lower-case and strip
    punctuation first if you want that.  Rows of a text: its words in order, then for each word the
    n-grams of 2 to max_n words that start there.

    "murmur3": a word has the row that `KeyHasher(num_buckets, seed=seed)` gives it; an n-gram's
    hash is h = h1 of its first word, then h = fmix64(h * 0x9E3779B97F4A7C15 + h1 of the next) mod
    2^64; row = floor(h * num_buckets / 2^64).
    "fasttext": the n-grams of `Dictionary::addWordNgrams`, bit for bit: h = h * 116049371 + next,
    on sign-extended 32-bit hashes, row = h % num_buckets.  (fastText looks words up in a
    dictionary; here they are hashed too, h % num_buckets, unless words=False.)

    Args:
        num_buckets: rows to hash into, 1 to 2^63 (2^32 for fasttext).
        max_n: longest n-gram in words; 1: words alone.
        scheme: "murmur3" or "fasttext".
        words: whether single words have rows.
        end_of_line: add fastText's token "</s>" to each text.
        seed: murmur3 only.
        first_row: added to every row (fastText: the number of words of the dictionary).
        missing: None, NaN or null among the texts: "raise" a named error, or "skip": an empty bag.

    Raises:
        ArgumentError: an argument is out of the range given here.
    """

    def __init__(
        self,
        num_buckets: int,
        max_n: int = 2,
        scheme: str = "murmur3",
        *,
        words: bool = True,
        end_of_line: bool = False,
        seed: int = 0,
        first_row: int = 0,
        missing: Literal["raise", "skip"] = "raise",
    ) -> None:
        if scheme not in _SCHEMES:
            raise ArgumentError(f'scheme: expected "murmur3" or "fasttext", got {scheme!r}')
        if missing not in ("raise", "skip"):
            raise ArgumentError(f'missing: expected "raise" or "skip", got {missing!r}')
        most = 1 << 32 if scheme == "fasttext" else 1 << 63
        self.scheme: str = scheme
        self.num_buckets: int = checked_integer("num_buckets", num_buckets, most)
        self.max_n: int = checked_integer("max_n", max_n, 1024)
        self.words: bool = bool(words)
        self.end_of_line: bool = bool(end_of_line)
        self.seed: int = checked_integer("seed", seed, 0xFFFFFFFF, least=0)
        if scheme == "fasttext" and self.seed != 0:
            raise ArgumentError("seed: the fasttext recipe has none to choose")
        self.first_row: int = checked_integer(
            "first_row", first_row, (1 << 63) - self.num_buckets, least=0
        )
        self.missing: Literal["raise", "skip"] = missing

    def __repr__(self) -> str:
        return (
            f"WordNgramHasher({self.num_buckets}, max_n={self.max_n}, scheme={self.scheme!r},"
            f" words={self.words}, end_of_line={self.end_of_line}, seed={self.seed})"
        )

    def __call__(self, texts: Any) -> Bags:
        """Bags of the words and word n-grams of texts.

        Args:
            texts: B strings (or bytes), in anything `KeyHasher` takes.

        Returns:
            indices (L,) int64 and offsets (B + 1,) int64; an empty text is an empty bag.

        Raises:
            ArgumentError: integers, a missing text under "raise"; or as `KeyHasher.__call__`.
        """
        guard_fork()
        return bags_of(texts, "texts", self.missing, self._strings)

    def _strings(self, chunk: Strings) -> Bags:
        missing = chunk.missing
        layout = hashing.SPANS if chunk.spans else hashing.OFFSETS
        place = (chunk.base, chunk.starts, chunk.lengths)
        tokens = np.zeros(len(chunk) + 1, np.int64)
        counter = new_counter(len(chunk) // word_ngram_kernels.CHUNK)
        word_ngram_kernels.count_tokens_cpu(layout)(
            *place, int(self.end_of_line), counter, tokens[1:]
        )
        if missing is not None:
            tokens[1:][missing] = 0
        np.cumsum(tokens, out=tokens)
        hashes = np.empty(tokens[-1], np.uint64)
        hash_tokens = word_ngram_kernels.hash_tokens_cpu(layout, _SCHEMES[self.scheme])
        closing, counter = word_ngram_kernels.END_OF_LINE.ctypes.data, counter_of_items(len(hashes))
        hash_tokens(*place, closing, np.uint64(self.seed), tokens, counter, hashes)
        return self._combined(hashes, tokens)

    def of_tokens(self, tokens: Any, offsets: npt.ArrayLike) -> Bags:
        """The same for texts already cut into tokens (no "</s>" is added).

        Args:
            tokens: T strings.
            offsets: (B + 1,) integers, where each text begins among them; from 0 to T.

        Returns:
            indices (L,) int64 and offsets (B + 1,) int64.

        Raises:
            ArgumentError: offsets that do not partition the tokens; or as `KeyHasher.__call__`.
        """
        hasher = KeyHasher(1, seed=self.seed, scheme=self.scheme)
        raw = hasher.hashes(tokens)
        if raw.ndim == 2:
            hashes = np.ascontiguousarray(raw[:, 0])
        else:  # 32 bits, sign-extended
            hashes = raw.view(np.int32).astype(np.int64).view(np.uint64)
        bounds = np.ascontiguousarray(offsets, np.int64)
        if (
            bounds.ndim != 1
            or len(bounds) == 0
            or bounds[0] != 0
            or bounds[-1] != len(hashes)
            or (np.diff(bounds) < 0).any()
        ):
            raise ArgumentError(
                f"offsets: expected (B+1,) non-decreasing from 0 to len(tokens) = {len(hashes)}"
            )
        return self._combined(hashes, bounds)

    def collisions(self, texts: Any, *, top: int = 10) -> Census:
        """Which words and n-grams of these texts share rows; see `KeyHasher.collisions`.

        They are told apart by 63 bits of hash: exact but for an accident of rate U^2 / 2^64.
        """
        from sparse_embed.keys.file_census import census_of_texts

        return census_of_texts(self, texts, top)

    def _combined(self, hashes: npt.NDArray[np.uint64], tokens: Indices) -> Bags:
        counts = np.diff(tokens)
        rows = counts.copy() if self.words else np.zeros_like(counts)
        for n in range(2, min(self.max_n, int(counts.max(initial=0))) + 1):
            rows += np.maximum(counts - (n - 1), 0)
        offsets = np.zeros(len(tokens), np.int64)
        np.cumsum(rows, out=offsets[1:])
        indices = np.empty(offsets[-1], np.int64)
        combine = word_ngram_kernels.combine_tokens_cpu(_SCHEMES[self.scheme])
        combine(
            hashes, tokens, self.words, self.max_n, np.uint64(self.num_buckets), self.first_row,
            offsets, counter_of_items(len(indices)), indices,
        )  # fmt: skip
        return indices, offsets
