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
import scipy.sparse

from sparse_embed._typing import IndexArray
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
    asked = questions(interactions)
    counts = np.bincount(interactions.columns, minlength=len(interactions.catalogue))
    wanted = np.zeros(len(counts), bool)  # whose takers have a say
    for question in asked:
        wanted[question.known] = True
        wanted[question.rivals] = True
        wanted[question.item] = True
    starts, takers, users = _takers(interactions, wanted)
    lengths = np.diff(interactions.indptr)[users]
    shares: list[float] = []
    for question in asked:
        if len(question.known) == 0 or len(question.rivals) == 0:
            continue
        places, each = _places(starts, question.known)
        share = np.repeat(1 / np.sqrt(counts[question.known]), each)
        weights = np.bincount(takers[places], share, len(users)) / lengths
        weights[np.searchsorted(users, question.user)] = 0
        places, each = _places(starts, np.append(question.rivals, question.item))
        votes = np.add.reduceat(weights[takers[places]], np.cumsum(each) - each)
        each[-1] -= 1  # the user took it, and has no say
        votes /= np.maximum(each, 1)
        shares.append(float(np.mean((1 + np.sign(votes[-1] - votes[:-1])) / 2)))
    return float(np.mean(shares)) if shares else 0.5


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
    rng = np.random.default_rng(0)
    columns, indptr = interactions.columns, interactions.indptr
    number = len(interactions)
    asked = rng.choice(number, _ASKED, replace=False) if number > _ASKED else np.arange(number)
    counts = np.bincount(columns, minlength=len(interactions.catalogue))
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
        rivals = order[np.clip(rank[item] + moves, 0, len(order) - 1)]
        taken = own[np.minimum(np.searchsorted(own, rivals), len(own) - 1)] == rivals
        found.append(Question(user, item, known, rivals[~taken]))
    return found


def _takers(
    interactions: Interactions, wanted: npt.NDArray[np.bool_]
) -> tuple[IndexArray, npt.NDArray[np.integer], IndexArray]:
    """Item i was taken by users[takers[starts[i]:starts[i+1]]], if it is wanted; users ascend."""
    kept = np.flatnonzero(wanted[interactions.columns])
    rows, columns = interactions.rows[kept], interactions.columns[kept]
    taking = np.zeros(len(interactions.indptr) - 1, bool)
    taking[rows] = True
    users = np.flatnonzero(taking)
    place = np.cumsum(taking, dtype=np.int64) - 1
    shape = (len(wanted), len(users))
    by_item = scipy.sparse.coo_array((np.ones(len(kept), np.int8), (columns, place[rows])), shape)
    found = by_item.tocsr()
    return found.indptr.astype(np.int64), found.indices, users


def _places(starts: IndexArray, items: npt.NDArray[np.integer]) -> tuple[IndexArray, IndexArray]:
    """From starts[i] to starts[i+1] of each item, one after the other; how many they are."""
    each = starts[items + 1] - starts[items]
    ends = np.cumsum(each)
    return np.arange(ends[-1]) + np.repeat(starts[items] - ends + each, each), each
