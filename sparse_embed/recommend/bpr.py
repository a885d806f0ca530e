"""BPR: learn to score what a user took above what the user did not take."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Uniform
from sparse_embed.kernels._jit import guard_fork
from sparse_embed.kernels.bpr import CHUNK, triplet_gradients_cpu
from sparse_embed.optim import LazyAdam, Optimizer
from sparse_embed.recommend.base import FactorModel
from sparse_embed.recommend.sampling import Interactions, TripletSampler

__all__ = ["BPR"]

_LR = 0.015
_INIT = 0.05


class BPR(FactorModel):
    """Bayesian personalised ranking for implicit feedback.

    For each interaction of user u with item i, draw an item j the user did not take and descend

        -ln sigmoid(x) + regularization/2 (|p_u|^2 + |q_i|^2 + |q_j|^2 + b_i^2 + b_j^2),
        x = <p_u, q_i - q_j> + b_i - b_j

    summed over a batch; a row's gradients are merged and the optimizer updates each row once.

    Args:
        embedding_dim: D, length of a user's and an item's vector (an item's bias comes on top).
        epochs: visits of every interaction.
        lr: learning rate of the default optimizer; give it either here or in `optimizer`.
        batch_size: interactions a step.
        regularization: weight of the L2 term, per triplet.
        negative_power: j is drawn in proportion to (how many users took it) ** negative_power,
            never one that u took.  0: all alike; 1: as often as it was taken.
        optimizer: any of this package; None is `LazyAdam(lr)`.
        seed: the same seed and data give the same model, bit for bit, for any number of threads.
        path: directory of the store to train on; None: in memory.
        cache_bytes: memory for rows; None: what the process has.

    Raises:
        ArgumentError: a value out of range, or both `lr` and `optimizer`.

    References:
        Rendle, Freudenthaler, Gantner, Schmidt-Thieme: BPR: Bayesian Personalized Ranking from
        Implicit Feedback. UAI 2009, section 4.

    >>> import numpy as np, scipy.sparse
    >>> taken = scipy.sparse.csr_array(np.kron(np.eye(2), np.ones((4, 4))) - np.eye(8))
    >>> model = BPR(embedding_dim=8, seed=0).fit(taken)
    >>> item_ids, scores = model.recommend([0, 7], taken[[0, 7]], k=1)
    >>> item_ids.ravel().tolist()
    [0, 7]
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        *,
        epochs: int = 100,
        lr: float | None = None,
        batch_size: int = 8192,
        regularization: float = 0.01,
        negative_power: float = 0.5,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        if optimizer is None:
            optimizer = LazyAdam(lr=_LR if lr is None else lr)
        elif lr is not None:
            raise ArgumentError(f"lr: give it in optimizer or alone, got both {lr} and {optimizer}")
        super().__init__(
            embedding_dim=embedding_dim,
            epochs=epochs,
            batch_size=batch_size,
            init=Uniform(_INIT),
            optimizer=optimizer,
            seed=seed,
            path=path,
            cache_bytes=cache_bytes,
        )
        self.regularization = _not_negative("regularization", regularization)
        self.negative_power = _not_negative("negative_power", negative_power)

    def _hyperparameters(self) -> dict[str, Any]:
        return {
            "regularization": self.regularization,
            "negative_power": self.negative_power,
        }

    def _prepare(self, interactions: Interactions) -> None:
        self._sampler = TripletSampler(interactions, self.seed, self.negative_power)
        self._gradients = triplet_gradients_cpu(self.embedding_dim)

    def _train_batch(self, epoch: int, start: int, stop: int) -> float:
        users, items = self._sampler.sample(epoch, start, stop)
        user_rows = self.users.lookup(users)
        item_rows = self.items.lookup(items)
        losses = np.empty(-(-len(users) // CHUNK), np.float64)
        guard_fork()
        # In place: from here on user_rows and item_rows hold the gradients.
        self._gradients(np.float32(self.regularization), user_rows, item_rows, losses)
        self.users.update(user_rows, users)
        self.items.update(item_rows, items)
        return float(losses.sum())


def _not_negative(name: str, value: Any) -> float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 <= value < np.inf:
        raise ArgumentError(f"{name}: expected a finite number >= 0, got {value!r}")
    return float(value)
