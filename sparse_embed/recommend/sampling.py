"""Interactions made ready for training, and the (user, taken, not taken) triplets of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels._jit import guard_fork
from sparse_embed.kernels.bpr import alias_table_cpu, sample_triplets_cpu

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
    def from_csr(cls, user_items: Any) -> Interactions:
        """Drop users who took the whole catalogue: no item can stand against theirs.

        Raises:
            ArgumentError: as `as_interactions`; nothing to learn from (no interactions, or every
                user took every item); 2**32 interactions or more.
        """
        matrix = as_interactions(user_items)
        catalogue, columns = np.unique(matrix.indices, return_inverse=True)
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


class TripletSampler:
    """Each epoch visits every interaction once, in an order of its own, with one item not taken.

    An item is drawn in proportion to (number of users who took it) ** negative_power, never one
    that this user took.

    Counter-based: triplet t of an epoch depends on (seed, epoch, t) and the interactions alone,
    never on batch size, threads or what was drawn before; an interrupted epoch can be continued.
    """

    def __init__(self, interactions: Interactions, seed: int, negative_power: float) -> None:
        self._interactions = interactions
        self._seed = seed
        self._half_bits = np.uint64(max(1, (len(interactions).bit_length() + 1) // 2))
        number = len(interactions.catalogue)
        popularity = np.bincount(interactions.columns, minlength=number)
        # An item whose takers were all dropped counts as taken once.
        weights = np.maximum(popularity, 1).astype(np.float64) ** negative_power
        self._threshold = np.empty(number, np.uint64)
        self._alias = np.empty(number, np.int32)
        alias_table_cpu()(weights, self._threshold, self._alias)
        self._kernel: Callable[..., None] = sample_triplets_cpu()

    def sample(
        self, epoch: int, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Triplets start..stop-1 of the epoch.

        Returns:
            users (B,) int64, and items (2B,) int64: B taken, then B not taken.
        """
        guard_fork()
        sequence = np.random.SeedSequence([self._seed, epoch])
        (key,) = sequence.generate_state(1, np.uint64)
        users = np.empty(stop - start, np.int64)
        items = np.empty(2 * (stop - start), np.int64)
        data = self._interactions
        self._kernel(
            key,
            np.uint64(start),
            self._half_bits,
            data.rows,
            data.columns,
            data.indptr,
            data.catalogue,
            self._threshold,
            self._alias,
            users,
            items,
        )
        return users, items
