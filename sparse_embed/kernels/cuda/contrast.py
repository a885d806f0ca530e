"""Taken items against shared ones on the device: formulas, shapes, order of `kernels/contrast.py`.

    units       rows become unit vectors, in place; their lengths
    scores      of every interaction with its own item and with the M of its block
    slopes      losses, and derivatives in place of the scores
    changes     g q + sum_m h_m q_m, the gradient by p (unit vectors: by its direction)
    sums        sum_k h_k p_k, the gradient by a negative, likewise
    finish_own, finish_others   gradients in place of the rows

Shapes   as there · own, slopes (B,) f4 · scores (B, M) f4 · changes (B, D+1) f4, the last column
         sums the slopes · sums (N * M, D+1) f4 · lengths (n,) f4, (1,) when not `unit`
Order    one thread a number, from left to right as there, so the CPU's bits
"""

from __future__ import annotations

import functools
import math

import numba
import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.contrast import LOSSES, along_unit
from sparse_embed.kernels.cuda._rows import group_mask
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel
from sparse_embed.kernels.cuda.bpr import LANES
from sparse_embed.kernels.cuda.reduce import group_dot, tree

_ZERO = np.float32(0)
_ONE = np.float32(1)


@functools.cache
def units_cuda(dim: int):
    """kernel(rows, lengths); a group of lanes a row."""
    lanes, groups = LANES.lanes, LANES.groups
    num_parts = groups * 16
    digest = DIGEST

    @cuda_kernel
    def units(rows, lengths):
        _ = digest
        parts = cuda.shared.array(num_parts, numba.float32)
        work = cuda.local.array(16, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        at = cuda.threadIdx.x // lanes * 16
        for k in range(cuda.grid(1) // lanes, rows.shape[0], cuda.gridsize(1) // lanes):
            squares = group_dot(rows, k, rows, k, parts, at, work, lane, lanes, mask, dim)
            length = np.float32(math.sqrt(squares))
            if length > _ZERO:
                scale = _ONE / length
                for d in range(lane, dim, lanes):
                    rows[k, d] = rows[k, d] * scale
            else:
                length = _ONE
            if lane == 0:
                lengths[k] = length

    return units


@device_function
def _dot(a, i, b, k, lanes, work, dim):
    """sum_d a[i, d] b[k, d] by one thread, in the order of `kernels/reduce.py`."""
    for j in range(16):
        lanes[j] = _ZERO
    for block in range(dim // 16):
        for j in range(16):
            d = block * 16 + j
            lanes[j] = lanes[j] + a[i, d] * b[k, d]
    for j in range(dim % 16):
        d = dim - dim % 16 + j
        lanes[j] = lanes[j] + a[i, d] * b[k, d]
    return tree(lanes, 0, work)


@functools.cache
def scores_cuda(dim: int, unit: bool):
    """kernel(size, users, items, negatives, own, scores); a thread a pair."""
    digest = DIGEST

    @cuda_kernel
    def scores_of(size, users, items, negatives, own, scores):
        _ = digest
        lanes = cuda.local.array(16, numba.float32)
        work = cuda.local.array(16, numba.float32)
        number = scores.shape[1]
        for place in range(cuda.grid(1), scores.shape[0] * (number + 1), cuda.gridsize(1)):
            k, m = place // (number + 1), place % (number + 1)
            if m == number:
                score = _dot(users, k, items, k, lanes, work, dim)
                if not unit:
                    score = score + users[k, dim] + items[k, dim]
                own[k] = score
            else:
                other = k // size * number + m
                score = _dot(users, k, negatives, other, lanes, work, dim)
                if not unit:
                    score = score + users[k, dim] + negatives[other, dim]
                scores[k, m] = score

    return scores_of


@functools.cache
def slopes_cuda(loss_name: str):
    """kernel(size, a, b, own, scores, marks, item_offsets, offsets, slopes, losses)

    losses (B,) f8; a thread an interaction.
    """
    loss_of = LOSSES[loss_name]
    of_items = loss_name == "softmax"
    digest = DIGEST

    @cuda_kernel
    def slopes_of(size, a, b, own, scores, marks, item_offsets, offsets, slopes, losses):
        _ = digest
        number = scores.shape[1]
        for k in range(cuda.grid(1), scores.shape[0], cuda.gridsize(1)):
            first = k // size * number
            second = item_offsets[k] if of_items else b
            loss, slope = loss_of(
                own[k], scores[k], offsets[first : first + number], marks[k], number, a, second
            )
            losses[k] = loss
            slopes[k] = slope

    return slopes_of


@functools.cache
def changes_cuda(dim: int):
    """kernel(size, items, negatives, scores, slopes, changes); a thread a number."""
    digest = DIGEST

    @cuda_kernel
    def changes_of(size, items, negatives, scores, slopes, changes):
        _ = digest
        number, width = scores.shape[1], dim + 1
        for place in range(cuda.grid(1), scores.shape[0] * width, cuda.gridsize(1)):
            k, d = place // width, place % width
            first = k // size * number
            total = slopes[k] if d == dim else slopes[k] * items[k, d]
            for m in range(number):
                h = scores[k, m]
                if h != _ZERO:
                    total = total + (h if d == dim else h * negatives[first + m, d])
            changes[k, d] = total

    return changes_of


@functools.cache
def sums_cuda(dim: int):
    """kernel(size, users, scores, sums); a thread a number."""
    digest = DIGEST

    @cuda_kernel
    def sums_of(size, users, scores, sums):
        _ = digest
        number, width = scores.shape[1], dim + 1
        for place in range(cuda.grid(1), sums.shape[0] * width, cuda.gridsize(1)):
            row, d = place // width, place % width
            block, m = row // number, row % number
            total = _ZERO
            for k in range(block * size, min(scores.shape[0], (block + 1) * size)):
                h = scores[k, m]
                if h != _ZERO:
                    total = total + (h if d == dim else h * users[k, d])
            sums[row, d] = total

    return sums_of


@functools.cache
def finish_own_cuda(dim: int, unit: bool):
    """kernel(reg, users, items, own, slopes, changes, user_lengths, item_lengths)

    A group of lanes an interaction.
    """
    lanes, groups = LANES.lanes, LANES.groups
    num_parts = groups * 16
    digest = DIGEST

    @cuda_kernel
    def finish_own(reg, users, items, own, slopes, changes, user_lengths, item_lengths):
        _ = digest
        parts = cuda.shared.array(num_parts, numba.float32)
        work = cuda.local.array(16, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        at = cuda.threadIdx.x // lanes * 16
        for k in range(cuda.grid(1) // lanes, users.shape[0], cuda.gridsize(1) // lanes):
            g = slopes[k]
            if unit:
                along_user = group_dot(
                    changes, k, users, k, parts, at, work, lane, lanes, mask, dim
                )
                along_item = g * own[k]
                user_length, item_length = user_lengths[k], item_lengths[k]
                user_rate, item_rate = _ONE / user_length, _ONE / item_length
                for d in range(lane, dim, lanes):
                    user, item = users[k, d], items[k, d]
                    users[k, d] = along_unit(changes[k, d], along_user, user, user_rate) + (
                        reg * user_length * user
                    )
                    items[k, d] = along_unit(g * user, along_item, item, item_rate) + (
                        reg * item_length * item
                    )
                if lane == 0:
                    users[k, dim] = _ZERO
                    items[k, dim] = _ZERO
            else:
                for d in range(lane, dim, lanes):
                    user, item = users[k, d], items[k, d]
                    users[k, d] = changes[k, d] + reg * user
                    items[k, d] = g * user + reg * item
                if lane == 0:
                    users[k, dim] = changes[k, dim] + reg * users[k, dim]
                    items[k, dim] = g + reg * items[k, dim]

    return finish_own


@functools.cache
def finish_others_cuda(dim: int, unit: bool):
    """kernel(reg, negatives, sums, lengths); a group of lanes a negative."""
    lanes, groups = LANES.lanes, LANES.groups
    num_parts = groups * 16
    digest = DIGEST

    @cuda_kernel
    def finish_others(reg, negatives, sums, lengths):
        _ = digest
        parts = cuda.shared.array(num_parts, numba.float32)
        work = cuda.local.array(16, numba.float32)
        lane = cuda.grid(1) % lanes
        mask = group_mask(cuda.threadIdx.x, lanes)
        at = cuda.threadIdx.x // lanes * 16
        for r in range(cuda.grid(1) // lanes, negatives.shape[0], cuda.gridsize(1) // lanes):
            if unit:
                along = group_dot(sums, r, negatives, r, parts, at, work, lane, lanes, mask, dim)
                length = lengths[r]
                rate = _ONE / length
                for d in range(lane, dim, lanes):
                    other = negatives[r, d]
                    negatives[r, d] = along_unit(sums[r, d], along, other, rate) + (
                        reg * length * other
                    )
                if lane == 0:
                    negatives[r, dim] = _ZERO
            else:
                for d in range(lane, dim + 1, lanes):
                    negatives[r, d] = sums[r, d] + reg * negatives[r, d]

    return finish_others
