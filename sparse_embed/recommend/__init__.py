"""Recommendation from implicit feedback, with implicit's and LightFM's habits."""

from sparse_embed.recommend.base import FactorModel, FitProgress, NotFittedError
from sparse_embed.recommend.bpr import BPR
from sparse_embed.recommend.evaluation import (
    Popularity,
    Recommender,
    evaluate,
    leave_one_out,
    split,
)

__all__ = [
    "BPR",
    "FactorModel",
    "FitProgress",
    "NotFittedError",
    "Popularity",
    "Recommender",
    "evaluate",
    "leave_one_out",
    "split",
]
