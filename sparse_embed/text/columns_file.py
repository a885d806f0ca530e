"""Texts and labels in columns: CSV or TSV, with a header or without; gzip by its first bytes.

review,sentiment                            columns by name: the first line holds the names
"Great, but ""long"".<br />See it.",pos     quotes as spreadsheets and pandas write them;
                                            a quoted text may have line ends
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from sparse_embed.errors import ArgumentError

_LONGEST = (1 << 31) - 1  # characters of a field


def read_columns(
    path: str | os.PathLike[str], columns: tuple[str, ...], *, delimiter: str | None = None
) -> Iterator[tuple[str, ...]]:
    """Some columns of a file, row by row; empty lines are left out.

    Args:
        path: UTF-8 text, perhaps gzip.
        columns: names that the first line has, or positions from 1 ("1", "3"), which say that there
            are no names.
        delimiter: one character; None: a tab in files named .tsv or .tsv.gz, else a comma.

    Raises:
        ArgumentError: a column that is not there, a row that has fewer, not UTF-8, damaged gzip;
            the line is named.
        OSError: the file cannot be read.
    """
    name = os.fspath(path)
    if delimiter is None:
        delimiter = "\t" if name.removesuffix(".gz").endswith(".tsv") else ","
    if len(delimiter) != 1:
        raise ArgumentError(f"delimiter: expected one character, got {delimiter!r}")
    with Path(path).open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = csv.reader(lines, delimiter=delimiter)
        limit = csv.field_size_limit(_LONGEST)  # a long review is no error
        try:
            first = next(rows, [])
            places = _places(name, columns, first)
            row = first if not set(columns) <= set(first) else next(rows, None)
            while row is not None:
                if row:
                    if len(row) <= max(places):
                        raise ArgumentError(
                            f"{name}: line {rows.line_num}: expected {max(places) + 1} columns or"
                            f" more, found {len(row)}"
                        )
                    yield tuple(row[place] for place in places)
                row = next(rows, None)
        except (gzip.BadGzipFile, EOFError) as error:
            raise ArgumentError(f"{name}: damaged gzip: {error}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            wanted = "UTF-8, found " if isinstance(error, UnicodeDecodeError) else "CSV: "
            raise ArgumentError(
                f"{name}: after line {rows.line_num}: expected {wanted}{error}"
            ) from None
        finally:
            csv.field_size_limit(limit)


def _places(name: str, columns: tuple[str, ...], first: list[str]) -> list[int]:
    if set(columns) <= set(first):
        return [first.index(column) for column in columns]
    if all(column.isdecimal() and 1 <= int(column) <= max(len(first), 1) for column in columns):
        return [int(column) - 1 for column in columns]
    missing = next(column for column in columns if column not in first)
    raise ArgumentError(
        f"{name}: no column {missing!r} in its first line, which has {', '.join(first)!r:.200};"
        " a file without names has columns 1, 2, ..."
    )
