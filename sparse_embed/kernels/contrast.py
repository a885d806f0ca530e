"""Scores and gradients of taken items against items that a block of interactions shares.

    s(u, i) = <p_u, q_i> + b_u + b_i           or, of unit vectors, cos(p_u, q_i)

A block is `size` interactions and the M negatives that stand against all of them, so a negative row
is looked up and updated once a block, and not once an interaction.  The loss of an interaction is
one of `contrast_losses`, plus reg/2 (|p|^2 + |q|^2) and, once a block, reg/2 |q_m|^2.

Order   within a block from left to right, blocks apart: threads cannot show
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import prange

from sparse_embed.kernels._intrinsics import at, first, row_pointer, stack_f32
from sparse_embed.kernels._jit import DIGEST, cold_function, cpu_kernel, device_function
from sparse_embed.kernels.contrast_losses import cosine_loss, logistic_loss, softmax_loss
from sparse_embed.kernels.interactions import took
from sparse_embed.kernels.reduce import dot

LOSSES = {"logistic": logistic_loss, "softmax": softmax_loss, "cosine": cosine_loss}
ZERO = np.float32(0)
ONE = np.float32(1)


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


@functools.cache
def mark_taken_cpu():
    """kernel(size, users, negatives, indptr, columns, bits, shift, marks)

    size         int         interactions of a block
    users        (B,) i8
    negatives    (N, M) i8   positions in the catalogue, by block
    indptr, columns, bits, shift   what users took: see `interactions`
    marks        (B, M) u1   out: 1 where the user took it
    """
    digest = DIGEST

    @cpu_kernel
    def kernel(size, users, negatives, indptr, columns, bits, shift, marks):
        _ = digest
        batch = users.shape[0]
        for block in prange(negatives.shape[0]):
            for k in range(block * size, min(batch, (block + 1) * size)):
                user = users[k]
                low, high = indptr[user], indptr[user + 1]
                for m in range(negatives.shape[1]):
                    taken = took(user, negatives[block, m], columns, low, high, bits, shift)
                    marks[k, m] = 1 if taken else 0

    return kernel


@functools.cache
def contrast_cpu(dim: int, loss_name: str, unit: bool):
    """kernel(size, a, b, reg, users, items, negatives, marks, item_offsets, offsets, losses)

    Rows come in, their gradients go out in the same place.

    size          int              interactions of a block
    a, b, reg     f4               of the loss; L2 weight
    users         (B, D+1) f4      p_u and b_u; with `unit` the last column is not used
    items         (B, D+1) f4      q_i and b_i of the taken items
    negatives     (N * M, D+1) f4  by block
    marks         (B, M) u1        see `mark_taken_cpu`
    item_offsets  (B,) f4          offset of each taken item (softmax)
    offsets       (N * M,) f4      of each negative
    losses        (N,) f8          out: sums by block
    """
    digest = DIGEST
    loss_of = LOSSES[loss_name]

    @cold_function
    def run_block(
        block, size, a, b, reg, users, items, negatives, marks, item_offsets, offsets, batch, number
    ):
        change = stack_f32(dim)
        scores_of_block = np.empty(number, np.float32)
        lengths = np.ones(number, np.float32)
        sums = np.zeros((number, dim + 1), np.float32)
        scores = first(scores_of_block)
        loss = 0.0
        if unit:
            for m in range(number):
                lengths[m] = make_unit(row_pointer(negatives, block * number + m), dim)
        for k in range(block * size, min(batch, (block + 1) * size)):
            p, q = row_pointer(users, k), row_pointer(items, k)
            user_length = item_length = ONE
            score = ZERO
            if unit:
                user_length, item_length = make_unit(p, dim), make_unit(q, dim)
                score = dot(p, q, dim)
            else:
                score = dot(p, q, dim) + p[dim] + q[dim]
            for m in range(number):
                other = row_pointer(negatives, block * number + m)
                if unit:
                    scores[m] = dot(p, other, dim)
                else:
                    scores[m] = dot(p, other, dim) + p[dim] + other[dim]
            second = item_offsets[k] if loss_name == "softmax" else b
            found, g = loss_of(
                score, scores, at(first(offsets), block * number), row_pointer(marks, k),
                number, a, second,
            )  # fmt: skip
            loss += found
            for d in range(dim):
                change[d] = g * q[d]
            total = g
            for m in range(number):
                h = scores[m]
                if h == ZERO:
                    continue
                other, into = row_pointer(negatives, block * number + m), row_pointer(sums, m)
                for d in range(dim):
                    change[d] = change[d] + h * other[d]
                    into[d] = into[d] + h * p[d]
                into[dim] = into[dim] + h
                total += h
            if unit:
                along_user, along_item = dot(change, p, dim), g * score
                user_rate, item_rate = ONE / user_length, ONE / item_length
                for d in range(dim):
                    user, item = p[d], q[d]
                    p[d] = along_unit(change[d], along_user, user, user_rate) + (
                        reg * user_length * user
                    )
                    q[d] = along_unit(g * user, along_item, item, item_rate) + (
                        reg * item_length * item
                    )
                p[dim] = ZERO
                q[dim] = ZERO
            else:
                for d in range(dim):
                    user, item = p[d], q[d]
                    p[d] = change[d] + reg * user
                    q[d] = g * user + reg * item
                p[dim] = total + reg * p[dim]
                q[dim] = g + reg * q[dim]
        for m in range(number):
            other, total_row = row_pointer(negatives, block * number + m), row_pointer(sums, m)
            if unit:
                through_unit(total_row, other, lengths[m], dim)
                for d in range(dim):
                    other[d] = total_row[d] + reg * lengths[m] * other[d]
                other[dim] = ZERO
            else:
                for d in range(dim + 1):
                    other[d] = total_row[d] + reg * other[d]
        return loss

    @cpu_kernel
    def kernel(
        size, a, b, reg, users, items, negatives, marks, item_offsets, offsets, losses
    ):  # fmt: skip
        _ = digest
        batch, number = users.shape[0], marks.shape[1]
        for block in prange(losses.shape[0]):
            losses[block] = run_block(
                block, size, a, b, reg, users, items, negatives, marks, item_offsets, offsets,
                batch, number,
            )  # fmt: skip

    return kernel
