"""Sparse embedding tables for huge vocabularies: hash, look up, merge, update, commit.

import sparse_embed as se

table = se.EmbeddingTable.create("items.table", num_embeddings=1_000_000_000, embedding_dim=64,
                                 optimizer=se.LazyAdam(lr=1e-3))
bags = table.lookup(indices, offsets, mode="mean")      # (B, 64)
table.update(grad, indices, offsets, mode="mean")       # one step on the rows of this batch
table.commit()                                          # durable, all of it
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_embed.bag import EmbeddingBag
    from sparse_embed.collection import EmbeddingBagCollection
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
    from sparse_embed.keys import KeyHasher, NgramHasher, NgramVocabulary, WordNgramHasher
    from sparse_embed.layers import BatchNorm, Dropout
    from sparse_embed.optim import SGD, Adagrad, LazyAdam, RowWiseAdagrad, RowWiseAdam
    from sparse_embed.sparse_grad import SparseGrad
    from sparse_embed.store import Store
    from sparse_embed.table import EmbeddingTable

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adagrad",
    "ArgumentError",
    "BatchNorm",
    "Commit",
    "CorruptStoreError",
    "Dropout",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "EmbeddingTable",
    "IndexRangeError",
    "KeyHasher",
    "LazyAdam",
    "LockedError",
    "MissingExtraError",
    "NgramHasher",
    "NgramVocabulary",
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
    "WordNgramHasher",
    "Zeros",
    "get_num_threads",
    "set_num_threads",
]

# Names are imported when they are first asked for, so that `sparse-embed --help` starts no Numba.
_HOME = {
    "Adagrad": "sparse_embed.optim",
    "ArgumentError": "sparse_embed.errors",
    "BatchNorm": "sparse_embed.layers",
    "Commit": "sparse_embed.commit",
    "CorruptStoreError": "sparse_embed.errors",
    "Dropout": "sparse_embed.layers",
    "EmbeddingBag": "sparse_embed.bag",
    "EmbeddingBagCollection": "sparse_embed.collection",
    "EmbeddingTable": "sparse_embed.table",
    "IndexRangeError": "sparse_embed.errors",
    "KeyHasher": "sparse_embed.keys",
    "LazyAdam": "sparse_embed.optim",
    "LockedError": "sparse_embed.errors",
    "MissingExtraError": "sparse_embed.errors",
    "NgramHasher": "sparse_embed.keys",
    "NgramVocabulary": "sparse_embed.keys",
    "Normal": "sparse_embed.initializers",
    "NotAStoreError": "sparse_embed.errors",
    "ReadOnlyError": "sparse_embed.errors",
    "RowWiseAdagrad": "sparse_embed.optim",
    "RowWiseAdam": "sparse_embed.optim",
    "SGD": "sparse_embed.optim",
    "SparseEmbedError": "sparse_embed.errors",
    "SparseGrad": "sparse_embed.sparse_grad",
    "Store": "sparse_embed.store",
    "StoreClosedError": "sparse_embed.errors",
    "StoreError": "sparse_embed.errors",
    "StoreFailedError": "sparse_embed.errors",
    "Uniform": "sparse_embed.initializers",
    "UnsupportedVersionError": "sparse_embed.errors",
    "WordNgramHasher": "sparse_embed.keys",
    "Zeros": "sparse_embed.initializers",
    "get_num_threads": "sparse_embed.kernels._jit",
    "set_num_threads": "sparse_embed.kernels._jit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
