"""Sparse embedding tables for huge vocabularies: hash, look up, merge, update, commit.

    import sparse_embed as se

    table = se.EmbeddingTable.create("items.table", num_embeddings=1_000_000_000, embedding_dim=64,
                                     optimizer=se.LazyAdam(lr=1e-3))
    bags = table.lookup(indices, offsets, mode="mean")      # (B, 64)
    table.update(grad, indices, offsets, mode="mean")       # one step on the rows of this batch
    table.commit()                                          # durable, all of it
"""

from sparse_embed.bag import EmbeddingBag
from sparse_embed.commit import Commit
from sparse_embed.errors import (
    ArgumentError,
    CorruptStoreError,
    IndexRangeError,
    LockedError,
    MissingExtraError,
    NotAStoreError,
    ReadOnlyError,
    SparseEmbedError,
    StoreClosedError,
    StoreError,
    StoreFailedError,
    UnsupportedVersionError,
)
from sparse_embed.initializers import Normal, Uniform, Zeros
from sparse_embed.kernels._jit import get_num_threads, set_num_threads
from sparse_embed.optim import SGD, Adagrad, LazyAdam, RowWiseAdagrad, RowWiseAdam
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.store import Store
from sparse_embed.table import EmbeddingTable

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adagrad",
    "ArgumentError",
    "Commit",
    "CorruptStoreError",
    "EmbeddingBag",
    "EmbeddingTable",
    "IndexRangeError",
    "LazyAdam",
    "LockedError",
    "MissingExtraError",
    "Normal",
    "NotAStoreError",
    "ReadOnlyError",
    "RowWiseAdagrad",
    "RowWiseAdam",
    "SparseEmbedError",
    "SparseGrad",
    "Store",
    "StoreClosedError",
    "StoreError",
    "StoreFailedError",
    "Uniform",
    "UnsupportedVersionError",
    "Zeros",
    "get_num_threads",
    "set_num_threads",
]
