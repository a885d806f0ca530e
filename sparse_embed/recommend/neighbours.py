"""How well the tastes of others predict: what tells clear data from noisy ones.

An objective that may learn clear data by heart learns noise by heart as well, so default weights
ask this first: `regularization` of BPR and Logistic, `temperature` of SampledSoftmax, and
`negative_weight` of CCL.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_embed._typing import IndexArray
from sparse_embed.kernels._jit import guard_fork, new_counter
from sparse_embed.kernels.votes import CHUNK, takers_cpu, votes_cpu
from sparse_embed.recommend.sampling import Interactions

__all__ = ["agreement", "questions", "regularization_of"]

_ASKED = 256  # interactions: the answer's standard error is 0.01 to 0.02
_RIVALS = 16  # items against each
_NEAR = 20  # of the catalogue, a 20th less and a 20th more popular than the item, or 8 items
_MOST = 128  # items of a user by which others are known
_DISSENT = 0.2  # regularization: of how little others agree, ...
_DENSE = 50  # ... less for data denser than this, ...
_WEAKEST, _STRONGEST = 0.015, 0.12  # ... and its bounds

_Items = npt.NDArray[np.int32]


def agreement(interactions: Interactions) -> float:
    """The chance that others speak for an item which a user took rather than for a rival.

    For interactions of a user u with an item i, as if they were not known: each other user v weighs

        w_v = sum_j 1 / sqrt(c_j) / n_v,    j: what both u and v took; c_j took j, v took n_v,

    and an item is spoken for by the mean w_v of those who took it.  A rival is an item about as
    popular as i that u did not take: that some items are popular is not what is asked.

    Returns:
        From 0 to 1: the share of rivals with less than i, those with as much counting half.
        0.5: others' tastes say nothing.  It depends on the data alone and is the same each time.
    """
    guard_fork()
    counts = np.bincount(interactions.columns, minlength=len(interactions.catalogue))
    asked = [q for q in _questions(interactions, counts) if len(q.known) and len(q.rivals)]
    if not asked:
        return 0.5
    known = np.concatenate([question.known for question in asked], dtype=np.int64)
    offsets = np.cumsum([0] + [len(question.known) for question in asked])
    candidates = np.full((len(asked), 1 + _RIVALS), -1, np.int64)
    for row, question in zip(candidates, asked, strict=True):
        row[0] = question.item
        row[1 : 1 + len(question.rivals)] = question.rivals
    wanted = np.zeros(len(counts), bool)  # whose takers have a say
    wanted[known] = True
    wanted[candidates[candidates >= 0]] = True
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(np.where(wanted, counts, 0), out=starts[1:])
    takers = np.empty(starts[-1], np.int32)
    places = np.where(wanted, starts[:-1], -1)
    takers_cpu()(interactions.rows, interactions.columns, places, takers)
    users = np.array([question.user for question in asked], np.int64)
    votes = np.empty(candidates.shape, np.float64)
    votes_cpu()(
        users, offsets, known, candidates, 1 / np.sqrt(np.maximum(counts, 1)), starts, takers,
        interactions.indptr, new_counter(-(-len(asked) // CHUNK)), votes,
    )  # fmt: skip
    there = candidates[:, 1:] >= 0
    less = (1 + np.sign(votes[:, :1] - votes[:, 1:])) / 2
    return float(np.mean((less * there).sum(axis=1) / there.sum(axis=1)))


def regularization_of(interactions: Interactions) -> float:
    """The default `regularization` of BPR and Logistic: see `BPR`."""
    users = int(np.count_nonzero(np.diff(interactions.indptr)))
    density = len(interactions) / math.sqrt(users * len(interactions.catalogue))
    wanted = _DISSENT * (1 - agreement(interactions)) * math.sqrt(min(1.0, _DENSE / density))
    return min(max(wanted, _WEAKEST), _STRONGEST)


class Question(NamedTuple):
    """Would `user` take `item` rather than one of `rivals`, having taken `known`?"""

    user: int
    item: int
    known: _Items
    rivals: IndexArray


def questions(interactions: Interactions) -> list[Question]:
    """About interactions drawn without regard to anything; items as columns of the catalogue."""
    columns, width = interactions.columns, len(interactions.catalogue)
    return _questions(interactions, np.bincount(columns, minlength=width))


def _questions(interactions: Interactions, counts: IndexArray) -> list[Question]:
    """counts: how many took each item."""
    rng = np.random.default_rng(0)
    columns, indptr = interactions.columns, interactions.indptr
    number = len(interactions)
    asked = rng.choice(number, _ASKED, replace=False) if number > _ASKED else np.arange(number)
    order = np.argsort(counts, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    reach = max(8, len(order) // _NEAR)
    found: list[Question] = []
    for at in asked:
        user, item = int(interactions.rows[at]), int(columns[at])
        own = columns[indptr[user] : indptr[user + 1]]
        known = own[own != item]
        if len(known) > _MOST:
            known = rng.choice(known, _MOST, replace=False)
        moves = rng.integers(-reach, reach + 1, _RIVALS)
        rivals = order[np.minimum(np.maximum(rank[item] + moves, 0), len(order) - 1)]
        taken = own[np.minimum(np.searchsorted(own, rivals), len(own) - 1)] == rivals
        found.append(Question(user, item, known, rivals[~taken]))
    return found
