"""Running text for word vectors: read again and again, never held in memory.

    words     runs of bytes between white space (space, tab, line ends), as fastText and word2vec
    lines     the text between two line ends; a window of words never crosses one
    tokens    words of the vocabulary, by number; other words leave no gap

A corpus is a text file (.gz, .bz2 and .xz are unpacked), a list of `Path`s, or an iterable that can
be iterated more than once and gives texts (cut at white space) or lists of words.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import PurePath
from typing import Any, TypeAlias

import numpy as np

from sparse_embed._typing import IndexArray
from sparse_embed.errors import ArgumentError

Block: TypeAlias = tuple[list[list[bytes]], bool]
"""The words of some lines, and whether the last of these lines ends here."""

_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_CHUNK = 1 << 20
_TEXTS = 1 << 10  # texts of a block


def opener_of(path: str | os.PathLike[str]) -> Any:
    """open, or the one that packs and unpacks files with this suffix."""
    return _OPENERS.get(os.path.splitext(os.fspath(path))[1], open)


@dataclass(frozen=True)
class Vocabulary:
    """The words that have vectors, most frequent first; word i has the number i.

    words: UTF-8, distinct.  counts: (V,) int64, occurrences in the text they were found in.
    """

    words: list[bytes]
    counts: IndexArray

    def __len__(self) -> int:
        return len(self.words)

    @property
    def tokens(self) -> int:
        """Occurrences of all of them."""
        return int(self.counts.sum())


class Corpus:
    """A checked corpus.

    Args:
        source: see the module.
        name: the argument's name in error messages.

    Raises:
        ArgumentError: something that can be read only once, or is no text.
        OSError: a file is not there.
    """

    def __init__(self, source: Any, name: str = "corpus") -> None:
        self.name = name
        self._paths: list[str] = []
        self._texts: Iterable[Any] = ()
        if isinstance(source, str | os.PathLike):
            source = [PurePath(source)]
        if isinstance(source, bytes) or not isinstance(source, Iterable):
            raise ArgumentError(
                f"{name}: expected a path, or an iterable of texts or lists of words, got"
                f" {type(source).__name__}"
            )
        if isinstance(source, Iterator):
            raise ArgumentError(
                f"{name}: a {type(source).__name__} can be read only once, and training reads the"
                " text several times; pass a list, a path, or an object with its own __iter__"
            )
        if isinstance(source, list | tuple) and source and isinstance(source[0], os.PathLike):
            self._paths = [os.fspath(path) for path in source]
            for path in self._paths:
                with open(path, "rb"):
                    pass
        else:
            self._texts = source

    def blocks(self) -> Iterator[Block]:
        """The words of the corpus from its beginning, many lines at a time.

        Raises:
            ArgumentError: an element that is neither a text nor a list of words; names its place.
            OSError: a file cannot be read.
        """
        for path in self._paths:
            with opener_of(path)(path, "rb") as file:
                yield from _blocks_of(file)
        lines: list[list[bytes]] = []
        for place, text in enumerate(self._texts):
            lines.append(self._words_of(text, place))
            if len(lines) == _TEXTS:
                yield lines, True
                lines = []
        if lines:
            yield lines, True

    def _words_of(self, text: Any, place: int) -> list[bytes]:
        try:
            if isinstance(text, str):
                return text.encode().split()
            if isinstance(text, list | tuple) and all(isinstance(word, str) for word in text):
                return [word.encode() for word in text if word]
        except UnicodeEncodeError as error:
            raise ArgumentError(f"{self.name}[{place}]: not valid Unicode ({error})") from None
        raise ArgumentError(
            f"{self.name}[{place}]: expected a text or a list of words, got {text!r:.60}"
        )

    def count(self, progress: Callable[[int], None] | None = None) -> Counter[bytes]:
        """How often every word occurs; `progress` gets the number of words read so far."""
        found: Counter[bytes] = Counter()
        seen, told = 0, 0
        for lines, _ in self.blocks():
            found.update(chain.from_iterable(lines))
            seen += sum(map(len, lines))
            if progress is not None and seen - told >= 1 << 18:
                progress(seen)
                told = seen
        return found

    def batches(
        self, vocabulary: Vocabulary, size: int, skip: int = 0
    ) -> Iterator[tuple[IndexArray, IndexArray]]:
        """One reading of the corpus in batches of `size` tokens; the last one may be shorter.

        Args:
            skip: leave out this many tokens at the beginning.

        Yields:
            tokens (n,) int64 word numbers, lines (n,) int64 the number of each one's line.
        """
        number = {word: place for place, word in enumerate(vocabulary.words)}.get
        waiting: list[IndexArray] = []
        waiting_lines: list[IndexArray] = []
        held, line = 0, 0
        for pieces, ends in self.blocks():
            counts = np.fromiter(map(len, pieces), np.int64, len(pieces))
            words = map(number, chain.from_iterable(pieces), repeat(-1))
            found = np.fromiter(words, np.int64, int(counts.sum()))
            places = np.repeat(np.arange(line, line + len(pieces)), counts)
            line += len(pieces) - (not ends)
            known = np.flatnonzero(found >= 0)
            dropped = min(skip, len(known))
            skip -= dropped
            known = known[dropped:]
            waiting.append(found[known])
            waiting_lines.append(places[known])
            held += len(known)
            if held >= size:
                tokens, lines = np.concatenate(waiting), np.concatenate(waiting_lines)
                whole = held - held % size
                for begin in range(0, whole, size):
                    yield tokens[begin : begin + size], lines[begin : begin + size]
                waiting, waiting_lines = [tokens[whole:]], [lines[whole:]]
                held -= whole
        if held:
            yield np.concatenate(waiting), np.concatenate(waiting_lines)


def _blocks_of(file: Any) -> Iterator[Block]:
    """Cut a binary file at white space, reading 1 MiB at a time: lines may be of any length."""
    rest = b""
    while True:
        chunk = file.read(_CHUNK)
        text = rest + chunk
        if chunk:
            cut = max(text.rfind(sign) for sign in (b" ", b"\n", b"\t", b"\r")) + 1
            text, rest = text[:cut], text[cut:]
            if len(rest) > _CHUNK:
                raise ArgumentError(
                    f"{file.name}: a word of more than {_CHUNK} bytes: this is not running text"
                )
        if not text and not chunk:
            return
        *lines, last = map(bytes.split, text.split(b"\n"))
        if last:
            yield [*lines, last], False
        elif lines:
            yield lines, True
        if not chunk:
            return


def make_vocabulary(
    counts: Counter[bytes], min_count: int, max_vocab: int | None, name: str
) -> Vocabulary:
    """The words that occur often enough, most frequent first, equals as they were found.

    Words that are not UTF-8 are left out.

    Raises:
        ArgumentError: fewer than two words are left; says what to change.
    """
    kept = [item for item in counts.most_common(max_vocab) if item[1] >= min_count]
    kept = [item for item in kept if _is_utf8(item[0])]
    if len(kept) < 2:
        raise ArgumentError(
            f"{name}: found {sum(counts.values())} words, and {len(kept)} different ones at least"
            f" min_count={min_count} times; at least 2 are needed: give more text or a lower"
            " min_count"
        )
    words = [word for word, _ in kept]
    return Vocabulary(words, np.array([count for _, count in kept], np.int64))


def _is_utf8(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True
