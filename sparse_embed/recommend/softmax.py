"""SampledSoftmax: pick what a user took out of sampled items."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from sparse_embed.errors import ArgumentError
from sparse_embed.recommend.contrast import ContrastModel
from sparse_embed.recommend.fitted import not_negative
from sparse_embed.recommend.model_store import kept
from sparse_embed.recommend.neighbours import agreement
from sparse_embed.recommend.options import Common
from sparse_embed.recommend.sampling import Interactions

__all__ = ["SampledSoftmax"]

_LR = 0.01
_LEAST, _MOST = 0.15, 0.4  # temperature of its own accord


class SampledSoftmax(ContrastModel):
    """Softmax over the item taken and sampled ones.

        -ln(e^z_i / (e^z_i + sum_j e^z_j)),   z = s(u, i) / temperature - offset_i

    where s is the cosine of the vectors, or, with `cosine=False`, <p_u, q_i> + b_i.

    Args:
        embedding_dim, epochs, lr, negative_power, common: as in `BPR`.
        regularization: weight of the L2 term, per interaction (of a negative: once a block).
        num_negatives: M, drawn for each block of M interactions, which all of them share; those
            that the user took do not count.
        in_batch: the negatives are the items of the block's own interactions.
        cosine: compare directions.
        temperature: how sharp the softmax is.  None: 1 - a, at least 0.15 and at most 0.4, where a
            is how far others' tastes predict a user's, as in `BPR`; 1 with `cosine=False`.
        correction: offset_i = correction * ln(expected number of draws of i).  1 makes the loss an
            unbiased estimate of the full softmax; 0 leaves the pressure on popular items, which
            are drawn more often, as it is.

    The defaults were chosen on the sets that `BPR` names.  Noisy data want a softer softmax; at
    0.1, 0.15, 0.2, 0.25, 0.3, 0.4 recall@20 was (negative_power=0.5, one seed)

        citeulike-a, a fifth left out (default 0.15)      0.263 0.267 0.251 0.238 0.225 0.206
        half of it, one item left out (0.16)              0.146 0.175 0.175 0.171 0.170 0.167
        venues near a user's, a fifth left out (0.21)     0.097 0.119 0.128 0.130 0.131 0.125
        a third of MovieLens 100k, a fifth (0.31)         0.101 0.119 0.134 0.143 0.151 0.162
        drawn in its shape, one item (0.26)               0.245 0.278 0.293 0.298 0.305 0.296

    Rarer items as negatives help too: a negative_power of 0.25 instead of 0.5 gave 0.269, on the
    venues 0.143, on the third of MovieLens 0.176.  Batches of 512 to 8192 differ by 2 %.
    `cosine=False` was worse nearly everywhere.

    References:
        Bengio, Senecal: Adaptive Importance Sampling. IEEE TNN 2008.  Wu et al.: On the
        Effectiveness of Sampled Softmax Loss for Item Recommendation. TOIS 2024 (cosine).
    """

    _loss = "softmax"

    def __init__(
        self,
        embedding_dim: int = 64,
        *,
        epochs: int = 20,
        lr: float | None = None,
        regularization: float = 0.0,
        negative_power: float = 0.25,
        num_negatives: int = 128,
        in_batch: bool = False,
        cosine: bool = True,
        temperature: float | None = None,
        correction: float = 0.0,
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
        if not isinstance(cosine, bool):
            raise ArgumentError(f"cosine: expected True or False, got {cosine!r}")
        self.cosine = cosine
        if temperature is not None:
            temperature = not_negative("temperature", temperature)
            if temperature == 0:
                raise ArgumentError("temperature: expected a number > 0, got 0")
        self.temperature = temperature
        self.correction = not_negative("correction", correction)

    def _hyperparameters(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("cosine", "temperature", "correction")}
        return {**super()._hyperparameters(), **own}

    def _prepare(self, interactions: Interactions) -> None:
        self._temperature = kept(
            self.store, "temperature", self.temperature, lambda: self._sharpness(interactions)
        )
        super()._prepare(interactions)

    def _sharpness(self, interactions: Interactions) -> float:
        """The default `temperature`."""
        if not self.cosine:
            return 1.0
        return min(max(1 - agreement(interactions), _LEAST), _MOST)

    def _numbers(self) -> tuple[float, float]:
        return self._temperature, 0.0

    def _offsets(self) -> np.ndarray | None:
        if self.correction == 0:
            return None
        expected = self.num_negatives * self._sampler.chances
        return np.asarray(self.correction * np.log(expected), np.float32)
