"""Bayesian personalised ranking: which triplets a batch holds, and their gradients.

A triplet is (user u, an item i the user took, an item j the user did not take), with the loss

    -ln sigmoid(x) + reg/2 (|p_u|^2 + |q_i|^2 + |q_j|^2),   x = <p_u, q_i - q_j> + b_i - b_j

(Rendle et al., UAI 2009).  `sample_triplets` is counter-based: triplet number t of an epoch is a
function of (epoch key, t), so batch size and threads change nothing in what is drawn.  An item row
carries its bias b in its last column.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import prange

from sparse_embed.kernels._intrinsics import row_pointer, stack_f32
from sparse_embed.kernels._jit import DIGEST, cpu_kernel, device_function, serial_kernel
from sparse_embed.kernels.reduce import dot

ONE = np.float32(1)
CHUNK = 256  # triplets; by size, never by threads

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_A = np.uint64(0xBF58476D1CE4E5B9)
MIX_B = np.uint64(0x94D049BB133111EB)
NEGATIVE = np.uint64(0xD1B54A32D192ED03)  # sets the draw of negatives apart from the order
ATTEMPTS = 32  # draws from the alias table before a uniform one, which cannot fail
ALWAYS = np.uint64(1 << 32)
U1 = np.uint64(1)
U32 = np.uint64(32)
LOW_32 = np.uint64(0xFFFFFFFF)


@device_function
def mix64(z):
    """splitmix64's finaliser; every operand is uint64."""
    z = (z ^ (z >> np.uint64(30))) * MIX_A
    z = (z ^ (z >> np.uint64(27))) * MIX_B
    return z ^ (z >> np.uint64(31))


@device_function
def permute(t, n, half_bits, key):
    """Place of number t in a keyed permutation of 0..n-1 (t, n, half_bits, key: uint64).

    Four Feistel rounds over 2 half_bits bits, repeated until the value falls below n (fewer than
    four times on average).  No permutation of all interactions is ever stored.
    """
    mask = (U1 << half_bits) - U1
    while True:
        left = t >> half_bits
        right = t & mask
        for i in range(4):
            left, right = right, left ^ (mix64(right ^ (key + np.uint64(i) * GOLDEN)) & mask)
        t = (left << half_bits) | right
        if t < n:
            return t


@device_function
def below(random, bound):
    """Uniform 0..bound-1 from 64 random bits, bound < 2**32 (multiply and shift; both uint64)."""
    return ((random >> U32) * bound + (((random & LOW_32) * bound) >> U32)) >> U32


@device_function
def skip_taken(r, columns, low, high):
    """The r-th number (from 0) that is not among the sorted columns[low:high].

    One draw is enough, even for a user who took all items but one.
    """
    start = low
    while low < high:
        middle = (low + high) >> 1
        if columns[middle] - (middle - start) > r:
            high = middle
        else:
            low = middle + 1
    return r + (low - start)


@device_function
def is_taken(column, columns, low, high):
    """Is `column` among the sorted columns[low:high]?"""
    end = high
    while low < high:
        middle = (low + high) >> 1
        if columns[middle] < column:
            low = middle + 1
        else:
            high = middle
    return low < end and columns[low] == column


@functools.cache
def alias_table_cpu():
    """kernel(weights, threshold, alias): Walker's alias method, built as Vose (1991) does.

    weights    (C,) f8   positive; destroyed
    threshold  (C,) u8   out: slot c keeps c if 32 random bits are below it, else gives alias[c]
    alias      (C,) i4   out
    """
    digest = DIGEST

    @serial_kernel
    def kernel(weights, threshold, alias):
        _ = digest
        number = weights.shape[0]
        scale = number / weights.sum()
        waiting = np.empty(number, np.int32)  # light slots from the left, heavy from the right
        light = 0
        heavy = number
        for c in range(number):
            weights[c] *= scale
            threshold[c] = ALWAYS
            alias[c] = c
            if weights[c] < 1.0:
                waiting[light] = c
                light += 1
            else:
                heavy -= 1
                waiting[heavy] = c
        while light > 0 and heavy < number:
            light -= 1
            small = waiting[light]
            big = waiting[heavy]
            threshold[small] = np.uint64(weights[small] * 4294967296.0)
            alias[small] = big
            weights[big] -= 1.0 - weights[small]
            if weights[big] < 1.0:
                heavy += 1
                waiting[light] = big
                light += 1

    return kernel


@functools.cache
def sample_triplets_cpu():
    """kernel(key, start, half_bits, rows, columns, indptr, catalogue, threshold, alias,
              users, items)

    The item not taken comes from the alias table, drawn again while the user took it.

    key, start        uint64      the epoch's key; number of the batch's first triplet
    half_bits         uint64      2**(2 half_bits) >= n
    rows              (n,) i4     user of each interaction
    columns           (n,) i4     its item as a position in `catalogue`; sorted within a user
    indptr            (U+1,) i8   the users' ranges in `columns`; no user took the whole catalogue
    catalogue         (C,) i8     item numbers
    threshold, alias  (C,)        see `alias_table_cpu`
    users             (B,) i8     out
    items             (2B,) i8    out: B taken items, then B items not taken
    """
    digest = DIGEST

    @cpu_kernel
    def kernel(
        key, start, half_bits, rows, columns, indptr, catalogue, threshold, alias, users, items
    ):
        _ = digest
        batch = users.shape[0]
        total = np.uint64(columns.shape[0])
        number = np.uint64(catalogue.shape[0])
        for chunk in prange((batch + CHUNK - 1) // CHUNK):
            for k in range(chunk * CHUNK, min(batch, (chunk + 1) * CHUNK)):
                t = start + np.uint64(k)
                place = np.int64(permute(t, total, half_bits, key))
                user = np.int64(rows[place])
                low = indptr[user]
                high = indptr[user + 1]
                users[k] = user
                items[k] = catalogue[columns[place]]
                random = mix64((key ^ NEGATIVE) + t * GOLDEN)
                other = np.int64(-1)
                for _attempt in range(ATTEMPTS):
                    slot = np.int64(below(random, number))
                    random = mix64(random + GOLDEN)
                    if (random >> U32) >= threshold[slot]:
                        slot = np.int64(alias[slot])
                    if not is_taken(slot, columns, low, high):
                        other = slot
                        break
                    random = mix64(random + GOLDEN)
                if other < 0:
                    free = number - np.uint64(high - low)
                    other = skip_taken(np.int64(below(random, free)), columns, low, high)
                items[batch + k] = catalogue[other]

    return kernel


@functools.cache
def triplet_gradients_cpu(dim: int):
    """kernel(reg, users, items, losses)

    Rows come in, their gradients come out in the same place: fresh memory would cost more than the
    arithmetic.

    reg         f4             L2 weight of each row of the triplet, bias included
    users       (B, D) f4      in: p_u; out: its gradient
    items       (2B, D+1) f4   in: q_i and b_i of the taken items, then q_j and b_j; out: gradients
    losses      (chunks,) f8   out: sums of -ln sigmoid(x) by chunks of 256 triplets
    """
    digest = DIGEST

    @cpu_kernel
    def kernel(reg, users, items, losses):
        _ = digest
        batch = users.shape[0]
        for chunk in prange((batch + CHUNK - 1) // CHUNK):
            difference = stack_f32(dim)
            loss = 0.0
            for k in range(chunk * CHUNK, min(batch, (chunk + 1) * CHUNK)):
                p = row_pointer(users, k)
                i = row_pointer(items, k)
                j = row_pointer(items, batch + k)
                for d in range(dim):
                    difference[d] = i[d] - j[d]
                x = dot(p, difference, dim) + (i[dim] - j[dim])
                # 1 - sigmoid(x), and ln(1 + e^-x) without overflow
                g = ONE / (ONE + np.float32(math.exp(x)))
                loss += max(-np.float64(x), 0.0) + math.log1p(math.exp(-abs(np.float64(x))))
                for d in range(dim):
                    step = g * p[d]
                    p[d] = reg * p[d] - g * difference[d]
                    i[d] = reg * i[d] - step
                    j[d] = reg * j[d] + step
                i[dim] = reg * i[dim] - g
                j[dim] = reg * j[dim] + g
            losses[chunk] = loss

    return kernel
