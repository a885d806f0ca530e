"""BPR: learn to score what a user took above what the user did not take."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from sparse_embed import ops
from sparse_embed.kernels._jit import counter_of_items, guard_fork, new_counter
from sparse_embed.kernels.bpr import bpr_gradients_cpu, penalize_cpu, places_cpu
from sparse_embed.optim import LazyAdam
from sparse_embed.recommend.base import FactorModel
from sparse_embed.recommend.options import Common
from sparse_embed.recommend.sampling import TILE, Interactions, Sampler

__all__ = ["BPR"]

_LR = 0.05
_STEPS = 200  # of a fit, at the least
_SMALLEST, _LARGEST = 256, 1 << 18  # batches, of their own accord
_MANY_USERS = 1 << 17  # with more of them, batches are half as large: they hold as many users


class BPR(FactorModel):
    """Bayesian personalised ranking for implicit feedback.

    For each interaction of user u with item i, draw an item j the user did not take and descend

        -ln sigmoid(x) + regularization/2 (|p_u|^2 + |q_i|^2 + b_i^2 + |q_j|^2 + b_j^2),
        x = <p_u, q_i - q_j> + b_i - b_j

    summed over a batch; a row's gradients are merged and the optimizer updates each row once.
    Batches are large and even: each takes one of every so many neighbouring interactions, so it is
    spread over all users alike.  About 4 triplets of 32 neighbouring users share one j, those of
    one user as few as can be: a quarter of the rows to draw, read and update.

    The defaults were chosen on citeulike-a, MovieLens 100k, texts and names in Python's sources
    taken for users and items, parts of them (a third of the users, of the items, of the
    interactions), and sets drawn from three mechanisms.  What differs between them is how much
    regularization they bear, so that follows from the data.  Recall@20, one seed each, of the
    defaults and of the best of regularization 0.01, 0.02, 0.03, 0.05, 0.08, 0.12:

        left out: one item of each user          chosen   default   best
        citeulike-a, half of its interactions     0.026    0.161     0.159 at 0.03
        ..., a third of its users                 0.027    0.206     0.213 at 0.02
        ..., a third of its items                 0.015    0.395     0.396 at 0.02
        MovieLens 100k, each user's last item     0.031    0.220     0.224 at 0.03
        names in Python's sources                 0.024    0.537     0.524 at 0.02
        left out: a fifth
        citeulike-a                               0.015    0.235     0.237 at 0.01
        MovieLens 100k, a third of it             0.063    0.196     0.194 at 0.12
        words of news                             0.048    0.098     0.099 at 0.05
        drawn: venues near a user's home, 250,000 0.042    0.150     0.152 at 0.05

    (the best ones with negative_power=0.5, which is as good on some and a seventh worse on others;
    at 0.01 the last four have 0.237, 0.108, 0.058 and 0.097).

    Give an EarlyStopping patience: after the first epochs, while the learning rate is high, quality
    on held-out interactions often dips for a fifth of the fit, and it is best near the end.

    Args:
        embedding_dim: D, length of a user's and an item's vector (a bias comes on top).
        epochs: visits of every interaction.
        lr: learning rate of the default optimizer, LazyAdam; or give an `optimizer`.
        regularization: weight of the L2 term, per triplet (of a j: once for those that share it).
            None: 0.2 (1 - a) and, of dense data, sqrt(50 / g) of it; at least 0.015, at most 0.12.
            a is the chance that others speak for an item which a user took rather than for one
            about as popular which the user did not: 0.5 in noise, 1 where tastes are clear
            (`neighbours.agreement`).  g = interactions / sqrt(users * items), of the users and
            items of which there are any, is 50 or more where data are dense.
        negative_power: j is drawn in proportion to (how many users took it) ** negative_power,
            never one that u took.  0: all alike; 1: as often as it was taken.
        common: batch_size, optimizer, init, dropout, users_as, num_users, num_items, seed, path,
            cache_bytes, commit_interval: see `Common`.

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
        regularization: float | None = None,
        negative_power: float = 0.25,
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

        self._largest = _LARGEST

    def _hyperparameters(self) -> dict[str, Any]:
        return {}

    def _prepare(self, interactions: Interactions) -> None:
        self._choose_regularization(interactions)
        many = np.count_nonzero(np.diff(interactions.indptr)) > _MANY_USERS
        self._largest = _LARGEST // 2 if many else _LARGEST
        self._sampler = Sampler(interactions, self.seed, self.negative_power)
        if self._memory is not None:
            from sparse_embed.recommend.device_training import DeviceBPR

            step = self._batch_step(len(interactions))
            self._on_device = DeviceBPR(self._memory, self._sampler, self, step)
            return
        self._gradients = bpr_gradients_cpu(self.embedding_dim)
        self._penalize = penalize_cpu(self.embedding_dim)

    def _batch_step(self, number: int) -> int:
        if self.batch_size is not None:
            batches = -(-number // self.batch_size)
        else:
            batches = max(-(-number // self._largest), -(-_STEPS // self.epochs))
            batches = min(batches, max(1, number // _SMALLEST))
        return -(-number // batches)

    def _train_on_host(self, epoch: int, start: int, stop: int) -> float:
        # With users as means, a user is another one in each triplet.
        batch = self._sampler.triplets(
            epoch, start, self._batch_step(len(self._sampler.interactions)),
            together=self.users_as != "items",
        )  # fmt: skip
        user_side, item_side = self._side("users"), self._side("items")
        catalogue = self._sampler.interactions.catalogue
        without = None if self.users_as == "own" else catalogue[batch.taken]
        user_rows = user_side.lookup(batch.users, without=without)
        mask = self._drop(epoch, start, user_rows)
        items = ops.merge(batch.columns, ops.NO_PADDING)
        item_ids = catalogue[items.indices]
        item_rows = item_side.lookup(item_ids)
        # What flows back: a share of a user's row to each item taken, and the negatives' sums.
        number, count = len(batch.users), len(batch.columns)
        upstream = np.empty((number + len(batch.negatives), user_rows.shape[1]), np.float32)
        rows, bags = np.empty((2, count), np.int64)
        shares = np.empty(count, np.float32)
        losses = np.empty(len(batch.tiles) - 1, np.float64)
        reg = np.float32(self._l2)
        guard_fork()
        counter = counter_of_items(count)
        places_cpu()(items.starts, items.positions, counter, rows)
        self._gradients(
            TILE, reg, batch.starts, user_rows, item_rows, rows, batch.opponents, batch.tiles,
            bags, shares, upstream, new_counter(len(losses)), losses,
        )  # fmt: skip
        item_grad = ops.backward(items, ops.Coefficients(bags, shares, None), upstream, None)
        self._penalize(reg, items.starts, item_rows, counter_of_items(len(items) * 16), item_grad)
        if mask is not None:
            user_rows[:, :-1] *= mask
        user_side.apply(user_rows, batch.users)
        item_side.apply(item_grad, item_ids)
        return float(losses.sum())
