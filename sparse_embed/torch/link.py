"""From autograd to a table: gradients gather at a link, and the last one sets it in motion."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sparse_embed._typing import AnyArray, FloatArray
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.table import EmbeddingTable

if TYPE_CHECKING:
    from sparse_embed.torch.embedding_bag import EmbeddingBag
    from sparse_embed.torch.many import Together
    from sparse_embed.torch.table_module import TableModule

_TINY = 2.0**-100  # the norm of a gradient of zeros: 0 would say "cleared"


@dataclass(frozen=True)
class Use:
    """One use of a table in a forward, seen from backward.  Holds the tensors, so that autograd
    does not give their memory to somebody else."""

    module: TableModule
    grad: Tensor
    input: Tensor
    offsets: Tensor | None
    weights: Tensor | None

    def gradient(self) -> SparseGrad:
        """The merged gradient."""
        return self.module._gradient(self)


@dataclass(frozen=True, eq=False)
class Part:
    """A table's share in one use of a collection, seen from backward.  When it is the table's only
    use, the collection trains it together with its others."""

    together: Together
    module: EmbeddingBag
    table: int  # its number in the collection

    def gradient(self) -> SparseGrad:
        """The merged gradient."""
        return self.together.gradient(self.module, self.table)


class Link:
    """What modules on one table share: the anchor, and gradients on their way."""

    def __init__(self, trainable: bool) -> None:
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=trainable)
        self.uses: dict[int, list[Use | Part]] = {}  # by the number of the backward pass
        self.pending: list[SparseGrad] = []
        self.norm = 0.0
        self.changed_after = -1  # the last commit when the table was last changed
        link = weakref.ref(self)

        def arrived(anchor: Tensor) -> None:
            here = link()
            if here is not None:
                here.arrive()

        self.anchor.register_post_accumulate_grad_hook(arrived)

    def arrive(self) -> None:
        """All uses of this backward pass are here: train, or keep."""
        uses = self.uses.pop(torch._C._current_graph_task_id(), [])
        fused = [use for use in uses if use.module.fused]
        kept = [use for use in uses if not use.module.fused]
        if len(uses) == 1 and fused and isinstance(fused[0], Part):
            fused[0].together.ready.append(fused[0])
        elif fused:
            _train(fused)
            self.changed_after = fused[0].module.table.last_commit
        if kept:
            self.pending = [*self._taken(), *(use.gradient() for use in kept)]
            if len(self.pending) > 1:
                self.pending = [_merged(kept[0].module.table, self.pending)]
            values = torch.from_numpy(self.pending[0].values)
            norm = torch.linalg.vector_norm(values, dtype=torch.float64).float()
            self.norm = float(norm) or _TINY
        self.anchor.grad = torch.tensor([self.norm]) if self.pending else None

    def _taken(self) -> list[SparseGrad]:
        """What was kept, times what became of its norm since; forgotten here."""
        found, self.pending = self.pending, []
        now = 0.0 if self.anchor.grad is None else float(self.anchor.grad)
        if now == 0:
            return []
        return found if now == self.norm else [grad.scaled(now / self.norm) for grad in found]

    def take(self) -> SparseGrad | None:
        """The gradient to apply, if there is one and it is finite."""
        if self.anchor.grad is not None and not math.isfinite(float(self.anchor.grad)):
            self.pending = []
        found = self._taken()
        self.anchor.grad = None
        return found[0] if found else None


LINKS: weakref.WeakKeyDictionary[EmbeddingTable, Link] = weakref.WeakKeyDictionary()


def _merged(table: EmbeddingTable, grads: list[SparseGrad]) -> SparseGrad:
    """The sum of gradients, in their order."""
    values, indices = _joined(grads)
    return table.backward(values, indices)


def _joined(grads: list[SparseGrad]) -> tuple[FloatArray, AnyArray]:
    return np.concatenate([g.values for g in grads]), np.concatenate([g.indices for g in grads])


def _train(uses: list[Use | Part]) -> None:
    """One step of the table's optimizer with the gradient of all uses."""
    use, module = uses[0], uses[0].module
    if len(uses) > 1:
        module.table.update(*_joined([use.gradient() for use in uses]))
    elif isinstance(use, Part) or module.scale_grad_by_freq:
        module.table.apply(use.gradient())
    else:
        indices, offsets, how = module._arguments(use, train=True)
        module.table.update(as_numpy(use.grad), indices, offsets, **how)


def as_numpy(tensor: Tensor) -> AnyArray:
    array: AnyArray = tensor.detach().numpy()
    return array
