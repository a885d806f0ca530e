"""Word vectors with negative sampling: which pairs a batch holds, and their gradients.

A pair is a word c (the one whose vector is learned), a word o near it, and `negative` words drawn
by chance, none of them o.  With x the dot product of c's vector and the output row of a word, the
loss of a pair is

    -ln sigmoid(x_o) - sum_k ln sigmoid(-x_k),     d loss / d x = sigmoid(x) - label

(Mikolov et al., NIPS 2013).  Positions are those of a block of text; windows shrink at random to
1 .. `window` words on each side and never cross a line.  Everything drawn is a function of (key,
position), so batches may be worked on by any number of threads.

Layout   a pair takes 1 + negative entries: o first, then the words drawn.  Pairs lie by the
         centres in `order`; centre order[i] has the pairs [firsts[i], firsts[i+1]).
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import at, first, next_chunk
from sparse_embed.kernels._jit import DIGEST, device_function, team_kernel
from sparse_embed.kernels.contrast_losses import sigmoid_and_log
from sparse_embed.kernels.draws import GOLDEN, U32, below, mix64

CHUNK = 128  # centres, or pairs; by size, never by threads
ATTEMPTS = 32  # draws of a word other than o, before its neighbour in the vocabulary is taken
_WINDOW = np.uint64(0xD1B54A32D192ED03)  # sets the draw of the window apart from that of negatives
_U1 = np.uint64(1)


@device_function
def half_window(key, place, window):
    """1 .. window, uniformly (key, window: uint64)."""
    return 1 + np.int64(below(mix64((key ^ _WINDOW) + np.uint64(place) * GOLDEN), window))


@device_function
def window_bounds(place, half, lines):
    """[low, high): the positions at most `half` from `place` and in its line."""
    low, high = place, place + 1
    while low > 0 and place - low < half and lines[low - 1] == lines[place]:
        low -= 1
    while high < lines.shape[0] and high - place <= half and lines[high] == lines[place]:
        high += 1
    return low, high


@device_function
def draw_words(random, number, other_than, threshold, alias, words, begin, end):
    """words[begin:end] = words drawn from an alias table of `number` slots; the next random."""
    for k in range(begin, end):
        word = other_than
        for _attempt in range(ATTEMPTS):
            random = mix64(random + GOLDEN)
            slot = np.int64(below(random, number))
            random = mix64(random + GOLDEN)
            word = slot if (random >> U32) < threshold[slot] else np.int64(alias[slot])
            if word != other_than:
                break
        if word == other_than:
            word = (word + 1) % np.int64(number)
        words[k] = word
    return random


@functools.cache
def count_pairs_cpu():
    """kernel(key, window, order, lines, counter, pairs)

    key      u8          of the block
    window   u8          most words on each side
    order    (n,) i8     the centres: positions in the block
    lines    (N,) i8     number of the line of each position; equal ones are neighbours
    counter  `new_counter(chunks)`
    pairs    (n,) i8     out: pairs of each centre, in the order of `order`
    """
    digest = DIGEST

    @team_kernel
    def count_pairs(key, window, order, lines, counter, pairs):
        _ = digest
        n = order.shape[0]
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= n:
                break
            for i in range(begin, min(n, begin + CHUNK)):
                half = half_window(key, order[i], window)
                low, high = window_bounds(order[i], half, lines)
                pairs[i] = high - low - 1

    return count_pairs


@functools.cache
def skipgram_cpu():
    """kernel(key, window, negative, order, lines, tokens, firsts, threshold, alias, counter,
              targets)

    As `count_pairs`, and
    negative          i8           words drawn for a pair
    tokens            (N,) i8      word numbers of the block
    firsts            (n+1,) i8    where each centre's pairs begin
    threshold, alias  (V,)         the alias table of the vocabulary, see `draws.alias_table_cpu`
    targets           (P (1 + negative),) i8   out: word numbers
    """
    digest = DIGEST

    @team_kernel
    def skipgram(
        key, window, negative, order, lines, tokens, firsts, threshold, alias, counter, targets
    ):  # fmt: skip
        _ = digest
        n = order.shape[0]
        number = np.uint64(threshold.shape[0])
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= n:
                break
            for i in range(begin, min(n, begin + CHUNK)):
                place = order[i]
                random = mix64(key + np.uint64(place) * GOLDEN)
                low, high = window_bounds(place, half_window(key, place, window), lines)
                k = firsts[i] * (1 + negative)
                for other in range(low, high):
                    if other == place:
                        continue
                    targets[k] = tokens[other]
                    random = draw_words(
                        random, number, tokens[other], threshold, alias,
                        targets, k + 1, k + 1 + negative,
                    )  # fmt: skip
                    k += 1 + negative

    return skipgram


@functools.cache
def cbow_cpu():
    """kernel(key, window, negative, order, lines, tokens, firsts, threshold, alias, counter,
              contexts, targets)

    The roles turned round: centre order[i] is o, and the words of its window together are c.

    firsts    (n+1,) i8    where each centre's contexts begin, see `count_pairs`
    contexts  (P,) i8      out: the words of each window
    targets   (n (1 + negative),) i8   out: word numbers
    """
    digest = DIGEST

    @team_kernel
    def cbow(
        key, window, negative, order, lines, tokens, firsts, threshold, alias, counter,
        contexts, targets,
    ):  # fmt: skip
        _ = digest
        n = order.shape[0]
        number = np.uint64(threshold.shape[0])
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= n:
                break
            for i in range(begin, min(n, begin + CHUNK)):
                place = order[i]
                low, high = window_bounds(place, half_window(key, place, window), lines)
                at = firsts[i]
                for other in range(low, high):
                    if other != place:
                        contexts[at] = tokens[other]
                        at += 1
                k = i * (1 + negative)
                targets[k] = tokens[place]
                draw_words(
                    mix64(key + np.uint64(place) * GOLDEN), number, tokens[place],
                    threshold, alias, targets, k + 1, k + 1 + negative,
                )  # fmt: skip

    return cbow


@functools.cache
def logistic_gradients_cpu():
    """kernel(negative, scores, counter, losses)

    negative  i8                     entries 0, 1 + negative, 2 (1 + negative), ... have label 1
    scores    (P (1 + negative),) f4   in: x; out: sigmoid(x) - label
    counter   `new_counter(chunks)`
    losses    (chunks,) f8           out: sums of the losses of 128 pairs each
    """
    digest = DIGEST

    @team_kernel
    def logistic_gradients(negative, scores, counter, losses):
        _ = digest
        entries = 1 + negative
        pairs = scores.shape[0] // entries
        terms_of = np.empty(CHUNK * entries, np.float32)
        terms = first(terms_of)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk * CHUNK >= pairs:
                break
            x = at(first(scores), chunk * CHUNK * entries)
            number = min(CHUNK, pairs - chunk * CHUNK) * entries
            for k in range(0, number, entries):
                x[k] = -x[k]
            for k in range(number):  # for vectors of the machine: no sums, no branches
                x[k], terms[k] = sigmoid_and_log(x[k])
            for k in range(0, number, entries):
                x[k] = -x[k]
            loss = 0.0
            for k in range(number):
                loss += np.float64(terms[k])
            losses[chunk] = loss

    return logistic_gradients
