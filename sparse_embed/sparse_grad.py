"""The one gradient type: the rows that a batch touched, and their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed._validate import as_grad, as_indices, as_integer
from sparse_embed.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class SparseGrad:
    """Gradient of a table: zero but in the rows `indices`.

    Args:
        indices: (U,) integers, strictly ascending row numbers.
        values: (U, D) float32, the gradient of each of these rows.
        num_embeddings: rows of the table, E.

    Raises:
        ArgumentError: wrong shapes or dtypes, or indices not strictly ascending.
        IndexRangeError: an index outside 0 <= index < num_embeddings.
    """

    indices: IndexArray
    values: FloatArray
    num_embeddings: int

    def __post_init__(self) -> None:
        rows = as_integer("num_embeddings", self.num_embeddings)
        if not 1 <= rows < 2**63:
            raise ArgumentError(f"num_embeddings: expected 1 <= rows < 2^63, got {rows}")
        object.__setattr__(self, "num_embeddings", rows)
        # Copies: the caller's arrays may change, and may be read-only memory.
        object.__setattr__(self, "indices", np.array(as_indices(self.indices, rows)))
        values = np.asarray(self.values)
        if values.ndim != 2:
            raise ArgumentError(f"values: expected shape (U, D), got {values.shape}")
        object.__setattr__(self, "values", np.array(as_grad(values, values.shape, name="values")))
        self.check()

    @classmethod
    def owning(cls, indices: IndexArray, values: FloatArray, num_embeddings: int) -> SparseGrad:
        """For arrays that were made here and nobody else holds: no copies, no checks."""
        made = object.__new__(cls)
        object.__setattr__(made, "indices", indices)
        object.__setattr__(made, "values", values)
        object.__setattr__(made, "num_embeddings", num_embeddings)
        return made

    def check(self) -> None:
        """Again what the constructor checked, for the arrays can be changed in place.

        Raises:
            ArgumentError, IndexRangeError: as the constructor.
        """
        indices = as_indices(self.indices, self.num_embeddings)
        if indices.ndim != 1:
            raise ArgumentError(f"indices: expected shape (U,), got {indices.shape}")
        as_grad(self.values, (len(indices), self.embedding_dim), name="values")
        if len(indices) > 1 and not bool(np.all(indices[1:] > indices[:-1])):
            place = int(np.argmin(indices[1:] > indices[:-1]))
            raise ArgumentError(
                "indices: expected strictly ascending row numbers,"
                f" got {indices[place]} before {indices[place + 1]} at position {place}"
            )

    def __len__(self) -> int:
        """The number of rows with a gradient, U."""
        return len(self.indices)

    @property
    def embedding_dim(self) -> int:
        """Columns, D."""
        return int(self.values.shape[1])

    def scaled(self, factor: float) -> SparseGrad:
        """This gradient times a number (a loss scale, the share of a worker)."""
        values = self.values * np.float32(factor)
        return SparseGrad(self.indices, values, self.num_embeddings)

    def __add__(self, other: object) -> SparseGrad:
        """The sum of two gradients of one table: rows of both, this one's values first."""
        if not isinstance(other, SparseGrad):
            return NotImplemented
        if (self.num_embeddings, self.embedding_dim) != (other.num_embeddings, other.embedding_dim):
            raise ArgumentError(
                f"cannot add gradients of a ({self.num_embeddings}, {self.embedding_dim}) and a"
                f" ({other.num_embeddings}, {other.embedding_dim}) table"
            )
        indices = np.union1d(self.indices, other.indices)
        values = np.zeros((len(indices), self.embedding_dim), np.float32)
        values[np.searchsorted(indices, self.indices)] = self.values
        values[np.searchsorted(indices, other.indices)] += other.values
        return SparseGrad(indices, values, self.num_embeddings)

    def to_scipy(self) -> Any:
        """A scipy.sparse.coo_array (E, D); CSR of 10^9 rows would cost 8 GB of row pointers."""
        from scipy.sparse import coo_array

        rows, dim = self.values.shape
        row = np.repeat(self.indices, dim)
        column = np.tile(np.arange(dim, dtype=np.int64), rows)
        return coo_array((self.values.ravel(), (row, column)), (self.num_embeddings, dim))

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseGrad:
        """The gradient in a scipy.sparse matrix (E, D) of float32; entries at one place add up.

        A row with any stored entry counts as touched, also if the entry is zero.

        Raises:
            ArgumentError: not a two-dimensional scipy.sparse matrix of float32.
        """
        from scipy.sparse import issparse

        if not issparse(matrix):
            raise ArgumentError(
                f"matrix: expected a scipy.sparse matrix, got {type(matrix).__name__}"
            )
        if matrix.ndim != 2:
            raise ArgumentError(f"matrix: expected two dimensions, got shape {matrix.shape}")
        if matrix.dtype != np.float32:
            raise ArgumentError(f"matrix: expected dtype float32, got {matrix.dtype}")
        entries = matrix.tocoo()
        indices, inverse = np.unique(np.asarray(entries.row, np.int64), return_inverse=True)
        num_embeddings, dim = (int(n) for n in matrix.shape)
        values = np.zeros((len(indices), dim), np.float32)
        np.add.at(values, (inverse, entries.col), entries.data)
        return cls(indices, values, num_embeddings)
