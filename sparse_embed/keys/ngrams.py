"""Sub-words: the character n-grams of words as bags of rows, as fastText and floret make them.

    indices, offsets = NgramHasher(2_000_000)(["apple", "münchen"])
    vectors = table.lookup(indices, offsets, mode="mean")        # also of words never seen before

A vocabulary's bags are hashed once and copied from then on (`NgramHasher.vocabulary`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels import hashing, ngram_kernels
from sparse_embed.kernels._jit import counter_of_items, guard_fork, new_counter
from sparse_embed.keys.chunks import Coded, Ids, Strings, first_true
from sparse_embed.keys.hasher import KeyHasher, checked_integer
from sparse_embed.keys.input import as_column

Indices = npt.NDArray[np.int64]
Bags = tuple[Indices, Indices]

FLORET_SEED = 2166136261


class NgramHasher:
    """Words to the rows of their character n-grams.

    "fasttext": h(n-gram) % num_buckets of every n-gram of "<word>", n = minn to maxn characters.
    "floret": the whole "<word>" first, then the same n-grams; each gives `num_hashes` rows, the
    32-bit words of MurmurHash3_x64_128 % num_buckets.  A word as long as an n-gram is there twice,
    as in floret.

    Args:
        num_buckets: rows to hash into, 1 to 2^32.
        minn, maxn: n-gram lengths in characters, 1 <= minn <= maxn; maxn = 0 means no n-grams
            (with floret the word alone remains).
        scheme: "fasttext" or "floret".
        num_hashes: 1 to 4, floret only (its hashCount; its own default is 2 there, 1 here).
        seed: floret only, its own by default.
        first_row: added to every row.  fastText's tables begin with their words: n-grams start at
            the number of words.
        missing: None, NaN or null among the words: "raise" a named error, or "skip": an empty bag.

    Raises:
        ArgumentError: an argument is out of the range given here.
    """

    def __init__(
        self,
        num_buckets: int,
        minn: int = 3,
        maxn: int = 6,
        scheme: str = "fasttext",
        *,
        num_hashes: int = 1,
        seed: int = FLORET_SEED,
        first_row: int = 0,
        missing: Literal["raise", "skip"] = "raise",
    ) -> None:
        if scheme not in ("fasttext", "floret"):
            raise ArgumentError(f'scheme: expected "fasttext" or "floret", got {scheme!r}')
        if missing not in ("raise", "skip"):
            raise ArgumentError(f'missing: expected "raise" or "skip", got {missing!r}')
        self.scheme: str = scheme
        self.num_buckets: int = checked_integer("num_buckets", num_buckets, 1 << 32)
        self.maxn: int = checked_integer("maxn", maxn, 1 << 20, least=0)
        self.minn: int = checked_integer(
            "minn", minn, max(self.maxn, 1), least=0 if maxn == 0 else 1
        )
        self.num_hashes: int = checked_integer("num_hashes", num_hashes, 4)
        self.seed: int = checked_integer("seed", seed, 0xFFFFFFFF, least=0)
        self.first_row: int = checked_integer(
            "first_row", first_row, (1 << 63) - (1 << 32), least=0
        )
        self.missing: Literal["raise", "skip"] = missing
        if scheme == "fasttext" and (self.num_hashes != 1 or self.seed != FLORET_SEED):
            raise ArgumentError("num_hashes, seed: fastText has one row an n-gram and one basis")

    def __repr__(self) -> str:
        return (
            f"NgramHasher({self.num_buckets}, minn={self.minn}, maxn={self.maxn},"
            f" scheme={self.scheme!r}, num_hashes={self.num_hashes}, first_row={self.first_row})"
        )

    def __call__(self, words: Any) -> Bags:
        """Bags of the n-grams of words.

        Args:
            words: B strings, in anything `KeyHasher` takes.  Bytes need not be valid UTF-8.

        Returns:
            indices (L,) int64 and offsets (B + 1,) int64.  A word without n-grams (one letter when
            minn is 4, or "</s>", the end of line) is an empty bag: its pooled vector is zero.

        Raises:
            ArgumentError: integers, a missing word under "raise"; or as `KeyHasher.__call__`.
        """
        guard_fork()
        return bags_of(words, "words", self.missing, self._strings)

    def _strings(self, chunk: Strings) -> Bags:
        missing = chunk.missing
        layout = hashing.SPANS if chunk.spans else hashing.OFFSETS
        floret = self.scheme == "floret"
        words = (chunk.base, chunk.starts, chunk.lengths)
        shape = (self.minn if self.maxn else 1, self.maxn, self.num_hashes)
        offsets = np.zeros(len(chunk) + 1, np.int64)
        count = ngram_kernels.count_ngrams_cpu(layout, floret)
        longest = np.zeros(-(-len(chunk) // ngram_kernels.CHUNK), np.int64)
        count(*words, *shape, new_counter(len(longest)), longest, offsets[1:])
        if missing is not None:
            offsets[1:][missing] = 0
        np.cumsum(offsets, out=offsets)
        indices = np.empty(offsets[-1], np.int64)
        fill = ngram_kernels.hash_ngrams_cpu(layout, floret)
        fill(
            *words, *shape, np.uint64(self.seed), np.uint64(self.num_buckets), self.first_row,
            longest.max(initial=0), offsets, new_counter(len(longest)), indices,
        )  # fmt: skip
        return indices, offsets

    def vocabulary(self, words: Any, *, word_rows: bool = False) -> NgramVocabulary:
        """Hash a vocabulary's n-grams once, for training: see `NgramVocabulary`."""
        return NgramVocabulary(self, words, word_rows=word_rows)


class NgramVocabulary:
    """The cached bags of a vocabulary: word number to bag by copying, without hashing.

    Args:
        hasher: makes the bags.
        words: V distinct strings; word i has the number i.
        word_rows: put row i in front of the bag of word i, as fastText does; the n-grams' rows then
            start at V (the hasher's first_row is not used), so the table has V + num_buckets rows.

    Attributes:
        indices, offsets: the bags of all V words.
    """

    def __init__(self, hasher: NgramHasher, words: Any, *, word_rows: bool = False) -> None:
        self._keys = KeyHasher(1, missing=hasher.missing)
        named = self._keys.hashes(words)
        self._order: npt.NDArray[np.int64] = np.lexsort((named[:, 1], named[:, 0]))
        self._sorted = named[self._order]
        twins = (self._sorted[1:] == self._sorted[:-1]).all(axis=1)
        if twins.any():
            at = first_true(twins)
            first, second = sorted((int(self._order[at]), int(self._order[at + 1])))
            raise ArgumentError(
                f"words: expected distinct words; words[{first}] is words[{second}]"
            )
        if word_rows:
            hasher = NgramHasher(
                hasher.num_buckets, hasher.minn, hasher.maxn, hasher.scheme,
                num_hashes=hasher.num_hashes, seed=hasher.seed, first_row=len(named),
                missing=hasher.missing,
            )  # fmt: skip
        self.hasher: NgramHasher = hasher
        self.word_rows: bool = word_rows
        indices, offsets = hasher(words)
        if word_rows:
            ends = offsets[1:] - offsets[:-1]
            numbers = np.arange(len(ends))
            indices = np.insert(indices, offsets[:-1], numbers)
            offsets = offsets + np.arange(len(offsets))
        self.indices: Indices = indices
        self.offsets: Indices = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def numbers(self, words: Any) -> Indices:
        """The number of each word, -1 for words out of vocabulary.

        A word is known by its 128-bit hash (two words share one by an accident of 2^-128).

        Returns:
            (B,) int64
        """
        found = self._keys.hashes(words)
        if len(self) == 0:
            return np.full(len(found), -1, np.int64)
        place = np.searchsorted(self._sorted[:, 0], found[:, 0])
        place = np.minimum(place, len(self) - 1)
        known = (self._sorted[place] == found).all(axis=1)
        return np.where(known, self._order[place], -1)

    def __call__(self, numbers: npt.ArrayLike) -> Bags:
        """The bags of words by number, copied from the cache.

        Args:
            numbers: (B,) integers in [0, V).

        Returns:
            indices (L,) int64 and offsets (B + 1,) int64.

        Raises:
            ArgumentError: not integers, or a number outside the vocabulary.
        """
        which = np.asarray(numbers)
        if which.ndim != 1 or (which.dtype.kind not in "iu" and which.size):
            raise ArgumentError(
                f"numbers: expected (B,) integers, got {which.dtype} of shape {which.shape}"
            )
        which = np.ascontiguousarray(which, np.int64)
        outside = (which < 0) | (which >= len(self))
        if outside.any():
            at = first_true(outside)
            raise ArgumentError(
                f"numbers[{at}] = {which[at]} is not a word of this vocabulary of {len(self)} words"
            )
        return take_bags(which, (self.indices, self.offsets))

    def bags(self, words: Any) -> Bags:
        """The bags of any words: known ones from the cache, others hashed.

        Returns:
            indices (L,) int64 and offsets (B + 1,) int64.
        """
        numbers = self.numbers(words)
        unknown = np.flatnonzero(numbers < 0)
        if not len(unknown):
            return take_bags(numbers, (self.indices, self.offsets))
        listed = words if isinstance(words, list) else np.asarray(words, object)
        new_indices, new_offsets = self.hasher([listed[i] for i in unknown])
        indices = np.concatenate((self.indices, new_indices))
        offsets = np.concatenate((self.offsets, new_offsets[1:] + len(self.indices)))
        numbers[unknown] = len(self) + np.arange(len(unknown))
        return take_bags(numbers, (indices, offsets))


def bags_of(values: Any, name: str, missing_rule: str, strings: Callable[[Strings], Bags]) -> Bags:
    """The bags of a column of strings, chunk by chunk; `strings` makes those of plain strings.

    A missing value is an empty bag, or an error under the rule "raise".

    Raises:
        ArgumentError: integers, or a missing value under "raise"; names the argument and place.
    """

    def of_chunk(chunk: Strings | Ids | Coded, position: int) -> Bags:
        missing = chunk.missing
        if missing is not None and missing.any() and missing_rule == "raise":
            raise ArgumentError(
                f"{name}[{position + first_true(missing)}] is missing (None, NaN or null):"
                ' drop it, or pass missing="skip" for an empty bag'
            )
        if isinstance(chunk, Coded):
            codes = chunk.codes if missing is None else np.where(missing, -1, chunk.codes)
            return take_bags(codes, of_chunk(chunk.distinct, position))
        if isinstance(chunk, Ids):
            if missing is not None and missing.all():
                return np.empty(0, np.int64), np.zeros(len(chunk) + 1, np.int64)
            raise ArgumentError(f"{name}: expected strings, got integers")
        return strings(chunk)

    parts: list[Bags] = []
    position = 0
    for chunk in as_column(values, name).chunks:
        parts.append(of_chunk(chunk, position))
        position += len(chunk)
    return concatenate_bags(parts)


def take_bags(which: Indices, bags: Bags) -> Bags:
    """Bag i = bag which[i] of `bags`; an empty bag where which[i] < 0."""
    from_indices, from_offsets = bags
    offsets = np.zeros(len(which) + 1, np.int64)
    if len(from_offsets) > 1:
        lengths = np.where(which < 0, 0, from_offsets[which + 1] - from_offsets[which])
        np.cumsum(lengths, out=offsets[1:])
    indices = np.empty(offsets[-1], np.int64)
    counter = counter_of_items(len(indices))
    ngram_kernels.copy_bags_cpu()(which, from_offsets, from_indices, offsets, counter, indices)
    return indices, offsets


def concatenate_bags(parts: list[Bags]) -> Bags:
    """One list of bags from several."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty(0, np.int64), np.zeros(1, np.int64)
    offsets = [np.zeros(1, np.int64)]
    end = 0
    for indices, part in parts:
        offsets.append(part[1:] + end)
        end += len(indices)
    return np.concatenate([indices for indices, _ in parts]), np.concatenate(offsets)
