"""Many bags in one lookup, and their tables in one step at the end of backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparse_embed._typing import FloatArray
from sparse_embed.collection import EmbeddingBagCollection, KeyedBatch
from sparse_embed.errors import ArgumentError
from sparse_embed.sparse_grad import SparseGrad
from sparse_embed.torch.link import Part, Use, as_numpy

if TYPE_CHECKING:
    from sparse_embed.torch.embedding_bag import EmbeddingBag


class Many:
    """Bags on tables of their own, without max_norm, as one collection of the engine."""

    def __init__(self, bags: Mapping[str, EmbeddingBag], features: Mapping[str, str]) -> None:
        self.bags = dict(bags)
        self.features = dict(features)
        self.engine = EmbeddingBagCollection(
            {name: bag.table for name, bag in bags.items()},
            features,
            mode={name: bag.mode for name, bag in bags.items()},
            padding_idx={name: bag.padding_idx for name, bag in bags.items()},
        )
        self.numbers = {name: t for t, name, _ in self.engine._numbered()}
        self.names = list(self.engine.tables)
        self.dims = list(self.engine.embedding_dims.values())
        self.sums = all(bag.mode == "sum" for bag in bags.values())

    def __call__(
        self, batch: KeyedBatch, weights: Sequence[Tensor | None], tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The bags of each feature: (B, D).

        Args:
            weights: of each feature; or of all positions, as one; or none.
            tensors: what the batch was made of: backward sees to it that they have not changed.
        """
        anchors = []
        for name in self.names:
            bag = self.bags[name]
            if torch._C._current_graph_task_id() == -1:
                bag._link.uses.clear()  # what a failed or partial backward left
            trains = bag.training or not bag.fused
            anchors.append(bag.anchor if trains else bag.anchor.detach())
        call = _Call(self, batch, tuple(tensors), len(weights), self._steps())
        bags: tuple[Tensor, ...] = _LookupMany.apply(call, *anchors, *weights)
        return bags

    def _steps(self) -> list[int]:
        return [bag.table.step for bag in self.bags.values()]

    def lookup(self, batch: KeyedBatch) -> list[Tensor]:
        size = batch.batch_size
        outs = [np.empty((size, dim), np.float32) for dim in self.dims]
        run = self.engine._run
        with run.using(write=False):
            run.lookup(batch, outs)
        return [torch.from_numpy(out) for out in outs]

    def backward(
        self, call: _Call, grads: Sequence[Tensor | None], trains: Sequence[bool], weighs: bool
    ) -> Tensor | None:
        """Leave the gradients at the links; returns that of the weights, by position."""
        self._refuse_if_moved(call, trains, weighs)
        batch = call.batch
        given = [grad is not None for grad in grads]
        dense = [
            np.zeros((batch.batch_size, dim), np.float32) if grad is None else _rows(grad)
            for grad, dim in zip(grads, self.dims, strict=True)
        ]
        weights_grad = None
        if weighs:
            upstream = dict(zip(self.features, dense, strict=True))
            weights_grad = torch.from_numpy(self.engine.per_sample_weights_grad(upstream, batch))
        task = torch._C._current_graph_task_id()
        together = Together(self, batch, dense)
        for name, train in zip(self.names, trains, strict=True):
            bag, t = self.bags[name], self.numbers[name]
            features = [f for f in self.engine._run.features_of[t] if given[f]]
            if not train or not features:
                continue
            uses = bag._link.uses.setdefault(task, [])
            whole = len(features) == len(self.engine._run.features_of[t])
            if whole and bag.mode != "max" and not bag.scale_grad_by_freq:
                uses.append(Part(together, bag, t))
            else:
                uses += [self._alone(bag, batch, f, dense[f]) for f in features]
        torch.autograd.Variable._execution_engine.queue_callback(together.train)
        return weights_grad

    def _alone(self, bag: EmbeddingBag, batch: KeyedBatch, f: int, grad: FloatArray) -> Use:
        """A feature as a use of its own."""
        begin, end = batch.span(f)
        size = batch.batch_size
        offsets = batch.bags.offsets[f * size : (f + 1) * size + 1] - begin
        weights = batch.bags.weights
        return Use(
            bag,
            torch.from_numpy(grad),
            torch.from_numpy(batch.indices[begin:end]),
            torch.from_numpy(offsets if bag.include_last_offset else offsets[:-1]),
            None if weights is None or bag.mode != "sum" else torch.from_numpy(weights[begin:end]),
        )

    def _refuse_if_moved(self, call: _Call, trains: Sequence[bool], weighs: bool) -> None:
        for name, train, then, now in zip(
            self.bags, trains, call.steps, self._steps(), strict=True
        ):
            if then != now and (weighs or (train and self.bags[name].mode == "max")):
                raise ArgumentError(
                    f"backward: table {name!r} made {now - then} steps since this forward, and the"
                    ' gradient of per_sample_weights or of mode="max" needs the rows as they were'
                )


@dataclass(frozen=True, eq=False)
class _Call:
    many: Many
    batch: KeyedBatch
    tensors: tuple[Tensor, ...]
    num_weights: int
    steps: list[int]


@dataclass(frozen=True, eq=False)
class Together:
    """The gradient of one use of a collection; the tables that wait for it are trained at once."""

    many: Many
    batch: KeyedBatch
    grads: list[FloatArray]
    ready: list[Part] = field(default_factory=list)

    def train(self) -> None:
        """One step of each table that is ready: called when the backward pass is over."""
        parts, self.ready[:] = list(self.ready), []
        if not parts:
            return
        run = self.many.engine._run
        with run.using(write=True):
            run.update(self.batch, self.grads, [part.table for part in parts])
        for part in parts:
            part.module._link.changed_after = part.module.table.last_commit

    def gradient(self, module: EmbeddingBag, t: int) -> SparseGrad:
        """The merged gradient of one table."""
        run = self.many.engine._run
        part = run.part(self.batch, t)
        return module.table.backward(
            run.grad_of(self.grads, t),
            part.indices,
            part.offsets,
            mode=part.mode,
            per_sample_weights=part.weights,
            padding_idx=module.padding_idx,
        )


def _rows(grad: Tensor) -> FloatArray:
    """A gradient whose columns lie side by side; its rows may lie apart."""
    array = as_numpy(grad)
    if array.shape[1] > 1 and array.strides[1] != 4:
        array = np.ascontiguousarray(array)
    return array


class _LookupMany(torch.autograd.Function):
    """Call, anchor of each table, weights -> bags of each feature."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*call.tensors)
        return tuple(call.many.lookup(call.batch))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        call: _Call = ctx.call
        _ = ctx.saved_tensors  # refuses what was changed in place
        num_tables = len(call.many.names)
        needed = ctx.needs_input_grad[1:]
        trains, weighs = needed[:num_tables], needed[num_tables:]
        found = call.many.backward(call, grads, trains, any(weighs))
        zero = torch.zeros(1)
        weights_grads: list[Tensor | None] = [None] * call.num_weights
        if found is not None and call.num_weights == 1:
            weights_grads = [found]
        elif found is not None:
            for f, weigh in enumerate(weighs):
                if weigh:
                    begin, end = call.batch.span(f)
                    weights_grads[f] = found[begin:end].clone()
        return None, *(zero if train else None for train in trains), *weights_grads
