"""Open-addressing map from row numbers to int64 values.

Shapes   table (C, 2) i8, C a power of two, column 0 the key (EMPTY when free), column 1 the value
         flags (S,) u1, by value
         keys (n,) i8, each >= 0 · values (n,) i8
Probing  linear from fmix64(key) & (C - 1); deletion shifts the run back, so there are no tombstones
Load     the owner (storage.rowmap.RowMap) keeps it at or below 0.6
Source   fmix64: MurmurHash3's 64-bit finaliser (Appleby, public domain)
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk, prefetch
from sparse_embed.kernels._jit import DIGEST, device_function, serial_kernel, team_kernel

EMPTY = np.int64(-1)
_M1 = np.uint64(0xFF51AFD7ED558CCD)
_M2 = np.uint64(0xC4CEB9FE1A85EC53)
_S33 = np.uint64(33)
_CHUNKS = 32  # fixed, so that work is split alike for every number of threads
_AHEAD = 12


@device_function
def _home(key, mask):
    h = np.uint64(key)
    h = (h ^ (h >> _S33)) * _M1
    h = (h ^ (h >> _S33)) * _M2
    h = h ^ (h >> _S33)
    return np.int64(h & np.uint64(mask))


@device_function
def _find(table, mask, key):
    """The position of `key`, or of the free place where it belongs."""
    at = _home(key, mask)
    while table[at, 0] != EMPTY and table[at, 0] != key:
        at = (at + 1) & mask
    return at


@functools.cache
def find_cpu():
    digest = DIGEST

    @team_kernel
    def find(table, keys, flags, put, counter, values):
        """values[i] = table[keys[i]], or -1 where the key is absent.

        Where there are flags (or none: (0,)), those of the values found get `put`.  Threads may
        store the same byte twice, always with the same value: nobody else writes now.
        """
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        mask = np.int64(table.shape[0] - 1)
        n, marks = keys.shape[0], flags.shape[0] > 0
        while True:
            c = next_chunk(counter, 0)
            if c >= _CHUNKS:
                break
            begin, end = n * c // _CHUNKS, n * (c + 1) // _CHUNKS
            for i in range(begin, end):
                if i + _AHEAD < end:
                    prefetch(table, _home(keys[i + _AHEAD], mask), 0)
                at = _find(table, mask, keys[i])
                value = table[at, 1] if table[at, 0] == keys[i] else EMPTY
                values[i] = value
                if marks and value >= 0 and (flags[value] & put) != put:
                    flags[value] = flags[value] | put

    return find


@functools.cache
def insert_cpu():
    digest = DIGEST

    @serial_kernel
    def insert(table, keys, values):
        """Set table[keys[i]] = values[i] in order; returns how many keys were new."""
        digest  # noqa: B018
        mask = np.int64(table.shape[0] - 1)
        n = keys.shape[0]
        new = 0
        for i in range(n):
            if i + _AHEAD < n:
                prefetch(table, _home(keys[i + _AHEAD], mask), 0)
            at = _find(table, mask, keys[i])
            if table[at, 0] == EMPTY:
                table[at, 0] = keys[i]
                new += 1
            table[at, 1] = values[i]
        return new

    return insert


@functools.cache
def erase_cpu():
    digest = DIGEST

    @serial_kernel
    def erase(table, keys):
        """Remove the keys; absent ones are passed over.  Returns how many were removed."""
        digest  # noqa: B018
        mask = np.int64(table.shape[0] - 1)
        n = keys.shape[0]
        removed = 0
        for i in range(n):
            if i + _AHEAD < n:
                prefetch(table, _home(keys[i + _AHEAD], mask), 0)
            hole = _find(table, mask, keys[i])
            if table[hole, 0] == EMPTY:
                continue
            removed += 1
            at = hole
            while True:
                at = (at + 1) & mask
                if table[at, 0] == EMPTY:
                    break
                # An entry may move into the hole only if its home is not inside (hole, at].
                if ((at - _home(table[at, 0], mask)) & mask) >= ((at - hole) & mask):
                    table[hole, 0] = table[at, 0]
                    table[hole, 1] = table[at, 1]
                    hole = at
            table[hole, 0] = EMPTY
        return removed

    return erase


@functools.cache
def items_cpu():
    digest = DIGEST

    @serial_kernel
    def items(table, keys, values):
        """Write the entries to keys and values, in the table's order."""
        digest  # noqa: B018
        n = 0
        for i in range(table.shape[0]):
            if table[i, 0] != EMPTY:
                keys[n] = table[i, 0]
                values[n] = table[i, 1]
                n += 1

    return items
