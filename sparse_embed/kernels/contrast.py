"""Scores and gradients of taken items against items that a block of interactions shares.

    s(u, i) = <p_u, q_i> + b_u + b_i           or, of unit vectors, cos(p_u, q_i)

A block is `size` interactions and the M negatives that stand against all of them, so a negative row
is looked up and updated once a block, and not once an interaction.  The loss of an interaction is
one of `contrast_losses`, plus reg/2 (|p|^2 + |q|^2) and, once a block, reg/2 |q_m|^2.

Order   within a block from left to right, blocks apart: threads cannot show
Layout  a tile of a block's interactions goes through its scores, losses and sums together: a
        negative's sum is read and written once a tile, and lies in registers meanwhile
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparse_embed.kernels._intrinsics import at, first, next_chunk, row_pointer, stack_f32
from sparse_embed.kernels._jit import (
    DIGEST,
    cold_function,
    device_function,
    team_kernel,
)
from sparse_embed.kernels.contrast_losses import cosine_loss, logistic_loss, softmax_loss
from sparse_embed.kernels.contrast_passes import cosine_passes, logistic_passes, softmax_passes
from sparse_embed.kernels.draws import GOLDEN
from sparse_embed.kernels.interactions import took
from sparse_embed.kernels.lanes import add_scaled_row, copy_row, store_scaled_row, zero_row
from sparse_embed.kernels.reduce import dot
from sparse_embed.kernels.row_dots import row_dots

LOSSES = {"logistic": logistic_loss, "softmax": softmax_loss, "cosine": cosine_loss}
PASSES = {"logistic": logistic_passes, "softmax": softmax_passes, "cosine": cosine_passes}
ZERO = np.float32(0)
ONE = np.float32(1)
_DRAWERS = 32
_MANY = 8  # items, for each negative: more than that are searched
TILE = 16  # interactions whose scores are at hand together


@device_function
def make_unit(row, dim):
    """Divide a row by its length, which is returned; a row of zeros stays and has length 1."""
    length = np.float32(math.sqrt(dot(row, row, dim)))
    if not length > ZERO:
        return ONE
    scale = ONE / length
    for d in range(dim):
        row[d] = row[d] * scale
    return length


@device_function
def along_unit(gradient, along, unit, rate):
    """A number of the gradient by x, from those by the unit vector x / |x| and of that vector.

    along: their product, summed; rate: 1 / |x|.
    """
    return (gradient - along * unit) * rate


@device_function
def through_unit(gradient, row, length, dim):
    """The gradient by x from the one by row = x / |x|, in place."""
    along = dot(gradient, row, dim)
    scale = ONE / length
    for d in range(dim):
        gradient[d] = along_unit(gradient[d], along, row[d], scale)


@cold_function
def add_biases(scores, bias, others, width, number, dim):
    """scores[m] = (scores[m] + bias) + others[m, dim]"""
    for m in range(number):
        scores[m] = scores[m] + bias + others[m * width + dim]


@device_function
def _add_weighted(total, slope, slopes, step, rows, width, count, dim):
    """total += sum_i slopes[i step] rows[i], left to right; returns slope + the sum of slopes."""
    for i in range(count):
        h = slopes[i * step]
        if h == ZERO:
            continue
        add_scaled_row(total, at(rows, i * width), h, dim)
        slope += h
    return slope


@cold_function
def sum_others(change, g, q, slopes, others, width, number, dim):
    """change = g q + sum_m slopes[m] others[m]; its last column sums the slopes."""
    total, slope = stack_f32(dim), g
    store_scaled_row(total, q, g, dim)
    slope = _add_weighted(total, slope, slopes, 1, others, width, number, dim)
    copy_row(change, total, dim)
    change[dim] = slope


@cold_function
def add_users(into, slopes, step, users, width, count, dim):
    """into += sum_i slopes[i step] users[i]; the last column adds the slopes."""
    total, slope = stack_f32(dim), into[dim]
    copy_row(total, into, dim)
    slope = _add_weighted(total, slope, slopes, step, users, width, count, dim)
    copy_row(into, total, dim)
    into[dim] = slope


@device_function
def drawer(column, shift):
    """Which list of a block's negatives a column would be in (int64; shift: uint64)."""
    return np.int64((np.uint64(column) * GOLDEN) >> shift)


@functools.cache
def mark_taken_cpu():
    """kernel(size, users, negatives, indptr, columns, bits, counter, marks)

    A user's items are looked up among the negatives, in `_DRAWERS` short lists for each of them;
    of a user with many, the negatives among the items.

    size         int         interactions of a block
    users        (B,) i8
    negatives    (N, M) i8   positions in the catalogue, by block
    indptr, columns, bits    what users took: see `interactions`
    counter      `new_counter()`
    marks        (B, M) u1   in: zeros; out: 1 where the user took it
    """
    digest = DIGEST

    @team_kernel
    def kernel(size, users, negatives, indptr, columns, bits, counter, marks):
        _ = digest
        batch, (blocks, number) = users.shape[0], negatives.shape
        logarithm = 6
        while (1 << logarithm) < _DRAWERS * number:
            logarithm += 1
        turn = np.uint64(64 - logarithm)
        heads_of, after_of = np.full(1 << logarithm, -1, np.int32), np.empty(number, np.int32)
        heads, after, column = first(heads_of), first(after_of), first(columns)
        while True:
            block = next_chunk(counter, 0)
            if block >= blocks:
                break
            other = row_pointer(negatives, block)
            for m in range(number):
                place = drawer(other[m], turn)
                after[m] = heads[place]
                heads[place] = m
            for k in range(block * size, min(batch, (block + 1) * size)):
                user, mark = users[k], row_pointer(marks, k)
                low, high = indptr[user], indptr[user + 1]
                if high - low > _MANY * number:
                    for m in range(number):
                        if took(other[m], columns, low, high, bits):
                            mark[m] = 1
                    continue
                for j in range(low, high):
                    m = heads[drawer(column[j], turn)]
                    while m >= 0:
                        if other[m] == column[j]:
                            mark[m] = 1
                        m = after[m]
            for m in range(number):
                heads[drawer(other[m], turn)] = -1

    return kernel


@functools.cache
def contrast_cpu(dim: int, loss_name: str, unit: bool):
    """kernel(size, a, b, reg, users, items, negatives, marks, item_offsets, offsets, counter,
              losses)

    Rows come in, their gradients go out in the same place.

    size          int              interactions of a block
    a, b, reg     f4               of the loss; L2 weight
    users         (B, D+1) f4      p_u and b_u; with `unit` the last column is not used
    items         (B, D+1) f4      q_i and b_i of the taken items
    negatives     (N * M, D+1) f4  by block
    marks         (B, M) u1        see `mark_taken_cpu`
    item_offsets  (B,) f4          offset of each taken item (softmax)
    offsets       (N * M,) f4      of each negative
    counter       `new_counter()`
    losses        (N,) f8          out: sums by block
    """
    digest = DIGEST
    width, loss_of = dim + 1, PASSES[loss_name]

    @team_kernel
    def kernel(
        size, a, b, reg, users, items, negatives, marks, item_offsets, offsets, counter, losses
    ):  # fmt: skip
        _ = digest
        batch, number = users.shape[0], marks.shape[1]
        scores, slopes = np.empty((TILE, number), np.float32), np.empty(TILE, np.float32)
        terms = np.empty(number, np.float32)
        own = np.empty(TILE, np.float32)
        user_lengths, item_lengths = np.ones(TILE, np.float32), np.ones(TILE, np.float32)
        changes = np.empty((TILE, width), np.float32)
        lengths, sums = np.ones(number, np.float32), np.empty((number, width), np.float32)
        while True:
            block = next_chunk(counter, 0)
            if block >= losses.shape[0]:
                break
            begin, end = block * number, min(batch, (block + 1) * size)
            others, shifts = row_pointer(negatives, begin), at(first(offsets), begin)
            for m in range(number):
                zero_row(row_pointer(sums, m), width)
                if unit:
                    lengths[m] = make_unit(row_pointer(negatives, begin + m), dim)
            loss = 0.0
            for start in range(block * size, end, TILE):
                count = min(TILE, end - start)
                for i in range(count):
                    p, q = row_pointer(users, start + i), row_pointer(items, start + i)
                    if unit:
                        user_lengths[i], item_lengths[i] = make_unit(p, dim), make_unit(q, dim)
                    own[i] = dot(p, q, dim)
                    row_dots(row_pointer(scores, i), p, others, width, number, dim)
                    if not unit:
                        own[i] = own[i] + p[dim] + q[dim]
                        add_biases(row_pointer(scores, i), p[dim], others, width, number, dim)
                for i in range(count):
                    second = item_offsets[start + i] if loss_name == "softmax" else b
                    found, slopes[i] = loss_of(
                        own[i], row_pointer(scores, i), shifts, row_pointer(marks, start + i),
                        number, a, second, first(terms),
                    )  # fmt: skip
                    loss += found
                for i in range(count):
                    sum_others(
                        row_pointer(changes, i), slopes[i], row_pointer(items, start + i),
                        row_pointer(scores, i), others, width, number, dim,
                    )  # fmt: skip
                for m in range(number):
                    add_users(
                        row_pointer(sums, m), at(row_pointer(scores, 0), m), number,
                        row_pointer(users, start), width, count, dim,
                    )  # fmt: skip
                for i in range(count):
                    change, g = row_pointer(changes, i), slopes[i]
                    p, q = row_pointer(users, start + i), row_pointer(items, start + i)
                    if unit:
                        along_user, along_item = dot(change, p, dim), g * own[i]
                        user_rate, item_rate = ONE / user_lengths[i], ONE / item_lengths[i]
                        for d in range(dim):
                            user, item = p[d], q[d]
                            p[d] = along_unit(change[d], along_user, user, user_rate) + (
                                reg * user_lengths[i] * user
                            )
                            q[d] = along_unit(g * user, along_item, item, item_rate) + (
                                reg * item_lengths[i] * item
                            )
                        p[dim] = ZERO
                        q[dim] = ZERO
                    else:
                        for d in range(dim):
                            user, item = p[d], q[d]
                            p[d] = change[d] + reg * user
                            q[d] = g * user + reg * item
                        p[dim] = change[dim] + reg * p[dim]
                        q[dim] = g + reg * q[dim]
            for m in range(number):
                other, total = row_pointer(negatives, begin + m), row_pointer(sums, m)
                if unit:
                    through_unit(total, other, lengths[m], dim)
                    for d in range(dim):
                        other[d] = total[d] + reg * lengths[m] * other[d]
                    other[dim] = ZERO
                else:
                    for d in range(width):
                        other[d] = total[d] + reg * other[d]
            losses[block] = loss

    return kernel
