"""(feature name, value) pairs: the fields of one table, told apart by their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError
from sparse_embed.keys.chunks import Coded, Ids, Strings, is_missing, no_key


def holds_pairs(keys: object) -> bool:
    """Whether keys are a list (or tuple) of tuples."""
    return (
        isinstance(keys, list | tuple)
        and len(keys) > 0
        and isinstance(next((key for key in keys if not is_missing(key)), None), tuple)
    )


def split_pairs(pairs: Any) -> tuple[list[str], list[tuple[npt.NDArray[np.int64], list[Any]]]]:
    """Names, and values grouped by their kind with their positions.

    Args:
        pairs: L tuples (name, value); names are str; values str, bytes or int, of any mixture, and
            None or NaN for a missing value.

    Raises:
        ArgumentError: an element that is no such pair.
    """
    names: list[str] = []
    groups: dict[type, tuple[list[int], list[Any]]] = {}
    for position, pair in enumerate(pairs):
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise no_key("keys", position, pair, "a pair (feature name, value), as others are")
        name, value = pair
        names.append(name)
        kind: type
        if isinstance(value, str) or is_missing(value):
            kind = str
        elif isinstance(value, bytes):
            kind = bytes
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            kind = int
        else:
            raise ArgumentError(
                f"keys[{position}]: the value of feature {name!r} should be str, bytes or int,"
                f" got {type(value).__name__} {value!r}"
            )
        positions, values = groups.setdefault(kind, ([], []))
        positions.append(position)
        values.append(value)
    return names, [(np.array(at, np.int64), values) for at, values in groups.values()]


def spread(coded: Coded) -> Strings | Ids:
    """A dictionary-encoded chunk key by key: spans into the dictionary's strings."""
    distinct, codes = coded.distinct, coded.codes
    if len(distinct) == 0:
        return Ids(np.zeros(len(codes), np.uint64), False, coded.missing)
    if isinstance(distinct, Ids):
        return Ids(distinct.values[codes], distinct.signed, coded.missing)
    if distinct.spans:
        starts, lengths = distinct.starts, distinct.lengths
    else:
        starts = distinct.starts[:-1].astype(np.int64)
        lengths = np.diff(distinct.starts).astype(np.int64)
    return Strings(distinct.base, starts[codes], lengths[codes], distinct.keep, coded.missing)
