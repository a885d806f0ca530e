"""CCL: point a user at what they took, and away from the rest beyond a margin."""

from __future__ import annotations

from typing import Any, Unpack

from sparse_embed.recommend.base import Common
from sparse_embed.recommend.contrast import ContrastModel
from sparse_embed.recommend.fitted import not_negative

__all__ = ["CCL"]

_LR = 0.01


class CCL(ContrastModel):
    """Cosine contrastive loss.

        1 - cos(p_u, q_i) + negative_weight mean_j max(0, cos(p_u, q_j) - margin)

    Args:
        embedding_dim, epochs, lr, regularization, negative_power, common: as in `BPR`.
        num_negatives: M, drawn for each block of M interactions, which all of them share; those
            that the user took do not count.
        negative_weight: what the M negatives weigh together.
        margin: negatives below this cosine are left alone.
        in_batch: the negatives are the items of the block's own interactions.

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
        negative_weight: float = 100.0,
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
        self.negative_weight = not_negative("negative_weight", negative_weight)
        self.margin = not_negative("margin", margin)

    def _hyperparameters(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("negative_weight", "margin")}
        return {**super()._hyperparameters(), **own}

    def _numbers(self) -> tuple[float, float]:
        return self.negative_weight, self.margin
