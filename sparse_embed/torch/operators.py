"""The two operators: a lookup, and what is left of it in backward.  Eager and compiled."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparse_embed.errors import ArgumentError
from sparse_embed.torch.link import Use, as_numpy

if TYPE_CHECKING:
    from sparse_embed.torch.table_module import TableModule

MODULES: weakref.WeakValueDictionary[int, TableModule] = weakref.WeakValueDictionary()
"""By the number that stands for a module in a compiled graph."""

_CALLS = itertools.count(1)


def _forward(
    anchor: Tensor, input: Tensor, offsets: Tensor | None, weights: Tensor | None, handle: int
) -> tuple[Tensor, Tensor]:
    """The rows or bags, and the table's step they are from."""
    module = MODULES[handle]
    if torch._C._current_graph_task_id() == -1:
        module._link.uses.clear()  # what a failed or partial backward left
    rows = module._lookup(Use(module, anchor, input, offsets, weights))
    return torch.from_numpy(rows), torch.tensor([module.table.step])


def _backward(
    grad: Tensor,
    input: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    step: Tensor,
    handle: int,
    call: int,
    trains: bool,
    weighs: bool,
) -> tuple[Tensor, Tensor]:
    """Leave the gradient for `Link.arrive`; returns the anchor's (0) and that of the weights.

    call: different in each place of a compiled graph, so that no two calls are taken for one.
    """
    module = MODULES[handle]
    moved = module.table.step - int(step)
    if moved and (weighs or (trains and module.mode == "max")):
        raise ArgumentError(
            f"backward: the table made {moved} steps since this forward, and the gradient of "
            'per_sample_weights or of mode="max" needs the rows as they were; call backward once '
            "for all, or use fused=False and step() after it"
        )
    use = Use(module, grad, input, offsets, weights)
    weights_grad = np.empty(0, np.float32)
    if weighs:
        indices, starts, how = module._arguments(use, train=True)
        weights_grad = module.table.per_sample_weights_grad(as_numpy(grad), indices, starts, **how)
    if trains:
        module._link.uses.setdefault(torch._C._current_graph_task_id(), []).append(use)
    return torch.zeros(1), torch.from_numpy(weights_grad)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, input, offsets, weights, ctx.handle = inputs
    ctx.save_for_backward(input, offsets, weights, output[1])


def _differentiate(ctx: Any, grad: Tensor, backward: Any) -> tuple[Any, ...]:
    trains, _, _, weighs, _ = ctx.needs_input_grad
    call = next(_CALLS)
    anchor_grad, weights_grad = backward(
        grad, *ctx.saved_tensors, ctx.handle, call, bool(trains), bool(weighs)
    )
    return anchor_grad if trains else None, None, None, weights_grad if weighs else None, None


class _Lookup(torch.autograd.Function):
    """The eager way: less than half of a custom operator's overhead."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*inputs)
        _setup(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _differentiate(ctx, grads[0], _backward)


# The way of torch.compile: two operators that it does not look into.
_forward_op = torch.library.custom_op(
    "sparse_embed::lookup",
    _forward,
    mutates_args=(),
    schema="(Tensor anchor, Tensor input, Tensor? offsets, Tensor? weights, int handle)"
    " -> (Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "sparse_embed::lookup_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor input, Tensor? offsets, Tensor? weights, Tensor step, int handle,"
    " int call, bool trains, bool weighs) -> (Tensor, Tensor)",
)


@_forward_op.register_fake
def _(
    anchor: Tensor, input: Tensor, offsets: Tensor | None, weights: Tensor | None, handle: int
) -> tuple[Tensor, Tensor]:
    lead = MODULES[handle]._lead(input, offsets)
    dim = MODULES[handle].embedding_dim
    return anchor.new_empty((*lead, dim)), anchor.new_empty(1, dtype=torch.int64)


@_backward_op.register_fake
def _(grad: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return grad.new_empty(1), grad.new_empty(input.shape if rest[-1] else (0,))


_forward_op.register_autograd(
    lambda ctx, grad, _: _differentiate(ctx, grad, _backward_op), setup_context=_setup
)


def lookup(
    anchor: Tensor, input: Tensor, offsets: Tensor | None, weights: Tensor | None, handle: int
) -> Tensor:
    """What a module's forward calls."""
    run = _forward_op if torch.compiler.is_compiling() else _Lookup.apply
    result: Tensor = run(anchor, input, offsets, weights, handle)[0]
    return result
