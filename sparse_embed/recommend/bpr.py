"""BPR: learn to score what a user took above what the user did not take."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from sparse_embed.kernels._jit import guard_fork
from sparse_embed.kernels.bpr import CHUNK, bpr_gradients_cpu
from sparse_embed.optim import LazyAdam
from sparse_embed.recommend.base import Common, FactorModel
from sparse_embed.recommend.sampling import Interactions, Sampler

__all__ = ["BPR"]

_LR = 0.015
_SIGNS = np.array([1, -1], np.float32)


class BPR(FactorModel):
    """Bayesian personalised ranking for implicit feedback.

    For each interaction of user u with item i, draw an item j the user did not take and descend

        -ln sigmoid(x) + regularization/2 (|p_u|^2 + |q_i - q_j|^2 + (b_i - b_j)^2),
        x = <p_u, q_i - q_j> + b_i - b_j

    summed over a batch; a row's gradients are merged and the optimizer updates each row once.
    (Rendle et al. penalise |q_i|^2 + |q_j|^2.  The loss knows items by their differences alone, so
    the penalty does too; a triplet then costs one row of items to read and one gradient.)

    Args:
        embedding_dim: D, length of a user's and an item's vector (a bias comes on top).
        epochs: visits of every interaction.
        lr: learning rate of the default optimizer, LazyAdam; or give an `optimizer`.
        regularization: weight of the L2 term, per triplet.
        negative_power: j is drawn in proportion to (how many users took it) ** negative_power,
            never one that u took.  0: all alike; 1: as often as it was taken.
        common: batch_size, optimizer, init, dropout, users_as, num_users, num_items, seed, path,
            cache_bytes, device, commit_interval: see `Common`.

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
        regularization: float = 0.01,
        negative_power: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            embedding_dim,
            epochs=epochs,
            lr=lr,
            default_optimizer=LazyAdam,
            default_lr=_LR,
            regularization=regularization,
            negative_power=negative_power,
            **common,
        )

    def _hyperparameters(self) -> dict[str, Any]:
        return {}

    def _prepare(self, interactions: Interactions) -> None:
        self._sampler = Sampler(interactions, self.seed, self.negative_power)
        if self._memory is not None:
            from sparse_embed.recommend.device_training import DeviceBPR

            self._on_device = DeviceBPR(self._memory, self._sampler, self)
            return
        self._gradients = bpr_gradients_cpu(self.embedding_dim)
        self._signs = np.tile(_SIGNS, (self.batch_size, 1))

    def _train_on_host(self, epoch: int, start: int, stop: int) -> float:
        users, items = self._sampler.triplets(epoch, start, stop)
        signs = self._signs[: len(users)]
        user_side, item_side = self._side("users"), self._side("items")
        user_rows = user_side.lookup(users, without=self._without(items[:, 0]))
        mask = self._drop(epoch, start, user_rows)
        differences = item_side.lookup(items, signs)
        losses = np.empty(-(-len(users) // CHUNK), np.float64)
        guard_fork()
        # In place: user_rows now holds the gradient by the items' difference, and the other way.
        self._gradients(np.float32(self.regularization), user_rows, differences, losses)
        if mask is not None:
            differences[:, :-1] *= mask
        user_side.update(differences, users)
        item_side.update(user_rows, items, signs)
        return float(losses.sum())
