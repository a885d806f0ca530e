"""Word vectors as the files that other programs read: word2vec's text and binary formats.

    text      "V D", then a line "word x1 ... xD" each             (.txt, .vec; fastText's .vec too)
    binary    "V D\\n", then "word " and D float32, little-endian, and "\\n"       (.bin)

Files may be packed: .gz, .bz2, .xz.  A model read from one has whole words and their vectors only:
no sub-words, no output rows; it can be trained on, with new output rows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from sparse_embed._typing import FloatArray
from sparse_embed.errors import ArgumentError
from sparse_embed.text.corpus import Vocabulary, opener_of
from sparse_embed.text.vectors import WordVectors

_BLOCK = 1 << 12
_LONGEST_WORD = 1 << 16
_TEXT, _BINARY = (".txt", ".vec"), (".bin",)

Block = tuple[list[bytes], FloatArray]


def save_word2vec(
    model: WordVectors, path: str | os.PathLike[str], *, binary: bool | None = None
) -> int:
    """Write the vectors of the vocabulary in word2vec's format, most frequent word first.

    Args:
        binary: None: by the suffix, .bin is binary, .txt and .vec are text.

    Returns:
        The number of words written.

    Raises:
        ArgumentError: a word has white space in it; the suffix says nothing.
        OSError: the file cannot be written.
    """
    binary = _is_binary(path, binary)
    words = model.vocabulary.words
    for word in words:
        if word.split() != [word]:
            raise ArgumentError(
                f"words: {word.decode()!r} has white space in it, which word2vec files cannot hold"
            )
    dim = model.embedding_dim
    with opener_of(path)(path, "wb") as file:
        file.write(f"{len(words)} {dim}\n".encode())
        for begin in range(0, len(words), _BLOCK):
            part = words[begin : begin + _BLOCK]
            rows = model.vectors_of([word.decode() for word in part])
            for word, row in zip(part, rows, strict=True):
                if binary:
                    file.write(word + b" " + row.astype("<f4").tobytes() + b"\n")
                else:
                    # The shortest digits that are this float32 again.
                    numbers = " ".join(str(x) for x in row)
                    file.write(word + b" " + numbers.encode() + b"\n")
    return len(words)


def load_word2vec(
    path: str | os.PathLike[str],
    *,
    binary: bool | None = None,
    limit: int | None = None,
    model_path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> WordVectors:
    """Read word2vec's text or binary format, or fastText's .vec.

    Args:
        binary: None: by the suffix.
        limit: read only this many words from the beginning.
        model_path: directory of the store to make; None: in memory.
        options: of `WordVectors`, for training on.

    Raises:
        ArgumentError: not such a file, or damaged; names the place.
        OSError: the file cannot be read.

    Notes:
        Of a word that is there twice, the first one counts.  Bytes that are not UTF-8 are replaced
        (word2vec's own files have some).
    """
    binary = _is_binary(path, binary)
    name = os.fspath(path)
    read = _read_binary if binary else _read_text
    with opener_of(path)(path, "rb") as file:
        number, dim = _header(file, name)
        if limit is not None:
            if limit < 1:
                raise ArgumentError(f"limit: expected at least 1, got {limit}")
            number = min(number, limit)
        words: dict[bytes, int] = {}
        blocks: deque[FloatArray] = deque()
        for part, rows in read(file, name, number, dim):
            fresh = []
            for k, word in enumerate(part):
                if word not in words:
                    words[word] = len(words)
                    fresh.append(k)
            blocks.append(rows[fresh])
    options = {"min_count": 1, **options, "maxn": 0, "scheme": "fasttext"}
    vocabulary = Vocabulary(list(words), np.zeros(len(words), np.int64))
    model = WordVectors.of(vocabulary, path=model_path, embedding_dim=dim, **options)
    table = model.store.tables["input"]
    begin = 0
    while blocks:
        rows = blocks.popleft()
        table.assign(np.arange(begin, begin + len(rows)), rows)
        begin += len(rows)
    model.finish_reading()
    return model


def _is_binary(path: str | os.PathLike[str], binary: bool | None) -> bool:
    if binary is not None:
        return bool(binary)
    name = os.fspath(path)
    for packed in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(packed)
    if name.endswith(_TEXT) or name.endswith(_BINARY):
        return name.endswith(_BINARY)
    raise ArgumentError(f"path: expected .txt, .vec or .bin, or binary=True or False, got {name!r}")


def _header(file: IO[bytes], name: str) -> tuple[int, int]:
    line = file.readline(256)
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() and len(field) < 16 for field in fields):
        raise ArgumentError(
            f'{name}: expected a first line "words dimensions", found {line[:60]!r}'
        )
    number, dim = int(fields[0]), int(fields[1])
    if number < 1 or not 1 <= dim <= 65536:
        raise ArgumentError(f"{name}: expected words, and 1 to 65536 dimensions, found {line!r}")
    return number, dim


def _read_text(file: IO[bytes], name: str, number: int, dim: int) -> Iterator[Block]:
    words: list[bytes] = []
    rows = np.empty((min(_BLOCK, number), dim), np.float32)
    longest = _LONGEST_WORD + 64 * dim
    for place in range(number):
        line = file.readline(longest)
        fields = line.rstrip().rsplit(b" ", dim)
        if len(fields) != dim + 1 or not fields[0].strip():
            raise ArgumentError(
                f"{name}, line {place + 2}: expected a word and {dim} numbers, found {line[:60]!r}"
                + ("" if line else f" (the file ends; its first line says {number} words)")
            )
        try:
            rows[len(words)] = fields[1:]
        except ValueError as error:
            raise ArgumentError(f"{name}, line {place + 2}: {error}") from None
        words.append(_utf8(fields[0].strip(), f"{name}, line {place + 2}"))
        if len(words) == len(rows):
            yield words, rows.copy()
            words = []
    if words:
        yield words, rows[: len(words)].copy()


def _read_binary(file: IO[bytes], name: str, number: int, dim: int) -> Iterator[Block]:
    words: list[bytes] = []
    rows = np.empty((min(_BLOCK, number), dim), np.float32)
    for place in range(number):
        word = bytearray()
        while (sign := file.read(1)) != b" ":
            if not sign or len(word) > _LONGEST_WORD:
                raise ArgumentError(
                    f"{name}: expected word {place} of {number}, found {word[:60]!r}"
                )
            if sign != b"\n" or word:  # word2vec ends rows with a line end, others do not
                word += sign
        data = file.read(4 * dim)
        if len(data) != 4 * dim:
            raise ArgumentError(f"{name}: the file ends in the vector of word {place} of {number}")
        rows[len(words)] = np.frombuffer(data, "<f4")
        words.append(_utf8(bytes(word), f"{name}, word {place}"))
        if len(words) == len(rows):
            yield words, rows.copy()
            words = []
    if words:
        yield words, rows[: len(words)].copy()


def _utf8(word: bytes, where: str) -> bytes:
    if not word:
        raise ArgumentError(f"{where}: an empty word")
    return word.decode(errors="replace").encode()
