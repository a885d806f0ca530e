"""What a taken item costs against sampled ones, from their scores: one formula an objective.

    logistic  ln(1 + e^-s) + w/M sum_m ln(1 + e^s_m)
    softmax   -ln(e^z / (e^z + sum_m e^z_m)),   z = s / temperature - offset
    cosine    (1 - s) + w/M sum_m max(0, s_m - margin)                     (CCL)

s is the score of the taken item, s_m those of the M others; one that the user took as well (its
mark is 1) does not count, but M stays.

Arguments   score f4 · scores, offsets: pointers to M f4 · marks: pointer to M u1
            a, b f4: (w, -), (temperature, offset of the taken item), (w, margin)
Result      (loss f8, derivative by s); scores are overwritten by their derivatives
Source      logistic: Mikolov et al. 2013 (negative sampling) · softmax: Bengio & Senecal 2008, with
            offset = ln(expected number of draws) it is unbiased for the full softmax · cosine:
            Mao et al., SimpleX, CIKM 2021
"""

from __future__ import annotations

import numpy as np

from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.exponential import exp_of, log_above, log_of

ZERO = np.float32(0)
ONE = np.float32(1)
TINY = np.float32(-3.0e38)


@device_function
def sigmoid_and_log(x):
    """1 / (1 + e^-x) and ln(1 + e^x), neither of which overflows."""
    e = exp_of(-abs(x))
    chance = (ONE if x > ZERO else e) / (ONE + e)
    return chance, log_of(e) + max(x, ZERO)


@device_function
def logistic_loss(score, scores, offsets, marks, number, a, b):
    """See the top of the file."""
    weight = a / np.float32(number)
    chance, _ = sigmoid_and_log(score)
    _, log = sigmoid_and_log(-score)
    loss = np.float64(log)
    for m in range(number):
        if marks[m]:
            scores[m] = ZERO
        else:
            other, log = sigmoid_and_log(scores[m])
            loss += np.float64(weight * log)
            scores[m] = weight * other
    return loss, chance - ONE


@device_function
def softmax_end(scores, number, own, largest, mine, total, a):
    """From exp(z - largest) in scores, `mine` the positive's and `total` the sum of all."""
    rate = ONE / (total * a)
    for m in range(number):
        scores[m] = scores[m] * rate
    loss = np.float64(largest) + np.float64(log_above(total)) - np.float64(own)
    return loss, mine * rate - ONE / a


@device_function
def softmax_loss(score, scores, offsets, marks, number, a, b):
    """See the top of the file."""
    own = score / a - b
    largest = own
    for m in range(number):
        scores[m] = TINY if marks[m] else scores[m] / a - offsets[m]
        largest = max(largest, scores[m])
    total = exp_of(own - largest)
    mine = total
    for m in range(number):
        scores[m] = ZERO if marks[m] else exp_of(scores[m] - largest)
        total += scores[m]
    return softmax_end(scores, number, own, largest, mine, total, a)


@device_function
def cosine_loss(score, scores, offsets, marks, number, a, b):
    """See the top of the file."""
    weight = a / np.float32(number)
    loss = np.float64(ONE - score)
    for m in range(number):
        over = scores[m] - b
        if marks[m] or not over > ZERO:
            scores[m] = ZERO
        else:
            loss += np.float64(weight * over)
            scores[m] = weight
    return loss, -ONE
