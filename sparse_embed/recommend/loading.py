"""Open a saved model without knowing which objective it was trained with."""

from __future__ import annotations

import os

from sparse_embed.errors import NotAStoreError
from sparse_embed.recommend.base import FactorModel
from sparse_embed.recommend.bpr import BPR
from sparse_embed.recommend.ccl import CCL
from sparse_embed.recommend.logistic import Logistic
from sparse_embed.recommend.softmax import SampledSoftmax
from sparse_embed.store import Store

__all__ = ["OBJECTIVES", "load"]

OBJECTIVES: dict[str, type[FactorModel]] = {
    "bpr": BPR,
    "logistic": Logistic,
    "softmax": SampledSoftmax,
    "ccl": CCL,
}


def load(
    path: str | os.PathLike[str],
    mode: str = "r",
    *,
    cache_bytes: int | None = None,
    device: str = "cpu",
) -> FactorModel:
    """The model at `path`, of whatever class; arguments and errors as `FactorModel.load`."""
    with Store.open(path, mode="r") as store:
        recorded = store.metadata.get("model")
    name = recorded.get("name") if isinstance(recorded, dict) else None
    for model in OBJECTIVES.values():
        if model.__name__ == name:
            return model.load(path, mode, cache_bytes=cache_bytes, device=device)
    raise NotAStoreError(f"{os.fspath(path)}: expected a recommender, found a store of {name}")
