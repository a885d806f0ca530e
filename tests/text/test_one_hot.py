"""The one-hot baseline is the lookup, forward and backward, bit for bit."""

from __future__ import annotations

import numpy as np

import sparse_embed as se
from sparse_embed.text.one_hot import one_hot

TEXTS = ["the cat sat on the mat", "", "a dog", "the the the end"]


def test_is_the_lookup_and_its_gradient():
    rows = 1000
    table = se.EmbeddingTable.create(
        None, num_embeddings=rows, embedding_dim=16, optimizer=se.Adagrad(lr=0.05)
    )
    indices, offsets = se.WordNgramHasher(rows, max_n=2)(TEXTS)
    matrix = one_hot(indices, offsets, rows)
    weight = table.lookup(np.arange(rows))
    # Both add a bag from left to right from zero.
    assert np.array_equal(matrix @ weight, table.lookup(indices, offsets, mode="sum"))
    grad = np.random.default_rng(0).normal(size=(len(TEXTS), 16)).astype(np.float32)
    sparse = table.backward(grad, indices, offsets, mode="sum")
    dense = np.zeros((rows, 16), np.float32)
    dense[sparse.indices] = sparse.values
    assert np.array_equal(matrix.T.tocsr() @ grad, dense)
