"""Labels of any kind to class numbers, and back.

kind        fit's labels                                     predict gives
"single"    one str, int or bool a text                      an array of them
"lists"     a list, tuple or set of str or int a text        a list of lists
"columns"   a 0/1 array or sparse matrix (texts, classes)    the same as an array

Classes are sorted.  A model's store carries them in its arrays: "labels.names" and "labels.ends"
(UTF-8) or "labels.values" (int64).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed._typing import AnyArray, IndexArray
from sparse_embed.errors import ArgumentError, NotAStoreError

Ids = npt.NDArray[np.int32]
_DRAWS = 1  # sets draws of a class apart from those of an epoch's order


@dataclass(frozen=True)
class Targets:
    """The classes of each text: `classes[offsets[i]:offsets[i + 1]]`, ascending, each once."""

    classes: Ids
    offsets: IndexArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, order: IndexArray) -> Targets:
        """Those of some texts, in this order."""
        counts = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.offsets[:-1][order] - offsets[:-1], counts)
        return Targets(self.classes[places + np.arange(offsets[-1])], offsets)

    def drawn(self, seed: int, epoch: int) -> Targets:
        """One class of each text that has any, by chance: a function of (seed, epoch, text)."""
        counts = np.diff(self.offsets)
        random: AnyArray = np.random.PCG64([seed, epoch, _DRAWS]).random_raw(len(counts))
        # The upper 32 bits times the count: uniform to a part in 2^32 / count.
        picks = ((random >> np.uint64(32)) * counts.astype(np.uint64)) >> np.uint64(32)
        places = (self.offsets[:-1] + picks.astype(np.int64))[counts > 0]
        offsets = np.concatenate([[0], np.cumsum(counts > 0)])
        return Targets(self.classes[places], offsets)

    def matrix(self, classes: int) -> npt.NDArray[np.int8]:
        """(texts, classes) of 0 and 1."""
        out = np.zeros((len(self), classes), np.int8)
        out[np.repeat(np.arange(len(self)), np.diff(self.offsets)), self.classes] = 1
        return out


@dataclass(frozen=True)
class Labels:
    """The classes of a fitted model: `values` are sorted strings or int64 (or bool)."""

    kind: str
    values: AnyArray

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, labels: Any, *, known: bool = True, same_kind: bool = True) -> Targets:
        """Class numbers; `known=False` leaves out labels that training did not have,
        `same_kind=False` takes one for each text and lists alike.

        Raises:
            ArgumentError: labels of another kind than `fit` had, or unknown ones.
        """
        kind, rows = _rows(labels)
        if same_kind and kind != self.kind:
            raise ArgumentError(f"labels: expected labels of the kind {self.kind!r}, got {kind!r}")
        number = {value: place for place, value in enumerate(self.values.tolist())}
        if "columns" in (kind, self.kind):
            number = {place: place for place in range(len(self))}
        return _targets(rows, number, known)

    def to_arrays(self, arrays: MutableMapping[str, AnyArray]) -> None:
        """Into a store's arrays."""
        if self.values.dtype.kind == "U":
            encoded = [text.encode() for text in self.values.tolist()]
            ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
            arrays["labels.names"] = np.frombuffer(b"".join(encoded), np.uint8)
            arrays["labels.ends"] = ends
        else:
            arrays["labels.values"] = self.values

    @classmethod
    def from_arrays(cls, kind: str, arrays: MutableMapping[str, AnyArray]) -> Labels:
        """What `to_arrays` wrote.

        Raises:
            NotAStoreError: nothing of the kind is there.
        """
        if "labels.values" in arrays:
            return cls(kind, np.array(arrays["labels.values"]))
        if "labels.names" not in arrays or "labels.ends" not in arrays:
            raise NotAStoreError("the store holds no labels: it is not a finished TextClassifier")
        names, ends = arrays["labels.names"].tobytes(), arrays["labels.ends"].tolist()
        parts = zip([0, *ends[:-1]], ends, strict=True)
        return cls(kind, _string_array([names[start:end].decode() for start, end in parts]))


def learn(labels: Any) -> tuple[Labels, Targets]:
    """The classes that occur, and each text's.

    Raises:
        ArgumentError: no labels; mixed types; NaN, None or fractions; a text without a label among
            single ones; fewer than two classes.
    """
    kind, rows = _rows(labels)
    if kind == "columns":
        columns = rows[0]
        if columns < 2:
            raise ArgumentError(f"labels: expected at least two columns, got {columns}")
        found = Labels(kind, np.arange(columns))
        return found, _targets(rows, {place: place for place in range(columns)}, True)
    values = {value for row in rows for value in row}
    kinds = {_type_of(value) for value in values}
    if len(kinds) > 1:
        examples = [next(value for value in values if _type_of(value) == name) for name in kinds]
        shown = " and ".join(sorted(repr(value) for value in examples))
        raise ArgumentError(f"labels: expected one type, got {shown}")
    if len(values) < 2:
        only = f"only {next(iter(values))!r}" if values else "none"
        raise ArgumentError(f"labels: expected at least two classes to tell apart, got {only}")
    ordered = sorted(values)
    array = _string_array(ordered) if kinds == {"str"} else np.array(ordered)
    return Labels(kind, array), _targets(rows, {v: k for k, v in enumerate(ordered)}, True)


def label_counts(labels: Any) -> IndexArray:
    """How many labels each text has, those that training never saw included."""
    kind, rows = _rows(labels)
    if kind == "columns":
        return np.asarray(np.diff(rows[1].indptr), np.int64)
    return np.array([len(set(row)) for row in rows], np.int64)


def _string_array(texts: list[str]) -> AnyArray:
    array: AnyArray = np.array(texts, dtype=np.str_)
    return array


def _targets(rows: Any, number: dict[Any, int], known: bool) -> Targets:
    if isinstance(rows, tuple):
        columns, matrix = rows
        if columns != len(number):
            raise ArgumentError(f"labels: expected {len(number)} columns, got {columns}")
        return Targets(matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64))
    classes: list[int] = []
    offsets = [0]
    for place, row in enumerate(rows):
        for value in row:
            if known and value not in number:
                raise ArgumentError(f"labels[{place}] = {value!r} was not in training")
        classes += sorted({number[value] for value in row if value in number})
        offsets.append(len(classes))
    return Targets(np.array(classes, np.int32), np.array(offsets, np.int64))


def _type_of(value: Any) -> str:
    return "str" if isinstance(value, str) else "bool" if isinstance(value, bool) else "int"


def _rows(labels: Any) -> tuple[str, Any]:
    """The kind, and for "columns" (classes, CSR), else a list of lists of plain values."""
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise ArgumentError(f"labels: expected one for each text, got {type(labels).__name__}")
    if scipy.sparse.issparse(labels) or getattr(labels, "ndim", 1) == 2:
        return "columns", _columns(labels)
    listed = list(labels.tolist() if hasattr(labels, "tolist") else labels)
    several = [isinstance(row, list | tuple | set | frozenset) for row in listed]
    if listed and all(several):
        return "lists", [
            [_plain(value, f"labels[{place}]") for value in row] for place, row in enumerate(listed)
        ]
    if any(several):
        place = several.index(not several[0])
        raise ArgumentError(
            f"labels: expected a list for each text or one label for each, got {listed[0]!r} and"
            f" labels[{place}] = {listed[place]!r}"
        )
    return "single", [[_plain(value, f"labels[{place}]")] for place, value in enumerate(listed)]


def _plain(value: Any, where: str) -> str | int | bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        raise ArgumentError(f"{where}: expected a str or an int, got {value!r}") from None


def _columns(labels: Any) -> tuple[int, scipy.sparse.csr_array]:
    matrix = scipy.sparse.csr_array(labels)
    if len(matrix.data) and not np.isin(matrix.data, (0, 1)).all():
        raise ArgumentError("labels: expected zeros and ones in a matrix of labels")
    matrix.eliminate_zeros()
    matrix.sum_duplicates()
    return int(matrix.shape[1]), matrix
