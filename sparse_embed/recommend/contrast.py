"""Models that score a taken item against items which a block of interactions shares."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels._jit import guard_fork, new_counter
from sparse_embed.kernels.contrast import contrast_cpu
from sparse_embed.optim import LazyAdam
from sparse_embed.recommend.base import FactorModel
from sparse_embed.recommend.fitted import positive
from sparse_embed.recommend.options import Common
from sparse_embed.recommend.sampling import Interactions, Sampler

__all__ = ["ContrastModel"]

_STEPS = 200  # of a fit, at the least
_SMALLEST, _LARGEST = 256, 8192  # batches, of their own accord


class ContrastModel(FactorModel):
    """A block of `num_negatives` interactions shares as many negatives: as many rows as items.

    A subclass sets `_loss` and `_numbers` (a and b of `kernels/contrast_losses.py`).
    """

    _loss: ClassVar[str]

    def __init__(
        self,
        embedding_dim: int,
        *,
        epochs: int,
        lr: float | None,
        default_lr: float,
        regularization: float | None,
        negative_power: float,
        num_negatives: int,
        in_batch: bool,
        common: Common,
    ) -> None:
        super().__init__(
            embedding_dim,
            epochs=epochs,
            lr=lr,
            default_optimizer=LazyAdam,
            default_lr=default_lr,
            regularization=regularization,
            negative_power=negative_power,
            **common,
        )
        self.num_negatives = positive("num_negatives", num_negatives)
        if not isinstance(in_batch, bool):
            raise ArgumentError(f"in_batch: expected True or False, got {in_batch!r}")
        self.in_batch = in_batch

    def _hyperparameters(self) -> dict[str, Any]:
        return {"num_negatives": self.num_negatives, "in_batch": self.in_batch}

    def _numbers(self) -> tuple[float, float]:
        """a and b of the loss."""
        raise NotImplementedError

    def _offsets(self) -> np.ndarray | None:
        """(C,) offset of each item of the catalogue; None: zeros."""
        return None

    def _batch_step(self, number: int) -> int:
        step = self.batch_size or min(max(_SMALLEST, number * self.epochs // _STEPS), _LARGEST)
        blocks = -(-step // self.num_negatives)  # whole in every batch but the last
        return blocks * self.num_negatives

    def _prepare(self, interactions: Interactions) -> None:
        power = 1.0 if self.in_batch else self.negative_power
        self._sampler = Sampler(interactions, self.seed, power, self.num_negatives)
        self._offset_of = self._offsets()
        if self._memory is not None:
            from sparse_embed.recommend.device_training import DeviceContrast

            self._on_device = DeviceContrast(self._memory, self._sampler, self)
            self._on_device.set_loss(
                self._loss, self.cosine, self._numbers(), self.num_negatives, self.in_batch,
                self._offset_of,
            )  # fmt: skip
            return
        self._gradients = contrast_cpu(self.embedding_dim, self._loss, self.cosine)

    def _negatives(self, epoch: int, start: int, stop: int, columns: np.ndarray) -> np.ndarray:
        """(blocks, M) positions in the catalogue."""
        if not self.in_batch:
            return self._sampler.shared(epoch, start, stop, self.num_negatives)
        blocks = -(-len(columns) // self.num_negatives)
        # A short last block takes its items again from the start: the user's own are marked.
        return np.resize(columns, blocks * self.num_negatives).reshape(blocks, -1)

    def _train_on_host(self, epoch: int, start: int, stop: int) -> float:
        sampler = self._sampler
        users, items, columns = sampler.pairs(epoch, start, stop)
        others = self._negatives(epoch, start, stop, columns)
        marks = sampler.marks(users, others)
        negatives = sampler.interactions.catalogue[others.reshape(-1)]
        user_side, item_side = self._side("users"), self._side("items")
        user_rows = user_side.lookup(users, without=self._without(items))
        mask = self._drop(epoch, start, user_rows)
        everything = np.concatenate([items, negatives])
        item_rows = item_side.lookup(everything)
        if self._offset_of is None:
            own = offsets = np.zeros(max(len(items), len(negatives)), np.float32)
        else:
            own, offsets = self._offset_of[columns], self._offset_of[others.reshape(-1)]
        losses = np.empty(len(others), np.float64)
        a, b = self._numbers()
        guard_fork()
        self._gradients(
            self.num_negatives, np.float32(a), np.float32(b), np.float32(self._l2),
            user_rows, item_rows[: len(items)], item_rows[len(items) :], marks, own, offsets,
            new_counter(), losses,
        )  # fmt: skip
        if mask is not None:
            user_rows[:, :-1] *= mask
        user_side.update(user_rows, users)
        item_side.update(item_rows, everything)
        return float(losses.sum())
