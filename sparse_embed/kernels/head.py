"""A dense layer of classes on hidden vectors, its loss, and all their gradients.

    s[b, c] = <hidden[b], weight[c]> + bias[c]

    SOFTMAX   p = softmax(s[b]);  loss = sum over targets t of share_t (-ln p_t)
              ds[b, c] = (sum_t share_t) p_c - share_c
              share_t = positive[t] / number of targets of b: with several targets each has its part
    SIGMOID   p = 1 / (1 + e^-s);  loss = sum_c  positive[c] (-ln p) at targets, else
              negative[c] (-ln (1 - p));  ds[b, c] = positive[c] (p - 1), else negative[c] p

    all times example[b];  dhidden[b] = sum_c ds[b, c] weight[c]
    dweight[c] = sum_b ds[b, c] hidden[b];  dbias[c] = sum_b ds[b, c]

Shapes   hidden, dhidden (B, F) f4 · weight, dweight (C, F) f4 · bias, dbias (C,) f4 · example (B,)
         positive, negative (C,) f4 · targets (T,) i4 of example b at [offsets[b], offsets[b + 1]),
         ascending, each once
         scores (B, C) f4: out, ds (or s) · losses (B,) f8 out
Order    s: 16 lanes and a tree over columns, then the bias; sums over c and over b from left to
         right from +0.0; the softmax's largest score first, its sum from left to right
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from sparse_embed.kernels._intrinsics import at, next_chunk, row_pointer, stack_f32
from sparse_embed.kernels._jit import (
    DIGEST,
    cold_function,
    device_function,
    new_counter,
    team_kernel,
)
from sparse_embed.kernels.contrast_losses import sigmoid_and_log
from sparse_embed.kernels.exponential import exp_of
from sparse_embed.kernels.reduce import dot

SOFTMAX, SIGMOID = 0, 1  # `kind`

_EXAMPLES = 8  # that share a pass over the weights
_COLUMNS = 2048  # of a class that a thread takes at a time
_PASS = 64  # classes whose exponentials are computed together
_SMALL = 1 << 17  # multiplications: some 20 microseconds
_ZERO = np.float32(0)
_ONE = np.float32(1)


@cold_function
def softmax_loss(s, count, targets, begin, end, positive, scale):
    """Scores to their gradient, in place; returns the loss."""
    largest = s[0]
    for c in range(count):
        largest = s[c] if s[c] > largest else largest
    total = _ZERO
    picked = 0.0
    shares = _ZERO
    part = _ONE / np.float32(max(end - begin, 1))
    for t in range(begin, end):
        share = positive[targets[t]] * part
        shares += share
        picked += np.float64(share) * np.float64(s[targets[t]] - largest)
    for c in range(count):
        s[c] = exp_of(s[c] - largest)
    for c in range(count):
        total += s[c]
    loss = np.float64(shares) * math.log(np.float64(total)) - picked
    factor = scale * shares / total
    for c in range(count):
        s[c] = s[c] * factor
    for t in range(begin, end):
        s[targets[t]] -= scale * (positive[targets[t]] * part)
    return loss * np.float64(scale)


@cold_function
def sigmoid_loss(s, count, targets, begin, end, positive, negative, scale):
    """Scores to their gradient, in place; returns the loss."""
    scores, costs = stack_f32(_PASS), stack_f32(_PASS)
    loss = 0.0
    t = begin
    for low in range(0, count, _PASS):
        number = min(_PASS, count - low)
        x = at(s, low)
        for c in range(number):  # as if none were a target
            scores[c] = x[c]
            x[c], costs[c] = sigmoid_and_log(x[c])
        for c in range(number):
            if t < end and targets[t] == low + c:
                p, cost = sigmoid_and_log(-scores[c])
                loss += np.float64(positive[low + c]) * np.float64(cost)
                x[c] = -(scale * (positive[low + c] * p))
                t += 1
            else:
                loss += np.float64(negative[low + c]) * np.float64(costs[c])
                x[c] = scale * (negative[low + c] * x[c])
    return loss * np.float64(scale)


@device_function
def score_block(hidden, weight, bias, begin, end, scores):
    """Scores of a few examples: each row of the weights is read once."""
    columns = hidden.shape[1]
    for c in range(weight.shape[0]):
        w = row_pointer(weight, c)
        for b in range(begin, end):
            scores[b, c] = dot(row_pointer(hidden, b), w, columns) + bias[c]


def counter_of_head(batch: int, classes: int, columns: int) -> npt.NDArray[np.int64]:
    """Of all three kernels: a small layer is done before another thread is awake."""
    return new_counter(batch * classes * columns // _SMALL)


@functools.cache
def head_scores_cpu():
    """kernel(hidden, weight, bias, counter, scores)"""
    digest = DIGEST

    @team_kernel
    def head_scores(hidden, weight, bias, counter, scores):
        _ = digest
        batch = hidden.shape[0]
        while True:
            begin = next_chunk(counter, 0) * _EXAMPLES
            if begin >= batch:
                break
            score_block(hidden, weight, bias, begin, min(batch, begin + _EXAMPLES), scores)

    return head_scores


@device_function
def add_scaled(target, factor, source, count):
    for d in range(count):
        target[d] = target[d] + factor * source[d]


@device_function
def clear(target, count):
    for d in range(count):
        target[d] = _ZERO


@functools.cache
def head_slopes_cpu():
    """kernel(hidden, weight, bias, kind, targets, offsets, example, positive, negative, counter,
    scores, dhidden, losses)
    """
    digest = DIGEST

    @team_kernel
    def head_slopes(
        hidden, weight, bias, kind, targets, offsets, example, positive, negative, counter,
        scores, dhidden, losses,
    ):  # fmt: skip
        _ = digest
        batch, columns = hidden.shape
        classes = weight.shape[0]
        while True:
            begin = next_chunk(counter, 0) * _EXAMPLES
            if begin >= batch:
                break
            end = min(batch, begin + _EXAMPLES)
            score_block(hidden, weight, bias, begin, end, scores)
            for b in range(begin, end):
                s = row_pointer(scores, b)
                if kind == SOFTMAX:
                    losses[b] = softmax_loss(
                        s, classes, targets, offsets[b], offsets[b + 1], positive, example[b]
                    )
                else:
                    losses[b] = sigmoid_loss(
                        s, classes, targets, offsets[b], offsets[b + 1],
                        positive, negative, example[b],
                    )  # fmt: skip
                clear(row_pointer(dhidden, b), columns)
            for c in range(classes):
                w = row_pointer(weight, c)
                for b in range(begin, end):
                    add_scaled(row_pointer(dhidden, b), scores[b, c], w, columns)

    return head_slopes


@functools.cache
def head_gradients_cpu():
    """kernel(hidden, scores, counter, dweight, dbias), with the scores of `head_slopes`"""
    digest = DIGEST

    @team_kernel
    def head_gradients(hidden, scores, counter, dweight, dbias):
        _ = digest
        batch, columns = hidden.shape
        classes = dbias.shape[0]
        parts = (columns + _COLUMNS - 1) // _COLUMNS
        tasks = classes * parts
        group = 1 + _SMALL // (4 * (batch + 1) * min(columns, _COLUMNS))
        while True:
            first = next_chunk(counter, 0) * group
            if first >= tasks:
                break
            for task in range(first, min(tasks, first + group)):
                c = task // parts
                low = (task % parts) * _COLUMNS
                count = min(columns - low, _COLUMNS)
                target = at(row_pointer(dweight, c), low)
                clear(target, count)
                total = _ZERO
                for b in range(batch):
                    g = scores[b, c]
                    total += g
                    add_scaled(target, g, at(row_pointer(hidden, b), low), count)
                if low == 0:
                    dbias[c] = total

    return head_gradients
