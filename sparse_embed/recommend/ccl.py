"""CCL: point a user at what they took, and away from the rest beyond a margin."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from sparse_embed.recommend.contrast import ContrastModel
from sparse_embed.recommend.fitted import not_negative
from sparse_embed.recommend.model_store import kept
from sparse_embed.recommend.neighbours import agreement
from sparse_embed.recommend.options import Common
from sparse_embed.recommend.sampling import Interactions

__all__ = ["CCL"]

_LR = 0.01
_LEAST, _MOST = 4.0, 0.6  # weight; power of what was not taken


class CCL(ContrastModel):
    """Cosine contrastive loss.

        1 - cos(p_u, q_i) + negative_weight mean_j max(0, cos(p_u, q_j) - margin)

    Args:
        embedding_dim, epochs, lr, negative_power, common: as in `BPR`.
        regularization: weight of the L2 term, per interaction (of a negative: once a block).
        num_negatives: M, drawn for each block of M interactions, which all of them share; those
            that the user took do not count.
        negative_weight: what the M negatives weigh together, w.  None: a power of how many items a
            user did not take for each one they took, r = users * items / interactions - 1 (users
            and items of which there are interactions): w = r ** p with
            p = 1.5 (a - 0.5), at most 0.6, but at least 4 or the root of r, if that is less, and
            at least 1.  a is how far others' tastes predict a user's, as in `BPR`: in sparse noise
            the items not taken say little.
        margin: negatives below this cosine are left alone.
        in_batch: the negatives are the items of the block's own interactions.

    One weight for all data does not do, nor does the same power of r; recall@20 by its root and by
    the default, at the negative_power of then and now (0.5, 0.25), one seed:

        citeulike-a, a fifth left out (r = 576)             0.265    0.274
        names in Python's sources, one item (58)            0.496    0.515
        a third of MovieLens 100k, a fifth (55)             0.090    0.154
        MovieLens 100k, 40 % of its items, one item (15)    0.527    0.523

    On noisy data SampledSoftmax and BPR are better (0.176 and 0.196 on the third one), and so they
    are where users took two or three items each: tags of questions, one left out, 0.526, 0.539 and
    0.612.  Where little but popularity predicts, a cosine cannot say it: words of a tag's
    questions, a fifth left out, 0.182, the popularity list 0.203, BPR 0.216.  Compare with
    `Popularity` first.

    References:
        Mao, Zhu, Wang, Dai, Dong, Xiao, He: SimpleX: A Simple and Strong Baseline for
        Collaborative Filtering. CIKM 2021.  (`users_as="items"` is its averaged behaviour.)
    """

    cosine = True
    _loss = "cosine"

    def __init__(
        self,
        embedding_dim: int = 64,
        *,
        epochs: int = 20,
        lr: float | None = None,
        regularization: float = 0.0,
        negative_power: float = 0.25,
        num_negatives: int = 128,
        negative_weight: float | None = None,
        margin: float = 0.5,
        in_batch: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            embedding_dim,
            epochs=epochs,
            lr=lr,
            default_lr=_LR,
            regularization=regularization,
            negative_power=negative_power,
            num_negatives=num_negatives,
            in_batch=in_batch,
            common=common,
        )
        if negative_weight is not None:
            negative_weight = not_negative("negative_weight", negative_weight)
        self.negative_weight = negative_weight
        self.margin = not_negative("margin", margin)

    def _hyperparameters(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("negative_weight", "margin")}
        return {**super()._hyperparameters(), **own}

    def _prepare(self, interactions: Interactions) -> None:
        self._weight = kept(
            self.store, "negative_weight", self.negative_weight, lambda: weight_of(interactions)
        )
        super()._prepare(interactions)

    def _numbers(self) -> tuple[float, float]:
        return self._weight, self.margin


def weight_of(interactions: Interactions) -> float:
    """The default `negative_weight`."""
    users = int(np.count_nonzero(np.diff(interactions.indptr)))
    left = users * len(interactions.catalogue) / len(interactions) - 1  # above 0: see `from_csr`
    power = min(max(1.5 * (agreement(interactions) - 0.5), 0.0), _MOST)
    return float(max(left**power, min(left**0.5, _LEAST), 1.0))
