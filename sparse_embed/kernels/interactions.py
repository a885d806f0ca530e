"""Which interactions a batch holds, in which order, and the items drawn to stand against them.

Counter-based: draw number t of an epoch is a function of (epoch key, t), so neither threads nor
what was drawn before change anything in what is drawn.

    order      a keyed permutation of 0..n-1 (Feistel rounds), never stored; or, of triplets, one of
               each group of neighbours in every batch
    negatives  Walker's alias table; of triplets, some neighbours share them
    taken?     one bit of a hashed filter says "no" for most items, else a binary search decides;
               a user's bits lie side by side, so a batch reads them from front to back
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import at, first, next_chunk, prefetch_read, unlikely
from sparse_embed.kernels._jit import (
    DIGEST,
    cold_function,
    device_function,
    serial_kernel,
    team_kernel,
)
from sparse_embed.kernels.draws import GOLDEN, LOW_32, U32, below, mix64

CHUNK = 256  # interactions; by size, never by threads

NEGATIVE = np.uint64(0xD1B54A32D192ED03)  # sets the draw of negatives apart from the order
FILTER_BYTES = 2  # of the filter, for each interaction: it errs once in 16
U1 = np.uint64(1)
U3 = np.uint64(3)
U7 = np.uint64(7)
FILTER_BITS = np.uint64(8 * FILTER_BYTES)


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
def filter_bit(column, low, high):
    """The bit of the filter (uint64) that stands for a column, of the user with columns[low:high].

    Bits 16 low to 16 high - 1 are the user's.
    """
    own = np.uint64(high - low) * FILTER_BITS
    return np.uint64(low) * FILTER_BITS + ((((np.uint64(column) * GOLDEN) >> U32) * own) >> U32)


@device_function
def took(column, columns, low, high, bits):
    """Did the user take this column?  The user's are columns[low:high]."""
    bit = filter_bit(column, low, high)
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
    """kernel(indptr, columns, bits): set the bit of everything that a user took.

    indptr   (U+1,) i8              users' ranges in
    columns  (n,) i4                what they took
    bits     (FILTER_BYTES n + 1,) u1   in: zeros; out.  The last byte is asked about a user of none
    """
    digest = DIGEST

    @serial_kernel
    def kernel(indptr, columns, bits):
        _ = digest
        for user in range(indptr.shape[0] - 1):
            low, high = indptr[user], indptr[user + 1]
            for k in range(low, high):
                bit = filter_bit(columns[k], low, high)
                bits[bit >> U3] |= np.uint8(U1 << (bit & U7))

    return kernel


@functools.cache
def sample_pairs_cpu():
    """kernel(key, start, half_bits, rows, columns, counter, users, items)

    key, start  uint64     the epoch's key; number of the batch's first interaction
    half_bits   uint64     2**(2 half_bits) >= n
    rows        (n,) i4    user of each interaction
    columns     (n,) i4    its item as a position in the catalogue; sorted within a user
    counter     `new_counter`
    users       (B,) i8    out
    items       (B,) i8    out: positions in the catalogue
    """
    digest = DIGEST

    @team_kernel
    def kernel(key, start, half_bits, rows, columns, counter, users, items):
        _ = digest
        batch = users.shape[0]
        total = np.uint64(columns.shape[0])
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= batch:
                break
            end = min(batch, begin + CHUNK)
            for k in range(begin, end):
                place = np.int64(permute(start + np.uint64(k), total, half_bits, key))
                users[k] = place
                prefetch_read(at(first(rows), place))
                prefetch_read(at(first(columns), place))
            for k in range(begin, end):
                place = users[k]
                users[k] = rows[place]
                items[k] = columns[place]

    return kernel


@device_function
def even_place(key, k, batch, batches):
    """Which interaction is number k of the batch; see `sample_even_cpu`."""
    start = below(mix64(key + np.uint64(k) * GOLDEN), np.uint64(batches))
    turned = np.int64(start) + batch
    return k * batches + (turned if turned < batches else turned - batches)


@functools.cache
def sample_even_cpu():
    """kernel(key, batch, batches, rows, columns, counter, firsts, users, taken)

    Interaction number k of the batch is one of the k-th `batches` neighbours among all: a batch
    is spread evenly over the users, lies by user, and is read from front to back.  Each group of
    neighbours goes round from a place of its own, drawn anew in each epoch.

    key             uint64     the epoch's key
    batch, batches  int        number of the batch, from 0, and how many make up the epoch
    rows            (n,) i4    user of each interaction, ascending
    columns         (n,) i4    its item as a position in the catalogue
    counter         `new_counter`
    firsts          (chunks + 1,) i8   out: how many users begin in the chunks of CHUNK before each
    users           (G,) i8    out; G = ceil(n / batches), -1 where the last one is not used
    taken           (G,) i8    out: positions in the catalogue
    """
    digest = DIGEST

    @team_kernel
    def kernel(key, batch, batches, rows, columns, counter, firsts, users, taken):
        _ = digest
        groups, total, chunks = users.shape[0], columns.shape[0], firsts.shape[0] - 1
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            begin = chunk * CHUNK
            before = np.int64(-1)
            if begin > 0:
                before = np.int64(rows[even_place(key, begin - 1, batch, batches)])
            count = 0
            for k in range(begin, min(groups, begin + CHUNK)):
                place = even_place(key, k, batch, batches)
                if place >= total:
                    users[k] = -1
                    continue
                user = np.int64(rows[place])
                users[k] = user
                taken[k] = columns[place]
                count += 1 if user != before else 0
                before = user
            firsts[chunk] = count
            if next_chunk(counter, 1) == chunks - 1:  # the last one to be done
                begun = 0
                for c in range(chunks):
                    count = firsts[c]
                    firsts[c] = begun
                    begun += count
                firsts[chunks] = begun

    return kernel


@functools.cache
def each_user_cpu():
    """kernel(all_users, firsts, counter, users, starts): who has interactions, and from where on.

    all_users  (B,) i8      ascending; of `sample_even_cpu`, as
    firsts     (chunks + 1,) i8
    counter    `new_counter`
    users      (U,) i8      out: U = firsts[chunks]
    starts     (U + 1,) i8  out, but for the last one
    """
    digest = DIGEST

    @team_kernel
    def kernel(all_users, firsts, counter, users, starts):
        _ = digest
        batch, chunks = all_users.shape[0], firsts.shape[0] - 1
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            begin, u = chunk * CHUNK, firsts[chunk]
            before = np.int64(-1)
            if begin > 0:
                before = all_users[begin - 1]
            for k in range(begin, min(batch, begin + CHUNK)):
                user = all_users[k]
                if user != before:
                    users[u] = user
                    starts[u] = k
                    u += 1
                before = user

    return kernel


@device_function
def next_of(candidate, low, high):
    """The next of the candidates low..high-1, who go round."""
    return candidate + 1 if candidate + 1 < high else low


@cold_function
def another(candidate, negatives, low, high, columns, begin, end, bits):
    """The first after this candidate that the user did not take; -1: there is none."""
    for _attempt in range(low + 1, high):
        candidate = next_of(candidate, low, high)
        if not took(negatives[candidate], columns, begin, end, bits):
            return candidate
    return -1


@functools.cache
def sample_opponents_cpu():
    """kernel(key, first_draw, starts, users, tiles, size, indptr, columns, alias, bits, counter,
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
    bits             (.,) u1    see `filter_cpu`
    counter          `new_counter`
    negatives        (M,) i8    out: positions in the catalogue
    opponents        (B,) i4    out: which negative stands against each interaction; -1: the user
                                took all of the tile's
    """
    digest = DIGEST

    @team_kernel
    def kernel(
        key, first_draw, starts, users, tiles, size, indptr, columns, alias, bits, counter,
        negatives, opponents,
    ):  # fmt: skip
        _ = digest
        number = np.uint64(alias.shape[0])
        negative, opponent, start = first(negatives), first(opponents), first(starts)
        while True:
            tile = next_chunk(counter, 0)
            if tile >= tiles.shape[0] - 1:
                break
            low, high = tiles[tile], tiles[tile + 1]
            last = min(users.shape[0], (tile + 1) * size)
            for u in range(tile * size, last):
                prefetch_read(at(first(bits), indptr[users[u]] * FILTER_BYTES))
            for m in range(low, high):
                random = mix64((key ^ NEGATIVE) + (first_draw + np.uint64(m)) * GOLDEN)
                negative[m] = draw_alias(random, number, alias)
            candidate = low
            for u in range(tile * size, last):
                begin, end = indptr[users[u]], indptr[users[u] + 1]
                for k in range(start[u], start[u + 1]):
                    found = candidate
                    if unlikely(took(negative[found], columns, begin, end, bits)):
                        found = another(found, negatives, low, high, columns, begin, end, bits)
                    opponent[k] = found
                    candidate = next_of(candidate, low, high)

    return kernel


@functools.cache
def sample_shared_cpu():
    """kernel(key, start, alias, counter, negatives)

    key, start  uint64     the epoch's key; number of the first draw
    alias       (C,) u8    see `draw_alias`
    counter     `new_counter`
    negatives   (N,) i8    out: positions in the catalogue
    """
    digest = DIGEST

    @team_kernel
    def kernel(key, start, alias, counter, negatives):
        _ = digest
        count = negatives.shape[0]
        number = np.uint64(alias.shape[0])
        while True:
            begin = next_chunk(counter, 0) * CHUNK
            if begin >= count:
                break
            for k in range(begin, min(count, begin + CHUNK)):
                random = mix64((key ^ NEGATIVE) + (start + np.uint64(k)) * GOLDEN)
                negatives[k] = draw_alias(random, number, alias)

    return kernel
