"""The census of a hashed table: which keys share rows, how much traffic that is, what would help.

    census = KeyHasher(2_000_000).collisions(keys)
    census.collisions, census.expected_collisions         # distinct keys without a row of their own
    census.clashing_traffic                                # share of all keys that are such keys
    census.worst                                           # the busiest pairs, by name
    census.rows_needed                                     # rows for 90 %, 99 % .. clean traffic
    census.grid                                            # num_hashes against rows
    census.plot("census.png")                              # optional: pip install matplotlib

A key is **clean** when at least one of its rows is used by no other key; a **collision** is a
distinct key that is not.  With one row a key, that is a row shared with another key.

Expected numbers are those of an ideal hash, for U distinct keys, E rows and k rows a key:
    p = 1 - (1 - 1/E)^(k (U - 1))                  one given row is used by another key
    expected collisions = U p^k                    and the same share p^k of the traffic
    expected used rows = E (1 - (1 - 1/E)^(k U))
    rows needed for a clean share x: the E with 1 - p^k = x
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError, MissingExtraError

Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

TARGETS = (0.5, 0.9, 0.95, 0.99, 0.999)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
HASHES = (1, 2, 3, 4)
_COUNTABLE = 1 << 25  # tables up to this are counted by an array, larger ones by sorting


@dataclasses.dataclass(frozen=True, slots=True)
class Clash:
    """Two keys, neither with a row of its own, that meet in `row`: the two busiest there."""

    row: int
    keys: tuple[Any, Any]
    counts: tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class RowsNeeded:
    """Rows at which the expected clean share of traffic is `clean_traffic`."""

    clean_traffic: float
    num_hashes: int
    num_embeddings: int


@dataclasses.dataclass(frozen=True, slots=True)
class GridCell:
    """One table size: the clean share of traffic expected, and counted where that was possible."""

    num_hashes: int
    num_embeddings: int
    expected_clean_traffic: float
    clean_traffic: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Census:
    """What `KeyHasher.collisions` found; all plain numbers, `as_dict` for JSON.

    Attributes:
        keys: how many keys were counted (the traffic); missing: how many more were missing.
        distinct: different keys among them.
        used_rows, expected_used_rows: rows that some key has.
        collisions, expected_collisions: distinct keys without a row of their own.
        clashing_traffic, expected_clashing_traffic: their share of `keys`.
        identical: distinct keys that have all their rows in common with another key.
        worst: the pairs whose lesser key is busiest.
    """

    num_embeddings: int
    num_hashes: int
    keys: int
    missing: int
    distinct: int
    used_rows: int
    expected_used_rows: float
    collisions: int
    expected_collisions: float
    clashing_traffic: float
    expected_clashing_traffic: float
    identical: int
    worst: tuple[Clash, ...]
    rows_needed: tuple[RowsNeeded, ...]
    grid: tuple[GridCell, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data; bytes among the keys are decoded with replacement characters."""
        return _plain(dataclasses.asdict(self))  # type: ignore[no-any-return]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw clean traffic against rows for each num_hashes into an image file.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from sparse_embed.keys.census_plot import plot

        plot(self, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


# ---- expectations -------------------------------------------------------------------------------


def expected_clash(distinct: int, num_embeddings: int, num_hashes: int = 1) -> float:
    """Probability p^k that a key has no row of its own."""
    if distinct < 2:
        return 0.0
    if num_embeddings == 1:
        return 1.0
    others = num_hashes * (distinct - 1)
    return float(-math.expm1(others * math.log1p(-1 / num_embeddings))) ** num_hashes


def expected_used_rows(distinct: int, num_embeddings: int, num_hashes: int = 1) -> float:
    """Rows that some key has."""
    if num_embeddings == 1:
        return float(distinct > 0)
    unused = num_hashes * distinct * math.log1p(-1 / num_embeddings)
    return -num_embeddings * math.expm1(unused)


def rows_needed(distinct: int, clean_traffic: float, num_hashes: int = 1) -> int:
    """Smallest number of rows whose expected clean share of traffic reaches `clean_traffic`.

    Raises:
        ArgumentError: clean_traffic is not strictly between 0 and 1.
    """
    if not 0 < clean_traffic < 1:
        raise ArgumentError(f"clean_traffic: expected between 0 and 1, got {clean_traffic!r}")
    if distinct < 2:
        return 1
    # 1 - p^k = x  =>  (1 - 1/E)^(k (U - 1)) = 1 - (1 - x)^(1/k)
    alone = 1 - (1 - clean_traffic) ** (1 / num_hashes)
    log_kept = math.log(alone) / (num_hashes * (distinct - 1))
    return max(2, math.ceil(-1 / math.expm1(log_kept)))


# ---- counting -----------------------------------------------------------------------------------


def census_of(
    names: npt.NDArray[Any],
    rows: Rows,
    num_embeddings: int,
    *,
    example: Callable[[int], Any] = lambda position: position,
    missing: int = 0,
    rows_at: Callable[[npt.NDArray[np.int64], int, int], Rows | None] | None = None,
    top: int = 10,
) -> Census:
    """The census of keys already hashed.

    Args:
        names: (L,) or (L, w) integers that tell the keys apart (hashes of 64 bits and more).
        rows: (L, k) int64, their rows.
        num_embeddings: rows of the table.
        example: position among the L keys to what the report should show for that key.
        missing: how many keys were left out as missing.
        rows_at: (positions, num_embeddings, num_hashes) to the rows that these keys would have in a
            table of another size, or None; fills `grid` with counts.
        top: how many worst pairs to name.

    Raises:
        ArgumentError: lengths that differ, or a row outside the table.
    """
    names = names.reshape(len(names), math.prod(names.shape[1:]))
    rows = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    if len(names) != len(rows):
        raise ArgumentError(
            f"names, rows: expected one row per name, got {len(names)}, {len(rows)}"
        )
    if rows.size and (rows.min() < 0 or rows.max() >= num_embeddings):
        raise ArgumentError(f"rows: expected 0 to num_embeddings - 1 = {num_embeddings - 1}")
    first, counts = _distinct(names)
    distinct, num_hashes, traffic = len(first), rows.shape[1], len(rows)
    own_rows = rows[first]
    clean, used = _clean(own_rows)
    clash = expected_clash(distinct, num_embeddings, num_hashes)
    tuples = _distinct(np.sort(own_rows, axis=1))[1]
    grid = []
    for k in HASHES:
        for scale in SCALES:
            size = max(1, round(num_embeddings * scale))
            other = rows_at(first, size, k) if rows_at is not None and distinct else None
            counted = None
            if other is not None:
                counted = float(counts[_clean(other)[0]].sum() / traffic)
            grid.append(GridCell(k, size, 1 - expected_clash(distinct, size, k), counted))
    return Census(
        num_embeddings=num_embeddings,
        num_hashes=num_hashes,
        keys=traffic,
        missing=missing,
        distinct=distinct,
        used_rows=used,
        expected_used_rows=expected_used_rows(distinct, num_embeddings, num_hashes),
        collisions=int(distinct - clean.sum()),
        expected_collisions=distinct * clash,
        clashing_traffic=float(counts[~clean].sum() / traffic) if traffic else 0.0,
        expected_clashing_traffic=clash,
        identical=int(tuples[tuples > 1].sum()),
        worst=_worst(own_rows, clean, counts, first, example, top),
        rows_needed=tuple(
            RowsNeeded(target, k, rows_needed(distinct, target, k))
            for k in HASHES
            for target in TARGETS
        ),
        grid=tuple(grid),
    )


def _distinct(names: npt.NDArray[Any]) -> tuple[Rows, Rows]:
    """First position and number of occurrences of each different row of `names`."""
    n = len(names)
    if n == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.argsort(names[:, 0])
    for column in range(1, names.shape[1]):
        # of hashes, equal first words with different second ones are next to never there
        same = names[order[1:], 0] == names[order[:-1], 0]
        if (names[order[1:], column] != names[order[:-1], column])[same].any():
            order = np.lexsort(names.T[::-1])
            break
    new = np.ones(n, np.bool_)
    new[1:] = (names[order[1:]] != names[order[:-1]]).any(axis=1)
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, n))
    return np.minimum.reduceat(order, starts), counts


def _clean(rows: Rows) -> tuple[npt.NDArray[np.bool_], int]:
    """For (U, k) rows of distinct keys: who has a row of its own, and how many rows are used."""
    if rows.size == 0:
        return np.zeros(len(rows), np.bool_), 0
    if rows.shape[1] == 1 and rows.max() < _COUNTABLE:
        users = np.bincount(rows[:, 0])
        return users[rows[:, 0]] == 1, int(np.count_nonzero(users))
    ordered = np.sort(rows, axis=1)
    again = np.zeros(rows.shape, np.bool_)  # the same row twice in one key counts once
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    if rows.max() < _COUNTABLE:
        users = np.bincount(ordered[~again])
        return (users[ordered] == 1).any(axis=1), int(np.count_nonzero(users))
    used, inverse = np.unique(ordered, return_inverse=True)
    inverse = inverse.reshape(rows.shape)
    users = np.bincount(inverse[~again], minlength=len(used))
    return (users[inverse] == 1).any(axis=1), len(used)


def _worst(
    rows: Rows,
    clean: npt.NDArray[np.bool_],
    counts: Rows,
    first: Rows,
    example: Callable[[int], Any],
    top: int,
) -> tuple[Clash, ...]:
    """The pairs of unclean keys whose lesser key is busiest."""
    who = np.flatnonzero(~clean)
    if len(who) == 0 or top <= 0:
        return ()
    key = np.repeat(who, rows.shape[1])
    row = rows[who].ravel()
    order = np.lexsort((first[key], -counts[key], row))
    key, row = key[order], row[order]
    if rows.shape[1] > 1:  # the same row twice in one key
        keep = np.ones(len(key), np.bool_)
        keep[1:] = (key[1:] != key[:-1]) | (row[1:] != row[:-1])
        key, row = key[keep], row[keep]
    start = np.ones(len(row), np.bool_)
    start[1:] = row[1:] != row[:-1]
    leaders = np.flatnonzero(start[:-1] & ~start[1:])
    lesser, greater = counts[key[leaders + 1]], counts[key[leaders]]
    found: dict[tuple[int, int], Clash] = {}
    for at in np.lexsort((row[leaders], -greater, -lesser)):
        leader = leaders[at]
        pair = int(key[leader]), int(key[leader + 1])
        if pair not in found:
            names = tuple(example(int(first[which])) for which in pair)
            found[pair] = Clash(
                int(row[leader]), (names[0], names[1]), (int(greater[at]), int(lesser[at]))
            )
            if len(found) == top:
                break
    return tuple(found.values())


def require_matplotlib() -> Any:
    """The drawing module, or the error that names how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a plot needs matplotlib: pip install matplotlib") from error
    return Figure
