"""Interactions made ready for training, and what a batch of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed._typing import IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.kernels._jit import counter_of_items, guard_fork, new_counter
from sparse_embed.kernels.contrast import mark_taken_cpu
from sparse_embed.kernels.draws import alias_table_cpu
from sparse_embed.kernels.interactions import (
    CHUNK,
    FILTER_BYTES,
    each_user_cpu,
    filter_cpu,
    sample_even_cpu,
    sample_opponents_cpu,
    sample_pairs_cpu,
    sample_shared_cpu,
)

TILE = 32  # users who share negatives
SHARED = 4  # triplets of theirs to a negative: 16 lose up to a tenth of recall@20, 2 gain little
SPARE = 3  # negatives more, for users who took some
_MAX_INTERACTIONS = 2**32  # the kernel's draw multiplies 64 random bits by a 32-bit bound


def as_interactions(user_items: Any, name: str = "user_items") -> scipy.sparse.csr_array:
    """A canonical copy, or the same arrays where they are canonical: sorted, merged, no zeros.

    Args:
        user_items: (users, items) SciPy sparse matrix or array; a value above zero is an
            interaction, however large.
        name: the argument's name in error messages.

    Raises:
        ArgumentError: not SciPy sparse and two-dimensional; negative, infinite or NaN values.
    """
    if not scipy.sparse.issparse(user_items):
        raise ArgumentError(
            f"{name}: expected a scipy.sparse CSR matrix (users, items), got"
            f" {type(user_items).__name__}; scipy.sparse.csr_array(x) makes one"
        )
    if user_items.ndim != 2:
        raise ArgumentError(f"{name}: expected two dimensions, got shape {user_items.shape}")
    if user_items.dtype.kind not in "biuf":
        raise ArgumentError(f"{name}: expected real numbers, got dtype {user_items.dtype}")
    matrix = scipy.sparse.csr_array(user_items)
    if matrix.dtype.kind != "b" and matrix.nnz:
        if not np.isfinite(matrix.data).all():
            raise ArgumentError(f"{name}: expected finite values, got NaN or infinity")
        if matrix.data.min() < 0:
            raise ArgumentError(
                f"{name}: expected values >= 0 (0: no interaction), got {matrix.data.min()}"
            )
    zeros = matrix.nnz > 0 and not matrix.data.all()
    if zeros or not matrix.has_canonical_format:
        matrix = matrix.copy()  # csr_array above shares the caller's arrays
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    return matrix


@dataclass(frozen=True)
class Interactions:
    """What the sampler reads.  The catalogue is every item that somebody took.

    rows (n,) int32 users; columns (n,) int32 positions in `catalogue`, sorted within a user;
    indptr (U+1,) int64 the users' ranges; catalogue (C,) int64 item numbers, ascending.
    """

    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]
    catalogue: npt.NDArray[np.int64]

    @classmethod
    def from_csr(cls, user_items: Any, known: IndexArray | None = None) -> Interactions:
        """Drop users who took the whole catalogue: no item can stand against theirs.

        Args:
            user_items: see `as_interactions`.
            known: items that belong to the catalogue even if nobody took them here, ascending.

        Raises:
            ArgumentError: as `as_interactions`; nothing to learn from (no interactions, or every
                user took every item); 2**32 interactions or more.
        """
        matrix = as_interactions(user_items)
        catalogue, columns = _catalogue(matrix.indices, matrix.shape[1], known)
        counts = np.diff(matrix.indptr).astype(np.int64)
        keep = counts < len(catalogue)
        if not keep.all():
            columns = columns[np.repeat(keep, counts)]
            counts = np.where(keep, counts, 0)
        if len(columns) == 0:
            reason = "no interactions" if matrix.nnz == 0 else "every user took every item"
            raise ArgumentError(
                f"user_items: expected something to learn from, got shape {matrix.shape} with"
                f" {matrix.nnz} values above zero: {reason}"
            )
        if len(columns) >= _MAX_INTERACTIONS:
            raise ArgumentError(f"user_items: expected < 2**32 interactions, got {len(columns)}")
        indptr = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return cls(rows, columns.astype(np.int32), indptr, catalogue.astype(np.int64))

    def __len__(self) -> int:
        return len(self.columns)


def _catalogue(
    indices: npt.NDArray[Any], width: int, known: IndexArray | None
) -> tuple[IndexArray, npt.NDArray[Any]]:
    """The items that occur or are known, ascending, and the place of each of `indices` in it."""
    if width > 4 * len(indices) + (1 << 20):  # far more virtual items than interactions
        catalogue = np.unique(indices)
        if known is not None:
            catalogue = np.union1d(catalogue, known)
        return catalogue, np.searchsorted(catalogue, indices)
    present = np.zeros(width, bool)
    present[indices] = True
    if known is not None:
        present[known] = True
    places = np.cumsum(present, dtype=np.int64) - 1
    return np.flatnonzero(present), places[indices]


@dataclass(frozen=True)
class Triplets:
    """A batch of triplets: a user, an item they took, an item they did not take.

    users: (U,) int64, ascending.  starts: (U+1,): triplets [starts[u], starts[u+1]) are user u's.
    columns: (B+M,) int64, positions in the catalogue: of the items taken, and behind them of the
        negatives, which about SHARED triplets share each.
    opponents: (B,) int32, which of the negatives stands against each item; -1: none, the triplet is
        void.
    tiles: (T+1,) int64: TILE users, from t TILE on, share negatives [tiles[t], tiles[t+1]).
    """

    users: IndexArray
    starts: IndexArray
    columns: IndexArray
    opponents: npt.NDArray[np.int32]
    tiles: IndexArray

    @property
    def taken(self) -> IndexArray:
        """(B,) the items taken, as positions in the catalogue."""
        return self.columns[: len(self.opponents)]

    @property
    def negatives(self) -> IndexArray:
        """(M,) positions in the catalogue."""
        return self.columns[len(self.opponents) :]


class Sampler:
    """Each epoch visits every interaction once, in an order of its own, with items not taken.

    An item is drawn in proportion to (number of users who took it) ** negative_power.

    Counter-based: interaction t of an epoch, and what is drawn for it, depend on (seed, epoch, t)
    and the data (of triplets: and on how many batches there are) alone, never on threads or on
    what was drawn before; an interrupted epoch can be continued.
    """

    def __init__(
        self, interactions: Interactions, seed: int, negative_power: float, block: int = 1
    ) -> None:
        """block: interactions that share their negatives (`shared`)."""
        self.interactions = interactions
        self._seed = seed
        self.block = block
        number = len(interactions)
        self.half_bits = np.uint64(max(1, (number.bit_length() + 1) // 2))
        popularity = np.bincount(interactions.columns, minlength=len(interactions.catalogue))
        # An item whose takers were all dropped counts as taken once.
        weights = np.maximum(popularity, 1).astype(np.float64) ** negative_power
        self.chances = weights / weights.sum()
        threshold, alias = np.empty(len(weights), np.uint64), np.empty(len(weights), np.int32)
        alias_table_cpu()(weights, threshold, alias)
        # Both in one word: one place in memory a draw.  A threshold of 2^32 keeps its column, and
        # so does one below it, nearly always; where it does not, the other is the column itself.
        always = threshold > 0xFFFFFFFF
        alias[always] = np.flatnonzero(always)
        self.alias = np.minimum(threshold, 0xFFFFFFFF) << 32 | alias.astype(np.uint64)
        self.bits = np.zeros(FILTER_BYTES * number + 1, np.uint8)
        filter_cpu()(interactions.indptr, interactions.columns, self.bits)

    def triplets(self, epoch: int, start: int, step: int, together: bool = True) -> Triplets:
        """The batch at `start` of an epoch that is cut into even ones of at most `step`: every
        interaction once an epoch, those of a user together, each against an item not taken.

        Batches differ in length by one at the most.  together=False lists a user anew for each of
        their triplets.
        """
        guard_fork()
        data, key = self.interactions, self.key(epoch)
        batch, batches = start // step, -(-len(data) // step)
        groups = -(-len(data) // batches)
        all_users = np.empty(groups, np.int64)
        # Room for the negatives too: in each tile a share of its interactions, and the spare ones.
        columns = np.empty(groups + groups // SHARED + SPARE * (groups // TILE + 1), np.int64)
        firsts = np.empty(-(-groups // CHUNK) + 1, np.int64)
        sample_even_cpu()(
            key, batch, batches, data.rows, data.columns, counter_of_items(groups),
            firsts, all_users, columns[:groups],
        )  # fmt: skip
        number = groups - int(all_users[-1] < 0)
        users = all_users[:number]
        starts = np.empty((int(firsts[-1]) if together else number) + 1, np.int64)
        if together:
            users = np.empty(len(starts) - 1, np.int64)
            each_user_cpu()(all_users[:number], firsts, counter_of_items(number), users, starts)
            starts[-1] = number
        else:
            starts[:] = np.arange(number + 1)
        # A tile's interactions, and how many negatives they share.
        edges = np.append(starts[:-1:TILE], number)
        tiles = np.zeros(len(edges), np.int64)
        np.cumsum(SPARE + np.diff(edges) // SHARED, out=tiles[1:])
        columns = columns[: number + int(tiles[-1])]
        opponents = np.empty(number, np.int32)
        sample_opponents_cpu()(
            key, np.uint64(batch * groups), starts, users, tiles, TILE, data.indptr, data.columns,
            self.alias, self.bits, new_counter(len(tiles) - 1), columns[number:], opponents,
        )  # fmt: skip
        return Triplets(users, starts, columns, opponents, tiles)

    def pairs(self, epoch: int, start: int, stop: int) -> tuple[IndexArray, IndexArray, IndexArray]:
        """Interactions start..stop-1 of the epoch.

        Returns:
            users, items and columns (the item's position in the catalogue), (B,) int64 each.
        """
        guard_fork()
        users, columns = (np.empty(stop - start, np.int64) for _ in range(2))
        data = self.interactions
        sample_pairs_cpu()(
            self.key(epoch), np.uint64(start), self.half_bits, data.rows, data.columns,
            counter_of_items(len(users)), users, columns,
        )  # fmt: skip
        return users, data.catalogue[columns], columns

    def shared(self, epoch: int, start: int, stop: int, number: int) -> IndexArray:
        """Negatives for the blocks that hold interactions start..stop-1 (whole blocks).

        Returns:
            (blocks, number) int64 positions in the catalogue; a user may have taken some of them.
        """
        guard_fork()
        blocks = -(-(stop - start) // self.block)
        columns = np.empty((blocks, number), np.int64)
        begin = np.uint64(start // self.block * number)
        drawn = columns.reshape(-1)
        counter = counter_of_items(len(drawn))
        sample_shared_cpu()(self.key(epoch), begin, self.alias, counter, drawn)
        return columns

    def marks(self, users: IndexArray, columns: IndexArray) -> npt.NDArray[np.uint8]:
        """(B, M): did the user take the negative of its block?"""
        guard_fork()
        marks = np.zeros((len(users), columns.shape[1]), np.uint8)
        data = self.interactions
        mark_taken_cpu()(
            self.block, users, columns, data.indptr, data.columns, self.bits, new_counter(), marks
        )
        return marks

    def key(self, epoch: int) -> np.uint64:
        """What sets an epoch's draws apart from all others."""
        sequence = np.random.SeedSequence([self._seed, epoch])
        return np.uint64(sequence.generate_state(1, np.uint64)[0])
