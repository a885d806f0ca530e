"""A batch of word vectors in plain Python and NumPy, pair by pair in float64: the specification.

`vectors_training.Objective.train_batch` draws the same pairs and moves rows to the same places, up
to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sparse_embed._typing import AnyArray, IndexArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_WINDOW = 0xD1B54A32D192ED03

Float64 = npt.NDArray[np.float64]


def mix64(z: int) -> int:
    """splitmix64's finaliser."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def window_of(key: int, place: int, lines: IndexArray, window: int) -> list[int]:
    """The other positions in the window of the word at `place`, in order."""
    half = 1 + ((mix64(((key ^ _WINDOW) + place * _GOLDEN) & _MASK) * window) >> 64)
    low, high = max(0, place - half), min(len(lines), place + half + 1)
    return [other for other in range(low, high) if other != place and lines[other] == lines[place]]


def negatives(
    random: int, threshold: AnyArray, alias: AnyArray, target: int, count: int
) -> tuple[list[int], int]:
    """`count` words drawn from an alias table, none of them the target; the next random."""
    drawn: list[int] = []
    while len(drawn) < count:
        random = mix64((random + _GOLDEN) & _MASK)
        slot = (random * len(threshold)) >> 64
        random = mix64((random + _GOLDEN) & _MASK)
        word = slot if random >> 32 < int(threshold[slot]) else int(alias[slot])
        if word != target:
            drawn.append(word)
    return drawn, random


def train_batch(
    inputs: Float64,
    outputs: Float64,
    rows_of: Callable[[int], IndexArray],
    tokens: IndexArray,
    lines: IndexArray,
    centres: IndexArray,
    *,
    key: int,
    threshold: AnyArray,
    alias: AnyArray,
    sg: bool,
    window: int,
    negative: int,
) -> tuple[Float64, Float64, float, int]:
    """Gradients of one batch.

    Args:
        inputs, outputs: weights of both tables.
        rows_of: word number -> its rows in the input table.
        tokens, lines: (N,) words of a block of text after sub-sampling, and the line of each.
        centres: (n,) positions in it.

    Returns:
        the gradients of `inputs` and `outputs`, the summed loss, and the number of pairs (CBOW:
        windows).  fastText adds the gradient of the mean to each of its rows undivided; so here.
    """
    input_grad, output_grad = np.zeros_like(inputs), np.zeros_like(outputs)
    loss, pairs = 0.0, 0
    for place in centres.tolist():
        word = int(tokens[place])
        others = window_of(key, place, lines, window)
        random = mix64((key + place * _GOLDEN) & _MASK)
        if sg:
            examples = [(rows_of(word), int(tokens[other])) for other in others]
        else:
            context = [rows_of(int(tokens[other])) for other in others]
            examples = [(np.concatenate(context), word)] if others else []
        for rows, target in examples:
            drawn, random = negatives(random, threshold, alias, target, negative)
            hidden = inputs[rows].mean(axis=0)
            pairs += 1
            for place_of, output in enumerate([target, *drawn]):
                g = 1 / (1 + np.exp(-(hidden @ outputs[output]))) - (place_of == 0)
                loss -= float(np.log(1 - abs(g)))
                np.add.at(input_grad, rows, g * outputs[output])
                output_grad[output] += g * hidden
    return input_grad, output_grad, loss, pairs
