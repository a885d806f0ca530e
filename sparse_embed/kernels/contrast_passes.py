"""The losses of `contrast_losses` on the CPU: its formulas, a pass over the scores for each step.

A loop that computes and sums goes one number at a time, since the order of a sum is fixed; LLVM
makes vectors of one that computes only.  So terms are written first and summed after, from left to
right as there: the bits of `contrast_losses`, whatever the machine's vectors.

Arguments   as there · terms: pointer to M f4, work space
"""

from __future__ import annotations

import numpy as np

from sparse_embed.kernels._jit import cold_function, device_function
from sparse_embed.kernels.contrast_losses import ONE, TINY, ZERO, sigmoid_and_log, softmax_end
from sparse_embed.kernels.exponential import exp_of


@device_function
def _add_terms(loss, terms, number):
    """loss + terms[0] + terms[1] + ... in float64."""
    for m in range(number):
        loss += np.float64(terms[m])
    return loss


@cold_function
def logistic_passes(score, scores, offsets, marks, number, a, b, terms):
    """See the top of the file."""
    weight = a / np.float32(number)
    chance, _ = sigmoid_and_log(score)
    _, log = sigmoid_and_log(-score)
    for m in range(number):
        other, cost = sigmoid_and_log(scores[m])
        taken = marks[m] != 0
        terms[m] = ZERO if taken else weight * cost
        scores[m] = ZERO if taken else weight * other
    return _add_terms(np.float64(log), terms, number), chance - ONE


@cold_function
def softmax_passes(score, scores, offsets, marks, number, a, b, terms):
    """See the top of the file."""
    own = score / a - b
    for m in range(number):
        z = scores[m] / a - offsets[m]
        scores[m] = TINY if marks[m] != 0 else z
    largest = _largest(own, scores, number)
    for m in range(number):
        e = exp_of(scores[m] - largest)
        scores[m] = ZERO if marks[m] != 0 else e
    total = exp_of(own - largest)
    mine = total
    for m in range(number):
        total += scores[m]
    return softmax_end(scores, number, own, largest, mine, total, a)


@device_function
def _largest(least, scores, number):
    """In four strands: each waits for itself only."""
    a = b = c = d = least
    for m in range(0, number - 3, 4):
        a, b = max(a, scores[m]), max(b, scores[m + 1])
        c, d = max(c, scores[m + 2]), max(d, scores[m + 3])
    for m in range(number - number % 4, number):
        a = max(a, scores[m])
    return max(max(a, b), max(c, d))


@cold_function
def cosine_passes(score, scores, offsets, marks, number, a, b, terms):
    """See the top of the file."""
    weight = a / np.float32(number)
    for m in range(number):
        over = scores[m] - b
        counts = (marks[m] == 0) & (over > ZERO)
        terms[m] = weight * over if counts else ZERO
        scores[m] = weight if counts else ZERO
    return _add_terms(np.float64(ONE - score), terms, number), -ONE
