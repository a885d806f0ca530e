"""Between an optimizer and the tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.torch.table_module import table_modules


def follow(optimizer: torch.optim.Optimizer, model: nn.Module) -> Any:
    """Call `step()` of every table module of a model after each step of this optimizer.

    A step that GradScaler skips is then skipped by the tables too.  The optimizer must have the
    model's parameters, the tables' anchors among them: that is how a gradient is unscaled.

    Returns:
        torch's handle; its `remove()` ends it.
    """

    def after(optimizer: Any, args: object, kwargs: object) -> None:
        skipped = getattr(optimizer, "found_inf", None)  # fused=True is told, and returns
        for module in table_modules(model):
            if skipped is not None and bool(skipped):
                module._link.take()
            else:
                module.step()

    return optimizer.register_step_post_hook(after)


def to_torch_sparse(grad: SparseGrad) -> Tensor:
    """A gradient as a coalesced sparse COO tensor (E, D); shares the values' memory."""
    return torch.sparse_coo_tensor(
        torch.from_numpy(grad.indices)[None],
        torch.from_numpy(grad.values),
        (grad.num_embeddings, grad.embedding_dim),
        is_coalesced=True,
        check_invariants=False,  # a SparseGrad is checked when it is made
    )
