"""The baseline that a lookup replaces: texts as rows of a one-hot sparse matrix.

    one_hot(indices, offsets, E) @ weight                ==  lookup(indices, offsets, mode="sum")
    one_hot(indices, offsets, E).T @ grad                ==  backward(grad, indices, offsets), dense

The product must see all E rows of the weights, and its gradient has E rows too: that is what the
engine avoids.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from sparse_embed._typing import IndexArray


def one_hot(
    indices: IndexArray, offsets: IndexArray, num_embeddings: int
) -> scipy.sparse.csr_array:
    """(B, E) float32 CSR: a 1 for each position of each bag, in the bag's order; a row that occurs
    twice in a bag is there twice (as scipy.sparse allows), and counts twice.

    Args:
        indices: (L,) row numbers.
        offsets: (B + 1,) where each bag begins.
        num_embeddings: E.
    """
    ones = np.ones(len(indices), np.float32)
    return scipy.sparse.csr_array(
        (ones, indices, offsets), shape=(len(offsets) - 1, num_embeddings)
    )
