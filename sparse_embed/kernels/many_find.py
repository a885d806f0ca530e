"""Where the rows of many tables are: addresses of records, by key.

Shapes   keys (n,) i8: see `many_bags`; in any order, cheapest when tables come in runs
         starts (T+1,) i8: table t has the keys [starts[t], starts[t+1])
         where (T, FIELDS) i8, a table a line:

             0 kind   1 address of the records   2 bytes of a record   3 address of the flags
             4 address of the index   5 mask of the index

         records_at, flags_at (n,) i8: 0 where there is none (padding, AWAY, a miss)
         flags_at (0,): not asked for, as nothing will be changed
         missing (CHUNKS, T) i8: rows that are not in memory, by chunk and table
Kinds    ALL: slot == row · PRESENT: the same, where the bit of the row in the index is set
         INDEXED: the index is an open-addressing map (`rowmap`) from rows to slots
         AWAY: the table is not reached this way
Flags    what is found in an INDEXED table is marked REFERENCED, as `records.reference` does
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._addresses import i64_at, prefetch_at, u8_at, u64_at
from sparse_embed.kernels._intrinsics import first, next_chunk, row_pointer
from sparse_embed.kernels._jit import DIGEST, cold_function, team_kernel
from sparse_embed.kernels.records import REFERENCED
from sparse_embed.kernels.rowmap import EMPTY, _home

ALL, PRESENT, INDEXED, AWAY = 0, 1, 2, 3
FIELDS = 6
CHUNKS = 32
_AHEAD = 12
_SIX, _MASK6 = np.int64(6), np.int64(63)
_ONE = np.uint64(1)
_ZERO = np.int64(0)


@cold_function
def table_of(starts, key):
    """The table that a key belongs to."""
    low, high = 0, starts.shape[0] - 2
    while low < high:
        middle = (low + high + 1) >> 1
        if starts[middle] <= key:
            low = middle
        else:
            high = middle - 1
    return low


@functools.cache
def find_many_cpu():
    digest = DIGEST

    @team_kernel
    def find_many(keys, starts, where, counter, records_at, flags_at, missing):
        _ = digest
        n, marks = keys.shape[0], flags_at.shape[0] > 0
        while True:
            c = next_chunk(counter, 0)
            if c >= CHUNKS:
                break
            begin, end = n * c // CHUNKS, n * (c + 1) // CHUNKS
            key_of, record_of, flag_of = first(keys), first(records_at), first(flags_at)
            absent = row_pointer(missing, c)
            table, low, high = _ZERO, _ZERO, _ZERO
            kind, base, width, flags, index, mask = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
            for i in range(begin, end):
                key = key_of[i]
                record_of[i] = 0
                if marks:
                    flag_of[i] = 0
                if key < 0:
                    continue
                if key < low or key >= high:
                    table = table_of(starts, key)
                    low, high = starts[table], starts[table + 1]
                    kind, base, width = where[table, 0], where[table, 1], where[table, 2]
                    flags, index, mask = where[table, 3], where[table, 4], where[table, 5]
                row = key - low
                slot = row
                if kind == PRESENT:
                    if not (u64_at(index)[row >> _SIX] >> np.uint64(row & _MASK6)) & _ONE:
                        absent[table] += 1
                        continue
                elif kind == INDEXED:
                    if i + _AHEAD < end:
                        ahead = key_of[i + _AHEAD]
                        if ahead >= low and ahead < high:
                            prefetch_at(index + 16 * _home(ahead - low, mask), 1, 0)
                    entry = i64_at(index)
                    at = _home(row, mask)
                    while entry[2 * at] != EMPTY and entry[2 * at] != row:
                        at = (at + 1) & mask
                    if entry[2 * at] != row:
                        absent[table] += 1
                        continue
                    slot = entry[2 * at + 1]
                    flag = u8_at(flags + slot)
                    if not flag[0] & REFERENCED:
                        flag[0] = flag[0] | REFERENCED
                elif kind == AWAY:
                    continue
                record_of[i] = base + slot * width
                if marks:
                    flag_of[i] = flags + slot

    return find_many
