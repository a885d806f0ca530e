"""torch.nn modules whose rows lie in an EmbeddingTable: larger than memory, crash-safe, sparse.

Two lines change, the training loop stays:

    from sparse_embed.torch import EmbeddingBag                     # was: torch.nn.EmbeddingBag
    bag = EmbeddingBag(10**9, 64, mode="sum", path="items.table")   # was: EmbeddingBag(10**6, 64)

How a gradient reaches the table.  A table is no Parameter; it has an `anchor` instead, a Parameter
of one number, shared by all modules on the table, so that autograd passes by.  Every use of a
table in a forward leaves its upstream gradient when backward comes to it; when the last one has
(torch then accumulates the anchor's gradient, once a pass) they are merged, and

    fused=True   (default) the optimizer of the table makes one step, there and then.  Nothing is
                 kept, there is no step to forget.  One backward is one step; only in train() mode.
    fused=False  the merged SparseGrad is kept and later ones are added to it, until `step()`.  The
                 anchor's `.grad` is then the L2 norm of it, so that whatever multiplies all
                 gradients works unseen: `clip_grad_norm_(model.parameters())` and GradScaler act on
                 the anchor, and `step()` multiplies the table's gradient by what became of the
                 norm: dropped when None or 0 (`zero_grad`), refused when inf or NaN.  Use this one
                 for gradient accumulation, clipping, AMP.  `follow(optimizer, model)` calls step().

`anchor.requires_grad = False` (or `module.requires_grad_(False)`) freezes a table.  The anchor's
value means nothing; it stays on the CPU in float32 whatever `.to()` is called.

Checkpointing: `use_reentrant=False` is as no checkpointing.  With `use_reentrant=True` torch runs
one backward a segment, and so there is one fused step a segment: take fused=False there.

What differs from torch, on purpose: an index out of range is an IndexError in every mode; offsets
must not decrease, and with include_last_offset must end at len(input) (torch ignores what is behind
for "sum", and averages wrongly for "mean"); input of shape (B, 0) gives zeros (torch refuses).
"""

from __future__ import annotations

from sparse_embed.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401  # for its absence
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingExtraError(
        "sparse_embed.torch needs PyTorch: pip install 'sparse-embed[torch]'"
    ) from None
from sparse_embed.torch.collection import EmbeddingBagCollection
from sparse_embed.torch.durable import commit, resume
from sparse_embed.torch.embedding import Embedding
from sparse_embed.torch.embedding_bag import EmbeddingBag, UnsupportedError
from sparse_embed.torch.training import follow, to_torch_sparse

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "UnsupportedError",
    "commit",
    "follow",
    "resume",
    "to_torch_sparse",
]
