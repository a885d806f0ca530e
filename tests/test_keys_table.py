"""Keys and a table together: k rows a key are summed, looked up and trained as one bag."""

from __future__ import annotations

import numpy as np

import sparse_embed as se
from sparse_embed.keys import KeyHasher
from sparse_embed.keys.ngrams import NgramHasher


def make_table(rows: int, dim: int = 8) -> se.EmbeddingTable:
    return se.EmbeddingTable.create(
        None, num_embeddings=rows, embedding_dim=dim, init=se.Uniform(0.5), optimizer=se.SGD(lr=0.1)
    )


def test_rows_of_a_key_are_summed_and_trained() -> None:
    table = make_table(500)
    hasher = KeyHasher(500, 3, seed=1)
    keys = ["a", "b", "a", "münchen"]
    indices = hasher(keys)
    weight = table.lookup(np.arange(500))
    np.testing.assert_allclose(
        table.lookup(indices, mode="sum"), weight[indices].sum(axis=1), rtol=1e-5, atol=1e-6
    )
    grad = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    want = weight.copy()
    np.subtract.at(want, indices.ravel(), 0.1 * np.repeat(grad, 3, axis=0))
    table.update(grad, indices, mode="sum")
    np.testing.assert_allclose(table.lookup(np.arange(500)), want, rtol=1e-5, atol=1e-6)


def test_missing_keys_are_skipped_as_padding() -> None:
    table = make_table(500)
    hasher = KeyHasher(500, 2, missing="skip")
    pooled = table.lookup(hasher(["a", None]), mode="sum", padding_idx=-1)
    assert (pooled[1] == 0).all()
    assert (pooled[0] != 0).any()


def test_vectors_of_words_never_seen() -> None:
    table = make_table(1000)
    indices, offsets = NgramHasher(1000)(["unheard", "a", "of"])
    vectors = table.lookup(indices, offsets, mode="mean")
    weight = table.lookup(np.arange(1000))
    for b in range(3):
        rows = indices[offsets[b] : offsets[b + 1]]
        np.testing.assert_allclose(vectors[b], weight[rows].mean(axis=0), rtol=1e-5, atol=1e-6)
