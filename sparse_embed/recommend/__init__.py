"""Recommendation from implicit feedback, with implicit's and LightFM's habits."""

from sparse_embed.recommend.base import FactorModel
from sparse_embed.recommend.bpr import BPR
from sparse_embed.recommend.ccl import CCL
from sparse_embed.recommend.evaluation import Recommender, evaluate, evaluate_sampled
from sparse_embed.recommend.fitted import NotFittedError
from sparse_embed.recommend.loading import load
from sparse_embed.recommend.logistic import Logistic
from sparse_embed.recommend.popularity import Popularity
from sparse_embed.recommend.progress import EarlyStopping, FitProgress
from sparse_embed.recommend.softmax import SampledSoftmax
from sparse_embed.recommend.splits import leave_one_out, split

__all__ = [
    "BPR",
    "CCL",
    "EarlyStopping",
    "FactorModel",
    "FitProgress",
    "Logistic",
    "NotFittedError",
    "Popularity",
    "Recommender",
    "SampledSoftmax",
    "evaluate",
    "evaluate_sampled",
    "leave_one_out",
    "load",
    "split",
]
