"""From keys to their census: `KeyHasher.collisions`, `WordNgramHasher.collisions`, files."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError
from sparse_embed.keys.census import Census, census_of

if TYPE_CHECKING:
    from sparse_embed.keys.hasher import KeyHasher
    from sparse_embed.keys.word_ngrams import WordNgramHasher

_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def census_of_keys(hasher: KeyHasher, keys: Any, feature: Any = None, top: int = 10) -> Census:
    """The census of keys under a hasher; see `KeyHasher.collisions`."""
    from sparse_embed.keys.hasher import KeyHasher

    named = KeyHasher(1, missing="skip" if hasher.missing == "raise" else hasher.missing)
    if hasher.scheme != "murmur3":  # these have pairs as strings, or none
        named = KeyHasher(1, missing="skip")
    rows = hasher(keys, feature=feature).reshape(-1, hasher.num_hashes)
    names = named.hashes(keys, feature=feature).reshape(-1, 2)
    positions: npt.NDArray[np.int64] | None = None
    if hasher.missing == "skip" and (rows < 0).any():
        positions = np.flatnonzero(rows[:, 0] >= 0)
        names, rows = names[positions], rows[positions]
    gone = 0 if positions is None else _size(keys) - len(positions)

    def original(position: int) -> int:
        return position if positions is None else int(positions[position])

    def example(position: int) -> Any:
        return _key_at(keys, original(position))

    def rows_at(
        first: npt.NDArray[np.int64], num_embeddings: int, num_hashes: int
    ) -> npt.NDArray[np.int64] | None:
        limit = hasher._scheme
        if num_hashes > (limit.max_hashes or num_hashes) or num_embeddings > limit.max_embeddings:
            return None
        return rows_of_words(hasher, words()[first], num_embeddings, num_hashes)

    cached: list[npt.NDArray[Any]] = []

    def words() -> npt.NDArray[Any]:
        if not cached:
            raw = hasher.hashes(keys, feature=feature)
            raw = raw.reshape(_size(keys), hasher._scheme.words[0])
            cached.append(raw if positions is None else raw[positions])
        return cached[0]

    return census_of(
        names, rows, hasher.num_embeddings, example=example, missing=gone, rows_at=rows_at, top=top
    )


def census_of_texts(hasher: WordNgramHasher, texts: Any, top: int = 10) -> Census:
    """The census of the words and word n-grams of texts; see `WordNgramHasher.collisions`."""
    from sparse_embed.keys.word_ngrams import WordNgramHasher

    indices, _ = hasher(texts)
    wide = WordNgramHasher(
        1 << 63, hasher.max_n, words=hasher.words, end_of_line=hasher.end_of_line,
        missing=hasher.missing,
    )  # fmt: skip
    names, offsets = wide(texts)

    def example(position: int) -> str:
        text = int(np.searchsorted(offsets, position, side="right")) - 1
        return _gram_at(hasher, _key_at(texts, text), position - int(offsets[text]))

    def rows_at(
        first: npt.NDArray[np.int64], num_embeddings: int, num_hashes: int
    ) -> npt.NDArray[np.int64] | None:
        if num_hashes > 1:
            return None
        other = WordNgramHasher(
            num_embeddings, hasher.max_n, hasher.scheme, words=hasher.words,
            end_of_line=hasher.end_of_line, seed=hasher.seed, missing=hasher.missing,
        )  # fmt: skip
        return other(texts)[0][first].reshape(-1, 1)

    rows = indices.reshape(-1, 1) - hasher.first_row
    return census_of(names, rows, hasher.num_buckets, example=example, rows_at=rows_at, top=top)


def _gram_at(hasher: WordNgramHasher, text: Any, number: int) -> str:
    """Which n-gram of a text has this number in its bag."""
    raw = text if isinstance(text, bytes) else str(text).encode()
    tokens = raw.replace(b"\0", b" ").split()
    if hasher.end_of_line:
        tokens.append(b"</s>")
    grams = [[token] for token in tokens] if hasher.words else []
    for i in range(len(tokens)):
        for n in range(2, min(hasher.max_n, len(tokens) - i) + 1):
            grams.append(tokens[i : i + n])
    return b" ".join(grams[number]).decode(errors="replace")


def rows_of_words(
    hasher: KeyHasher, words: npt.NDArray[Any], num_embeddings: int, num_hashes: int
) -> npt.NDArray[np.int64]:
    """Rows in a table of another size from `KeyHasher.hashes`, in plain NumPy."""
    if hasher.scheme == "murmur3":
        return np.stack(
            [_multiply_high(_word(words, j), num_embeddings) for j in range(num_hashes)], axis=1
        ).astype(np.int64)
    if words.dtype == np.int32:
        words = np.abs(words.astype(np.int64)).astype(np.uint64)
    rows = words[:, :num_hashes].astype(np.uint64) % np.uint64(num_embeddings)
    return rows.astype(np.int64)


def _word(hashes: npt.NDArray[np.uint64], j: int) -> npt.NDArray[np.uint64]:
    h1, h2 = hashes[:, 0], hashes[:, 1]
    if j == 0:
        return h1
    h = h1 + np.uint64(j) * (h2 | np.uint64(1))
    for constant in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ (h >> np.uint64(33))) * np.uint64(constant)
    mixed: npt.NDArray[np.uint64] = h ^ (h >> np.uint64(33))
    return mixed


def _multiply_high(a: npt.NDArray[np.uint64], number: int) -> npt.NDArray[np.uint64]:
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    b_low, b_high = np.uint64(number & 0xFFFFFFFF), np.uint64(number >> 32)
    a_low, a_high = a & low, a >> shift
    middle = a_high * b_low + ((a_low * b_low) >> shift)
    other = (middle & low) + a_low * b_high
    product: npt.NDArray[np.uint64] = a_high * b_high + (middle >> shift) + (other >> shift)
    return product


def _size(keys: Any) -> int:
    return int(np.prod(keys.shape)) if hasattr(keys, "shape") else len(keys)


def _key_at(keys: Any, position: int) -> Any:
    """One key as plain data, from a list, an array, or an Arrow, pandas or polars column."""
    if isinstance(keys, np.ndarray):
        key = keys.reshape(-1)[position]
    elif hasattr(keys, "iloc"):
        key = keys.iloc[position]
    else:
        key = keys[position]
    if hasattr(key, "as_py"):
        key = key.as_py()
    return key.item() if isinstance(key, np.generic) else key


def read_keys(
    path: str | os.PathLike[str], column: int | None = None, delimiter: str = "\t"
) -> list[bytes]:
    """The keys of a text file, one a line, as bytes; .gz, .bz2 and .xz are unpacked.

    Args:
        path: the file.
        column: take this column (from 0) of each line instead of the whole line; lines that have
            no such column are errors.
        delimiter: what separates columns.

    Raises:
        ArgumentError: a line without the column.
        OSError: the file cannot be read.
    """
    name = os.fspath(path)
    opener: Any = _OPENERS.get(os.path.splitext(name)[1], open)
    file: IO[bytes]
    with opener(name, "rb") as file:
        lines = file.read().splitlines()
    if column is None:
        return lines
    separator = delimiter.encode()
    keys = []
    for number, line in enumerate(lines, 1):
        cells = line.split(separator)
        if column >= len(cells):
            raise ArgumentError(f"{name}, line {number}: no column {column}, found {len(cells)}")
        keys.append(cells[column])
    return keys


def report(
    keys: Any,
    num_embeddings: int,
    num_hashes: int = 1,
    seed: int | None = 0,
    *,
    scheme: str = "murmur3",
    top: int = 10,
) -> Census:
    """The census that `sparse-embed keys FILE` shows.

    Args:
        keys: what `KeyHasher` takes, for example `read_keys(path)`; missing ones are counted apart.
        num_embeddings, num_hashes, seed, scheme: as `KeyHasher`.
        top: how many worst pairs to name.
    """
    from sparse_embed.keys.hasher import KeyHasher

    hasher = KeyHasher(num_embeddings, num_hashes, seed, scheme=scheme, missing="skip")
    return census_of_keys(hasher, keys, top=top)


__all__ = ["census_of_keys", "census_of_texts", "read_keys", "report"]
