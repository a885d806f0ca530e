"""CCL: point a user at what they took, and away from the rest beyond a margin."""

from __future__ import annotations

import math
from typing import Any, Unpack

import numpy as np

from sparse_embed.recommend.base import Common
from sparse_embed.recommend.contrast import ContrastModel
from sparse_embed.recommend.fitted import not_negative
from sparse_embed.recommend.model_store import kept
from sparse_embed.recommend.sampling import Interactions

__all__ = ["CCL"]

_LR = 0.01


class CCL(ContrastModel):
    """Cosine contrastive loss.

        1 - cos(p_u, q_i) + negative_weight mean_j max(0, cos(p_u, q_j) - margin)

    Args:
        embedding_dim, epochs, lr, negative_power, common: as in `BPR`.
        regularization: weight of the L2 term, per interaction (of a negative: once a block).
        num_negatives: M, drawn for each block of M interactions, which all of them share; those
            that the user took do not count.
        negative_weight: what the M negatives weigh together, w.  None: the root of how many items a
            user did not take for each one they took,
                w = sqrt(users * items / interactions - 1), at least 1
            (users and items of which there are interactions).
        margin: negatives below this cosine are left alone.
        in_batch: the negatives are the items of the block's own interactions.

    One weight for all data does not do: 100, good on citeulike-a (recall@20 of 0.27), pushed away
    what is popular on MovieLens 100k: 0.17 there, and 0.32 with a weight of 3 to 4.  Nor does one
    in proportion to what was not taken; recall@20, NDCG@20 of one split each, by 0.22 of it and by
    its root:

        citeulike-a, random fifth held out (root 24)      0.265, 0.223    0.282, 0.230
        citeulike-a, one item left out                    0.323, 0.182    0.310, 0.163
        MovieLens 100k, one left out (3.9)                0.369, 0.167    0.389, 0.176
        names in Python's sources, one left out (8.4)     0.479, 0.302    0.491, 0.292
        dot-product model, 8,000 x 9,600, a fifth (19)    0.064, 0.043    0.117, 0.086

    On the last one SampledSoftmax reaches 0.168, 0.127: compare the two before choosing this one.

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
        negative_power: float = 0.5,
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
    pairs = users * len(interactions.catalogue)
    return float(max(math.sqrt(pairs / len(interactions) - 1), 1.0))
