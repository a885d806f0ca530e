"""A file of interactions with ids of any kind, and their names inside the model's store.

    user,item[,weight[,timestamp]]    one interaction a line; any delimiter; gzip by its first bytes

Users and items are numbered in order of first appearance.  A trained model's store carries the
names and the interactions as arrays, so that `recommend` can speak the file's own ids and leave out
what a user took: "users.names" and "items.names" (UTF-8 bytes), "users.ends" and "items.ends"
(where each name ends), "taken.indptr" and "taken.indices" (CSR).
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import scipy.sparse

from sparse_embed.errors import ArgumentError, NotAStoreError
from sparse_embed.keys import KeyHasher
from sparse_embed.store import Store

_DELIMITERS = ("\t", ";", "|", ",", " ")
_REPORT_EVERY = 1 << 14


@dataclass(frozen=True)
class NamedInteractions:
    """users and items map a name to its number; user_items is (users, items) CSR.

    users is empty where they were hashed to rows.
    """

    users: dict[str, int]
    items: dict[str, int]
    user_items: scipy.sparse.csr_array

    def user(self, name: str) -> int | None:
        """The row of a user; None: never seen (a hashed user without interactions is one, too)."""
        if self.users:
            return self.users.get(name)
        row = int(KeyHasher(self.user_items.shape[0])([name])[0])
        return row if self.user_items.indptr[row + 1] > self.user_items.indptr[row] else None


def read_interactions(
    path: str | os.PathLike[str],
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    hash_users: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> NamedInteractions:
    """Read lines `user,item[,weight[,timestamp]]`.

    Args:
        path: text or gzip, UTF-8.
        delimiter: one character; None: the first of tab ; | , and space in the first line.
        header: whether to skip the first line; None: skip it if it has a third column that is not
            a number, or if its first two fields are words like "user" and "item".
        hash_users: number of rows; users are hashed to them (`KeyHasher`) and their names are not
            kept: memory for names is that of the items alone, and two users may share a row.
        progress: called with the fraction of the file that is read.

    Raises:
        ArgumentError: a line has fewer than two columns or a bad weight (the line is named), the
            file is not UTF-8, or holds no interactions.
        OSError: the file cannot be read.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    # 20 bytes an interaction, however many; the file itself is never in memory.
    rows, columns, values = array("q"), array("q"), array("f")
    hasher = None if hash_users is None else KeyHasher(hash_users)
    waiting: list[str] = []
    size = max(1, os.stat(path).st_size)
    with Path(path).open("rb") as raw:
        try:
            for number, fields in _lines(raw, path, delimiter, header):
                if len(fields) < 2 or not fields[0] or not fields[1]:
                    raise ArgumentError(
                        f"{path}: line {number}: expected user and item, got {fields!r}"
                    )
                weight = _weight(fields[2], path, number) if len(fields) > 2 else 1.0
                if weight > 0:
                    if hasher is None:
                        rows.append(users.setdefault(fields[0], len(users)))
                    else:
                        waiting.append(fields[0])
                        if len(waiting) == _REPORT_EVERY:
                            rows.extend(hasher(waiting).tolist())
                            waiting.clear()
                    columns.append(items.setdefault(fields[1], len(items)))
                    values.append(weight)
                if progress is not None and number % _REPORT_EVERY == 0:
                    progress(min(1.0, raw.tell() / size))
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{path}: expected UTF-8 text, found {error}") from error
        except (gzip.BadGzipFile, EOFError, csv.Error) as error:
            raise ArgumentError(f"{path}: damaged or not a table: {error}") from error
    if hasher is not None and waiting:
        rows.extend(hasher(waiting).tolist())
    if not rows:
        raise ArgumentError(f"{path}: no interactions found")
    if progress is not None:
        progress(1.0)
    shape = (len(users) if hash_users is None else hash_users, len(items))
    # Duplicate pairs add up: one interaction of a larger weight.
    coordinates = tuple(np.frombuffer(part, part.typecode) for part in (rows, columns))
    matrix = scipy.sparse.coo_array((np.frombuffer(values, "f"), coordinates), shape=shape)
    return NamedInteractions(users, items, scipy.sparse.csr_array(matrix))


def save_names(store: Store, data: NamedInteractions, taken: scipy.sparse.csr_array) -> None:
    """Put the names and what each user took into the store's arrays; the caller commits."""
    for name, vocabulary in (("users", data.users), ("items", data.items)):
        encoded = [text.encode() for text in vocabulary]
        ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
        store.arrays[f"{name}.names"] = np.frombuffer(b"".join(encoded), np.uint8)
        store.arrays[f"{name}.ends"] = ends
    store.arrays["taken.indptr"] = taken.indptr.astype(np.int64)
    store.arrays["taken.indices"] = taken.indices.astype(np.int32)


def load_names(store: Store) -> NamedInteractions:
    """What `save_names` wrote.

    Raises:
        NotAStoreError: the model was not trained from a file.
    """
    if "taken.indptr" not in store.arrays:
        raise NotAStoreError(
            f"{store.path}: this model has no names; `sparse-embed train recommender` writes them"
        )
    users = _vocabulary(store, "users")
    items = _vocabulary(store, "items")
    indptr, indices = store.arrays["taken.indptr"], store.arrays["taken.indices"]
    arrays = (np.ones(len(indices), np.float32), indices, indptr)
    matrix = scipy.sparse.csr_array(arrays, shape=(len(indptr) - 1, len(items)))
    return NamedInteractions(users, items, matrix)


def _vocabulary(store: Store, name: str) -> dict[str, int]:
    names = store.arrays[f"{name}.names"].tobytes()
    ends = store.arrays[f"{name}.ends"].tolist()
    starts = [0, *ends][: len(ends)]
    parts = zip(starts, ends, strict=True)
    return {names[start:end].decode(): place for place, (start, end) in enumerate(parts)}


def _lines(
    raw: BinaryIO, path: str | os.PathLike[str], delimiter: str | None, header: bool | None
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line that is not empty, without the header."""
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    first = text.readline()
    if delimiter is None:
        delimiter = next((sign for sign in _DELIMITERS if sign in first), None)
        if delimiter is None:
            raise ArgumentError(f"{path}: line 1: expected user and item, got {first.strip()!r}")
    elif len(delimiter) != 1:
        raise ArgumentError(f"delimiter: expected one character, got {delimiter!r}")

    def everything() -> Iterator[str]:
        yield first
        yield from text

    reader = csv.reader(everything(), delimiter=delimiter)
    for number, fields in enumerate(reader, 1):
        if number == 1 and (_is_header(fields) if header is None else header):
            continue
        if fields:
            yield number, fields
    text.detach()  # the caller closes the file


def _is_header(fields: list[str]) -> bool:
    if len(fields) > 2 and _number(fields[2]) is None:
        return True
    words = [field.strip().lower() for field in fields[:2]]
    return (
        len(words) == 2
        and "user" in words[0]
        and any(
            word in words[1] for word in ("item", "movie", "product", "article", "book", "song")
        )
    )


def _weight(text: str, path: str | os.PathLike[str], line: int) -> float:
    number = _number(text)
    if number is None or not math.isfinite(number) or number < 0:
        raise ArgumentError(f"{path}: line {line}: expected a weight >= 0, got {text!r}")
    return number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
