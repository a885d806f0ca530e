"""Which interactions a batch holds, in which order, and the items drawn to stand against them.

Counter-based: draw number t of an epoch is a function of (epoch key, t), so neither threads nor
what was drawn before change anything in what is drawn.

    order      a keyed permutation of 0..n-1 (Feistel rounds), never stored; or, of triplets, one of
               each group of neighbours in every batch
    negatives  Walker's alias table; of triplets, some neighbours share them
    taken?     one bit of a hashed filter says "no" for most items, else a binary search decides
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from sparse_embed.kernels._intrinsics import at, first, prefetch_read
from sparse_embed.kernels._jit import DIGEST, cpu_kernel, device_function, serial_kernel
from sparse_embed.kernels.draws import GOLDEN, LOW_32, U32, below, mix64

CHUNK = 256  # interactions; by size, never by threads

NEGATIVE = np.uint64(0xD1B54A32D192ED03)  # sets the draw of negatives apart from the order
FILTER_BITS = 16  # of the filter, for each interaction: it errs once in 16
U1 = np.uint64(1)
U3 = np.uint64(3)
U7 = np.uint64(7)


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


@device_function
def filter_bit(user, column, shift):
    """The bit of the filter that stands for a pair (int64 each; shift: uint64)."""
    return (((np.uint64(user) << U32) | np.uint64(column)) * GOLDEN) >> shift


@device_function
def took(user, column, columns, low, high, bits, shift):
    """Did the user take this column?  The user's are columns[low:high]."""
    bit = filter_bit(user, column, shift)
    if (np.uint64(bits[bit >> U3]) >> (bit & U7)) & U1 == np.uint64(0):
        return False
    return is_taken(column, columns, low, high)


@device_function
def draw_alias(random, number, alias):
    """A column by its weight, from 64 random bits: the upper 32 of a second mix decide the alias.

    An entry of `alias` has the threshold in its upper 32 bits and the other column in its lower.
    """
    slot = below(random, number)
    entry = alias[slot]
    other = entry & LOW_32
    keep = (mix64(random + GOLDEN) >> U32) < (entry >> U32)
    return np.int64(slot if keep else other)


@functools.cache
def filter_cpu():
    """kernel(rows, columns, shift, bits): set the bit of every pair.

    rows, columns  (n,) i4      pairs
    shift          uint64       64 minus the logarithm of the number of bits
    bits           (m,) u1      in: zeros; out
    """
    digest = DIGEST

    @serial_kernel
    def kernel(rows, columns, shift, bits):
        _ = digest
        for k in range(columns.shape[0]):
            bit = filter_bit(np.int64(rows[k]), np.int64(columns[k]), shift)
            bits[bit >> U3] |= np.uint8(U1 << (bit & U7))

    return kernel


@functools.cache
def sample_pairs_cpu():
    """kernel(key, start, half_bits, rows, columns, users, items)

    key, start  uint64     the epoch's key; number of the batch's first interaction
    half_bits   uint64     2**(2 half_bits) >= n
    rows        (n,) i4    user of each interaction
    columns     (n,) i4    its item as a position in the catalogue; sorted within a user
    users       (B,) i8    out
    items       (B,) i8    out: positions in the catalogue
    """
    digest = DIGEST

    @cpu_kernel
    def kernel(key, start, half_bits, rows, columns, users, items):
        _ = digest
        batch = users.shape[0]
        total = np.uint64(columns.shape[0])
        for chunk in prange((batch + CHUNK - 1) // CHUNK):
            end = min(batch, (chunk + 1) * CHUNK)
            for k in range(chunk * CHUNK, end):
                place = np.int64(permute(start + np.uint64(k), total, half_bits, key))
                users[k] = place
                prefetch_read(at(first(rows), place))
                prefetch_read(at(first(columns), place))
            for k in range(chunk * CHUNK, end):
                place = users[k]
                users[k] = rows[place]
                items[k] = columns[place]

    return kernel


@functools.cache
def sample_even_cpu():
    """kernel(key, batch, batches, rows, columns, users, items)

    Interaction number k of the batch is one of the k-th `batches` neighbours among all: a batch
    is spread evenly over the users, lies by user, and is read from front to back.  Each group of
    neighbours goes round from a place of its own, drawn anew in each epoch.

    key             uint64     the epoch's key
    batch, batches  int        number of the batch, from 0, and how many make up the epoch
    rows            (n,) i4    user of each interaction, ascending
    columns         (n,) i4    its item as a position in the catalogue
    users           (G,) i8    out; G = ceil(n / batches), the last one is not always used
    items           (G,) i8    out: positions in the catalogue

    Returns how many are used.
    """
    digest = DIGEST

    @cpu_kernel
    def kernel(key, batch, batches, rows, columns, users, items):
        _ = digest
        groups, total = users.shape[0], columns.shape[0]
        around = np.uint64(batches)
        short = 0
        for chunk in prange((groups + CHUNK - 1) // CHUNK):
            for k in range(chunk * CHUNK, min(groups, (chunk + 1) * CHUNK)):
                turned = np.int64(below(mix64(key + np.uint64(k) * GOLDEN), around)) + batch
                place = k * batches + (turned if turned < batches else turned - batches)
                if place >= total:
                    short += 1
                    continue
                users[k] = rows[place]
                items[k] = columns[place]
        return groups - short

    return kernel


@functools.cache
def sample_opponents_cpu():
    """kernel(key, first_draw, starts, users, tiles, size, indptr, columns, alias, bits, shift,
              negatives, opponents)

    A tile is `size` users.  Its negatives go round among its interactions, so that those of a user
    stand against different ones; where the user took one, the next of the tile stands in.

    key, first_draw  uint64     the epoch's key; number of the batch's first draw
    starts           (U+1,) i8  interactions [starts[u], starts[u+1]) are those of users[u]
    users            (U,) i8
    tiles            (T+1,) i8  tile t has the negatives [tiles[t], tiles[t+1])
    size             int        users of a tile
    indptr           (.,) i8    the users' ranges in `columns`
    columns          (n,) i4    what they took: positions in the catalogue, sorted within a user
    alias            (C,) u8    see `draw_alias`
    bits, shift                 see `filter_cpu`
    negatives        (M,) i8    out: positions in the catalogue
    opponents        (B,) i8    out: which negative stands against each interaction; -1: the user
                                took all of the tile's
    """
    digest = DIGEST

    @cpu_kernel
    def kernel(
        key, first_draw, starts, users, tiles, size, indptr, columns, alias, bits, shift,
        negatives, opponents,
    ):  # fmt: skip
        _ = digest
        number = np.uint64(alias.shape[0])
        for tile in prange(tiles.shape[0] - 1):
            low, high = tiles[tile], tiles[tile + 1]
            for m in range(low, high):
                random = mix64((key ^ NEGATIVE) + (first_draw + np.uint64(m)) * GOLDEN)
                negatives[m] = draw_alias(random, number, alias)
            at_turn = low
            for u in range(tile * size, min(users.shape[0], (tile + 1) * size)):
                user = users[u]
                begin, end = indptr[user], indptr[user + 1]
                for k in range(starts[u], starts[u + 1]):
                    opponents[k] = -1
                    candidate = at_turn
                    for _attempt in range(low, high):
                        if not took(user, negatives[candidate], columns, begin, end, bits, shift):
                            opponents[k] = candidate
                            break
                        candidate = candidate + 1 if candidate + 1 < high else low
                    at_turn = at_turn + 1 if at_turn + 1 < high else low

    return kernel


@functools.cache
def sample_shared_cpu():
    """kernel(key, start, alias, negatives)

    key, start  uint64     the epoch's key; number of the first draw
    alias       (C,) u8    see `draw_alias`
    negatives   (N,) i8    out: positions in the catalogue
    """
    digest = DIGEST

    @cpu_kernel
    def kernel(key, start, alias, negatives):
        _ = digest
        count = negatives.shape[0]
        number = np.uint64(alias.shape[0])
        for chunk in prange((count + CHUNK - 1) // CHUNK):
            for k in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
                random = mix64((key ^ NEGATIVE) + (start + np.uint64(k)) * GOLDEN)
                negatives[k] = draw_alias(random, number, alias)

    return kernel
