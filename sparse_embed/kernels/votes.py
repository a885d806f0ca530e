"""What others who took the same think of an item: see `recommend.neighbours.agreement`.

    w_v  = sum_j share[j] / n_v      j: what v and the user both took; n_v: how many v took
    vote = the mean w_v of an item's takers, the user left out; 0 without any

Order    sums over j, and over takers ascending, from left to right
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, device_function, serial_kernel, team_kernel

CHUNK = 16  # questions; by size, never by threads
ZERO = np.float64(0)


@functools.cache
def takers_cpu():
    """kernel(rows, columns, places, takers): who took each item, ascending.

    rows, columns  (n,) i4    pairs, by user
    places         (C,) i8    in: where the takers of each item begin, -1: they are not asked for;
                              out: rubbish
    takers         (m,) i4    out
    """
    digest = DIGEST

    @serial_kernel
    def kernel(rows, columns, places, takers):
        _ = digest
        for k in range(columns.shape[0]):
            place = places[columns[k]]
            if place >= 0:
                takers[place] = rows[k]
                places[columns[k]] = place + 1

    return kernel


@device_function
def vote(user, item, starts, takers, weights, indptr):
    """The mean weight of those who took this item."""
    total, count = ZERO, 0
    for s in range(starts[item], starts[item + 1]):
        taker = takers[s]
        if taker != user:
            total += weights[taker] / (indptr[taker + 1] - indptr[taker])
            count += 1
    return total / count if count > 0 else ZERO


@functools.cache
def votes_cpu():
    """kernel(users, offsets, known, candidates, share, starts, takers, indptr, counter, votes)

    users       (Q,) i8         who is asked about
    offsets     (Q + 1,) i8     question q has the items known[offsets[q]:offsets[q+1]]
    known       (K,) i8         columns
    candidates  (Q, M) i8       columns; -1: none
    share       (C,) f8         weight of an item that two users share
    starts      (C + 1,) i8     column c was taken by takers[starts[c]:starts[c+1]]
    takers      (m,) i4
    indptr      (U + 1,) i8     user u took indptr[u+1] - indptr[u] items
    counter     `new_counter`
    votes       (Q, M) f8       out; 0 of no candidate
    """
    digest = DIGEST

    @team_kernel
    def kernel(
        users, offsets, known, candidates, share, starts, takers, indptr, counter, votes
    ):  # fmt: skip
        _ = digest
        weights = np.zeros(indptr.shape[0] - 1, np.float64)
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= users.shape[0]:
                break
            for q in range(begin, min(users.shape[0], begin + CHUNK)):
                for i in range(offsets[q], offsets[q + 1]):
                    for s in range(starts[known[i]], starts[known[i] + 1]):
                        weights[takers[s]] += share[known[i]]
                for m in range(candidates.shape[1]):
                    votes[q, m] = ZERO
                    if candidates[q, m] >= 0:
                        item = candidates[q, m]
                        votes[q, m] = vote(users[q], item, starts, takers, weights, indptr)
                for i in range(offsets[q], offsets[q + 1]):
                    for s in range(starts[known[i]], starts[known[i] + 1]):
                        weights[takers[s]] = ZERO

    return kernel
