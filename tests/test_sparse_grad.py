"""SparseGrad: its checks, sums and scipy.sparse round trip."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from sparse_embed.errors import ArgumentError, IndexRangeError
from sparse_embed.sparse_grad import SparseGrad

VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_fields():
    grad = SparseGrad([1, 5, 9], VALUES, 10)
    assert len(grad) == 3
    assert grad.embedding_dim == 2
    assert grad.indices.dtype == np.int64


@pytest.mark.parametrize(
    ("indices", "values", "error"),
    [
        ([1, 1, 5], VALUES, ArgumentError), ([5, 1, 9], VALUES, ArgumentError),
        ([1, 5], VALUES, ArgumentError), ([[1, 5, 9]], VALUES, ArgumentError),
        ([1.0, 5.0, 9.0], VALUES, ArgumentError), ([1, 5, 9], VALUES[0], ArgumentError),
        ([1, 5, 9], VALUES.astype(np.float64), ArgumentError),
        ([1, 5, 10], VALUES, IndexRangeError), ([-1, 5, 9], VALUES, IndexRangeError),
    ],
)  # fmt: skip
def test_refusals(indices, values, error):
    with pytest.raises(error):
        SparseGrad(indices, values, 10)


def test_empty():
    grad = SparseGrad([], np.empty((0, 2), np.float32), 10)
    assert len(grad) == 0
    assert grad.to_scipy().nnz == 0
    assert len(SparseGrad.from_scipy(grad.to_scipy())) == 0


def test_scipy_round_trip_of_a_huge_table():
    grad = SparseGrad([1, 5, 10**12 - 1], VALUES, 10**12)
    matrix = grad.to_scipy()
    assert matrix.format == "coo"
    assert matrix.shape == (10**12, 2)
    again = SparseGrad.from_scipy(matrix)
    np.testing.assert_array_equal(again.indices, grad.indices)
    np.testing.assert_array_equal(again.values, grad.values)
    assert again.num_embeddings == 10**12


@pytest.mark.parametrize("kind", ["coo", "csr", "csc"])
def test_from_scipy_coalesces(kind):
    matrix = sparse.coo_array(
        (np.ones(4, np.float32), ([3, 3, 0, 3], [1, 1, 0, 0])), shape=(5, 2)
    ).asformat(kind)
    grad = SparseGrad.from_scipy(matrix)
    assert grad.indices.tolist() == [0, 3]
    assert grad.values.tolist() == [[1, 0], [1, 2]]


@pytest.mark.parametrize(
    "matrix", [np.ones((2, 2), np.float32), sparse.eye_array(3), sparse.eye_array(3, dtype=bool)]
)
def test_from_scipy_refuses(matrix):
    with pytest.raises(ArgumentError, match="matrix"):
        SparseGrad.from_scipy(matrix)


def test_scaled_and_added():
    a = SparseGrad([1, 5, 9], VALUES, 10)
    b = SparseGrad([0, 5], np.ones((2, 2), np.float32), 10)
    total = a + b
    assert total.indices.tolist() == [0, 1, 5, 9]
    assert total.values.tolist() == [[1, 1], [0, 1], [3, 4], [4, 5]]
    np.testing.assert_array_equal(a.scaled(0.5).values, VALUES / 2)
    with pytest.raises(ArgumentError, match="add"):
        a + SparseGrad([1], np.ones((1, 3), np.float32), 10)
    with pytest.raises(TypeError):
        a + 1
