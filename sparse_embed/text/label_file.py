"""fastText's training files: one text a line, its labels among its words.

    __label__sauce __label__cheese how much does potato starch affect a cheese sauce recipe ?

A word that begins with the prefix is a label, wherever it stands in the line.  gzip is recognised
by its first bytes.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from sparse_embed.errors import ArgumentError

PREFIX = "__label__"


def read_labelled(
    path: str | os.PathLike[str], *, prefix: str = PREFIX
) -> tuple[list[str], list[list[str]]]:
    """Texts and the labels of each, without the prefix; empty lines are left out.

    Args:
        path: UTF-8 text, perhaps gzip.
        prefix: what labels begin with.

    Raises:
        ArgumentError: not UTF-8, damaged gzip, no line, or no label anywhere.
        OSError: the file cannot be read.
    """
    texts: list[str] = []
    labels: list[list[str]] = []
    for line in lines_of(path):
        if line:
            text, own = parted(line, prefix)
            texts.append(text)
            labels.append(own)
    if not any(labels):
        raise ArgumentError(
            f"{os.fspath(path)}: no word begins with {prefix!r}, so no text has a label"
        )
    return texts, labels


def parted(line: str, prefix: str = PREFIX) -> tuple[str, list[str]]:
    """The words of a line that are no labels, and the labels."""
    words = line.split()
    own = [word.removeprefix(prefix) for word in words if word.startswith(prefix)]
    return " ".join(word for word in words if not word.startswith(prefix)), own


def lines_of(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a file, stripped.

    Raises:
        ArgumentError: not UTF-8, or damaged gzip; the line is named.
        OSError: the file cannot be read.
    """
    name = os.fspath(path)
    with Path(path).open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
        try:
            yield from decoded(stream, name)
        except (gzip.BadGzipFile, EOFError) as error:
            raise ArgumentError(f"{name}: damaged gzip: {error}") from error


def decoded(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines of bytes as text, stripped."""
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{name}: line {number}: expected UTF-8, found {error}") from None


def single(labels: list[list[str]]) -> list[str] | None:
    """One label a text, if it is so throughout."""
    return [own[0] for own in labels] if all(len(own) == 1 for own in labels) else None
