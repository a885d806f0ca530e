"""BPR: learn to score what a user took above what the user did not take."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from sparse_embed import ops
from sparse_embed.kernels._jit import counter_of_items, guard_fork, new_counter
from sparse_embed.kernels.bpr import bpr_gradients_cpu, penalize_cpu, places_cpu
from sparse_embed.optim import LazyAdam
from sparse_embed.recommend.base import Common, FactorModel
from sparse_embed.recommend.model_store import kept
from sparse_embed.recommend.neighbours import agreement
from sparse_embed.recommend.sampling import TILE, Interactions, Sampler

__all__ = ["BPR"]

_LR = 0.05
_STEPS = 200  # of a fit, at the least
_SMALLEST, _LARGEST = 256, 1 << 17  # batches, of their own accord
_DISSENT, _LEAST, _MOST = 0.2, 0.015, 0.12  # regularization by how little others agree, its bounds


class BPR(FactorModel):
    """Bayesian personalised ranking for implicit feedback.

    For each interaction of user u with item i, draw an item j the user did not take and descend

        -ln sigmoid(x) + regularization/2 (|p_u|^2 + |q_i|^2 + b_i^2 + |q_j|^2 + b_j^2),
        x = <p_u, q_i - q_j> + b_i - b_j

    summed over a batch; a row's gradients are merged and the optimizer updates each row once.
    Batches are large and even: each takes one of every so many neighbouring interactions, so it is
    spread over all users alike.  About 4 triplets of 32 neighbouring users share one j, those of
    one user as few as can be: a quarter of the rows to draw, read and update.

    The default regularization was chosen on citeulike-a, which bears little of it, and ten other
    sets, which want more: at 0.01, the least, small and dense data are learnt by heart.  Recall@20
    at 0.01 and at the default, one seed each, a random fifth held out:

        drawn from dot-product models, 8,000 x 9,600 items: 0.148, 0.165; 30,000 x 37,600: 0.121,
        0.137 · names in Python's sources 0.424, 0.433 · citeulike-a: the same weight
        and with one item left out: citeulike-a, three seeds, 0.277, 0.278 · words of film reviews
        0.021, 0.042 · MovieLens 100k 0.415, 0.409 (NDCG@20 0.184, 0.201)

    Give an EarlyStopping patience: after the first epochs, while the learning rate is high, quality
    on held-out interactions often dips for a fifth of the fit, and it is best near the end.

    Args:
        embedding_dim: D, length of a user's and an item's vector (a bias comes on top).
        epochs: visits of every interaction.
        lr: learning rate of the default optimizer, LazyAdam; or give an `optimizer`.
        regularization: weight of the L2 term, per triplet (of a j: once for those that share it).
            None: the denser the data the more, 0.00013 g^1.5, at least 0.01 and at most 0.06, with
            g = interactions / sqrt(users * items) of the users and items of which there are any.
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
        self._l2 = kept(
            self.store,
            "regularization",
            self.regularization,
            lambda: regularization_of(interactions),
        )
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
            batches = max(-(-number // _LARGEST), -(-_STEPS // self.epochs))
            batches = min(batches, max(1, number // _SMALLEST))
        return -(-number // batches)

    def _train_on_host(self, epoch: int, start: int, stop: int) -> float:
        # With users as means, a user is another one in each triplet.
        batch = self._sampler.triplets(
            epoch, start, self._batch_step(len(self._sampler.interactions)),
            together=self.users_as != "items",
        )  # fmt: skip
        user_side, item_side = self._side("users"), self._side("items")
        user_rows = user_side.lookup(batch.users, without=self._without(batch.items))
        mask = self._drop(epoch, start, user_rows)
        positions = np.concatenate([batch.items, batch.negatives])
        items = ops.merge(positions, ops.NO_PADDING)
        item_rows = item_side.lookup(items.indices)
        # What flows back: a share of a user's row to each item taken, and the negatives' sums.
        number = len(batch.users)
        upstream = np.empty((number + len(batch.negatives), user_rows.shape[1]), np.float32)
        rows, bags = np.empty((2, len(positions)), np.int64)
        shares = np.empty(len(positions), np.float32)
        losses = np.empty(len(batch.tiles) - 1, np.float64)
        reg = np.float32(self._l2)
        guard_fork()
        counter = counter_of_items(len(positions))
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
        item_side.apply(item_grad, items.indices)
        return float(losses.sum())


def regularization_of(interactions: Interactions) -> float:
    """The default `regularization`."""
    return min(max(_DISSENT * (1 - agreement(interactions)), _LEAST), _MOST)
