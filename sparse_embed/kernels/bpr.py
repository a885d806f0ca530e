"""Bayesian personalised ranking: the loss of a batch of triplets, and its gradients.

A triplet is (user u, an item i the user took, an item j the user did not take), with the loss

    -ln sigmoid(x) + reg/2 (|p_u|^2 + |q_i|^2 + |q_j|^2),   x = <[p_u, 1], q_i - q_j>

(Rendle et al., UAI 2009; the last number of an item's row is its bias).  With g = 1 - sigmoid(x)

    by p_u   g (q_j - q_i) + reg p_u       summed over the triplets of u
    by q_i   -g [p_u, 1] + reg q_i         a share, -g, of the user's row for each position: the
                                           engine's `backward` sums them
    by q_j   g [p_u, 1] + reg q_j          summed here: j stands against several triplets

Layout   triplets lie by user.  Rows of users and items come in once a batch each, so that they and
         the sums stay in the cache however large the batch: no (B, D) array exists.
Penalty  of items: once for each position of a merged batch (a shared j: once)
Order    from left to right within a tile of users, tiles apart: threads cannot show
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import (
    at,
    first,
    next_chunk,
    prefetch_row,
    row_pointer,
    stack_f32,
)
from sparse_embed.kernels._jit import DIGEST, cold_function, device_function, team_kernel
from sparse_embed.kernels.differences import add_scaled_difference, dot_difference
from sparse_embed.kernels.exponential import exp_of, log_of
from sparse_embed.kernels.lanes import add_scaled_row, copy_row, zero_row

ONE = np.float32(1)
ZERO = np.float32(0)
CHUNK = 64  # items; by size, never by threads
_AHEAD = 12
_GROUP = 64  # triplets whose rows stay in the cache
_TERMS = 128


@device_function
def slope_and_loss(x):
    """1 - sigmoid(x) and -ln sigmoid(x)."""
    e = exp_of(-abs(x))  # serves both without overflow
    return (e if x > ZERO else ONE) / (ONE + e), log_of(e) - min(x, ZERO)


@device_function
def penalty(reg, count):
    """What a row is added to its gradient with, once for each of `count` positions."""
    return reg * np.float32(count)


@cold_function
def to_slopes(shares, opponents, terms, begin, end):
    """Scores x to -g = sigmoid(x) - 1 in place, 0 where there is no opponent; the summed loss."""
    loss = 0.0
    for start in range(begin, end, _TERMS):
        count = min(_TERMS, end - start)
        share, opponent = at(shares, start), at(opponents, start)
        for k in range(count):  # as vectors; the sum below goes one by one
            g, own = slope_and_loss(share[k])
            share[k] = -g if opponent[k] >= 0 else ZERO
            terms[k] = own if opponent[k] >= 0 else ZERO
        for k in range(count):
            loss += np.float64(terms[k])
    return loss


@functools.cache
def bpr_gradients_cpu(dim: int):
    """kernel(size, reg, starts, users, items, rows, opponents, tiles, bags, shares, upstream,
              counter, losses)

    size       int               users of a tile
    reg        f4                L2 weight
    starts     (U+1,) i8         triplets [starts[u], starts[u+1]) are those of user u
    users      (U, D+1) f4       in: p_u and a last column not used; out: its gradient, and 0
    items      (V, D+1) f4       q of the items of the batch
    rows       (B + M,) i8       where each item taken, and each negative, is among them
    opponents  (B,) i4           the negative of each triplet; -1: none, it does not count
    tiles      (T+1,) i8         tile t has the negatives [tiles[t], tiles[t+1])
    bags       (B + M,) i8       out: the row of `upstream` for each position of `rows`, and
    shares     (B + M,) f4       out: how much of it is that item's gradient: -g; 1 of negatives
    upstream   (U + M, D+1) f4   out: [p_u, 1], and behind them the gradients by the negatives
    counter    `new_counter`
    losses     (T,) f8           out: sums of -ln sigmoid(x) by tile
    """
    digest = DIGEST
    width = dim + 1

    @team_kernel
    def kernel(
        size, reg, starts, users, items, rows, opponents, tiles, bags, shares, upstream, counter,
        losses,
    ):  # fmt: skip
        _ = digest
        number, batch = users.shape[0], opponents.shape[0]
        row_of, bag_of, share = first(rows), first(bags), first(shares)
        start_of, opponent = first(starts), first(opponents)
        terms, total = stack_f32(_TERMS), stack_f32(dim)
        while True:
            tile = next_chunk(counter, 0)
            if tile >= losses.shape[0]:
                break
            for m in range(tiles[tile], tiles[tile + 1]):
                prefetch_row(items, row_of[batch + m], width)
                zero_row(row_pointer(upstream, number + m), width)
                bag_of[batch + m] = number + m
                share[batch + m] = ONE
            loss = 0.0
            # A few users at a time, whose rows stay in the cache, in three passes: one triplet's
            # score, slope and sums wait for each other, but not for the next triplet's.
            end, last = tile * size, min(number, (tile + 1) * size)
            while end < last:
                begin, end = end, end + 1
                while end < last and start_of[end + 1] - start_of[begin] <= _GROUP:
                    end += 1
                for u in range(begin, end):
                    p = row_pointer(upstream, u)
                    copy_row(p, row_pointer(users, u), dim)
                    p[dim] = ONE
                    for k in range(start_of[u], start_of[u + 1]):
                        prefetch_row(items, row_of[min(k + _AHEAD, batch - 1)], width)
                        bag_of[k] = u
                        taken = row_pointer(items, row_of[k])
                        other = row_pointer(items, row_of[batch + max(opponent[k], 0)])
                        x = dot_difference(p, taken, other, dim)
                        share[k] = x + (taken[dim] - other[dim])
                loss += to_slopes(share, opponent, terms, start_of[begin], start_of[end])
                for u in range(begin, end):
                    p = row_pointer(upstream, u)
                    zero_row(total, dim)
                    add_scaled_row(total, p, penalty(reg, start_of[u + 1] - start_of[u]), dim)
                    for k in range(start_of[u], start_of[u + 1]):
                        m = opponent[k]
                        if m < 0:
                            continue
                        taken = row_pointer(items, row_of[k])
                        other = row_pointer(items, row_of[batch + m])
                        add_scaled_difference(total, taken, other, share[k], dim)
                        add_scaled_row(row_pointer(upstream, number + m), p, -share[k], width)
                    grad = row_pointer(users, u)
                    copy_row(grad, total, dim)
                    grad[dim] = ZERO
            losses[tile] = loss

    return kernel


@functools.cache
def places_cpu():
    """kernel(starts, positions, counter, rows): which unique item each position of a merged batch
    has.

    starts     (V+1,) i8, positions (n,) i8   of `ops.merge`
    counter    `new_counter`
    rows       (n,) i8                        out: v for the positions of segment v
    """
    digest = DIGEST

    @team_kernel
    def kernel(starts, positions, counter, rows):
        _ = digest
        number = starts.shape[0] - 1
        row_of, position, start = first(rows), first(positions), first(starts)
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= number:
                break
            for v in range(begin, min(number, begin + CHUNK)):
                for s in range(start[v], start[v + 1]):
                    row_of[position[s]] = v

    return kernel


@functools.cache
def penalize_cpu(dim: int):
    """kernel(reg, starts, rows, counter, grad): grad[v] += reg (starts[v+1] - starts[v]) rows[v]

    reg f4 · starts (V+1,) i8 · rows, grad (V, D+1) f4 · counter `new_counter`
    """
    digest = DIGEST
    width = dim + 1

    @team_kernel
    def kernel(reg, starts, rows, counter, grad):
        _ = digest
        number = rows.shape[0]
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= number:
                break
            for v in range(begin, min(number, begin + CHUNK)):
                row, out = row_pointer(rows, v), row_pointer(grad, v)
                add_scaled_row(out, row, penalty(reg, starts[v + 1] - starts[v]), width)

    return kernel
