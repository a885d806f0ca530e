"""Weights as files of other programs, written block by block."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.storage.files import explained

_BLOCK = 1 << 14
Weights = Callable[[IndexArray], FloatArray]


def write(
    path: Path, rows: IndexArray | range, dim: int, weights_of: Weights, names: object
) -> int:
    """Write the rows in the format that the file's suffix names; returns their number.

    Raises:
        ArgumentError: unknown suffix, or names that do not fit.
    """
    writers: dict[str, Callable[[], None]] = {
        ".npy": lambda: _npy(path, rows, dim, weights_of),
        ".safetensors": lambda: _safetensors(path, rows, dim, weights_of),
        ".txt": lambda: _word2vec(path, rows, dim, weights_of, _names(names, rows), binary=False),
        ".vec": lambda: _word2vec(path, rows, dim, weights_of, _names(names, rows), binary=False),
        ".bin": lambda: _word2vec(path, rows, dim, weights_of, _names(names, rows), binary=True),
    }
    if path.suffix not in writers:
        raise ArgumentError(f"path: expected a suffix of {', '.join(writers)}, got {path.name!r}")
    if names is not None and path.suffix in (".npy", ".safetensors"):
        raise ArgumentError(f"names: {path.suffix} files hold row numbers, not names")
    if (path.parent / "store.json").exists():
        raise ArgumentError(f"path: {str(path.parent)!r} is a store; export to a place outside it")
    with explained(f"cannot write {str(path)!r}"):
        writers[path.suffix]()
    return len(rows)


def _blocks(rows: IndexArray | range, weights_of: Weights) -> Iterator[tuple[int, FloatArray]]:
    for begin in range(0, len(rows), _BLOCK):
        part = np.asarray(rows[begin : begin + _BLOCK], np.int64)
        yield begin, weights_of(part)


def _npy(path: Path, rows: IndexArray | range, dim: int, weights_of: Weights) -> None:
    shape = (len(rows), dim)
    if len(rows) == 0:
        np.save(path, np.empty(shape, np.float32))
    else:
        out = np.lib.format.open_memmap(path, "w+", np.dtype("<f4"), shape)
        for begin, weights in _blocks(rows, weights_of):
            out[begin : begin + len(weights)] = weights
        out.flush()
    np.save(path.with_suffix(".indices.npy"), np.asarray(rows, np.int64))


def _safetensors(path: Path, rows: IndexArray | range, dim: int, weights_of: Weights) -> None:
    """Streamed; the format is a length, a JSON header and the raw tensors (safetensors' README)."""
    split, end = 4 * dim * len(rows), 4 * dim * len(rows) + 8 * len(rows)
    header = {
        "weight": {"dtype": "F32", "shape": [len(rows), dim], "data_offsets": [0, split]},
        "indices": {"dtype": "I64", "shape": [len(rows)], "data_offsets": [split, end]},
    }
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _, weights in _blocks(rows, weights_of):
            out.write(weights.astype("<f4").tobytes())
        for begin in range(0, len(rows), _BLOCK):
            out.write(np.asarray(rows[begin : begin + _BLOCK], "<i8").tobytes())


def _names(names: object, rows: IndexArray | range) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ArgumentError(f"names: expected a list of strings, got {type(names).__name__}")
    found = list(names)
    if not all(isinstance(name, str) for name in found):
        raise ArgumentError("names: expected strings only")
    if len(found) != len(rows):
        raise ArgumentError(f"names: expected {len(rows)}, one a row, got {len(found)}")
    for name in found:
        if not name or any(c.isspace() for c in name):
            raise ArgumentError(
                f"names: word2vec files allow no spaces and no empty names: {name!r}"
            )
    return found


def _word2vec(
    path: Path,
    rows: IndexArray | range,
    dim: int,
    weights_of: Weights,
    names: list[str] | None,
    binary: bool,
) -> None:
    """word2vec's own formats: a line "n D", then each row's name and numbers."""
    with path.open("wb") as out:
        out.write(f"{len(rows)} {dim}\n".encode())
        for begin, weights in _blocks(rows, weights_of):
            for i, row in enumerate(weights):
                name = str(rows[begin + i]) if names is None else names[begin + i]
                if binary:
                    out.write(name.encode() + b" " + row.astype("<f4").tobytes() + b"\n")
                else:
                    numbers = " ".join(repr(float(str(x))) for x in row)
                    out.write(f"{name} {numbers}\n".encode())
