"""Which slot of the device a row lies in, and which rows to throw out: index and clock.

Shapes   keys (T,) i8: row + 1, EMPTY, or GONE where a row was · places (T,) i4: its slot
         owners (S,) i8: row + 1 of a slot, 0 when free · flags (S,) u1: as `kernels/records.py`
         stamps (S,) i4: the batch that used the slot last · seen (S,) i4: the stamp that the clock
         hand saw when it passed
Probing  linear from the upper half of fmix64(row), times T.  T = 2 S; rows that leave put GONE in
         their place, which rows that come take again; the owner rebuilds the index before GONE
         fills an eighth of it
Clock    second chance, as `choose_victims_cpu`: a slot used since the hand passed (stamps != seen)
         is passed over once; one used by a batch in hand is kept

Rows that come in are distinct and absent, so two threads never insert the same key.
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function
from sparse_embed.kernels.cuda._shim import cuda, cuda_kernel
from sparse_embed.kernels.records import DIRTY, UNSAVED, USED

EMPTY = np.int64(0)
GONE = np.int64(-1)  # below EMPTY: both are free to take
_M1 = np.uint64(0xFF51AFD7ED558CCD)
_M2 = np.uint64(0xC4CEB9FE1A85EC53)
_S33 = np.uint64(33)
_S32 = np.uint64(32)
_NONE = np.uint8(0)
_ONE = np.uint8(1)


@device_function
def home(row, cells):
    """Where the probing for a row begins, among fewer than 2^32 cells."""
    h = np.uint64(row)
    h = (h ^ (h >> _S33)) * _M1
    h = (h ^ (h >> _S33)) * _M2
    h = h ^ (h >> _S33)
    return np.int64(((h >> _S32) * np.uint64(cells)) >> _S32)


@device_function
def seek(keys, row):
    """The cell of a row, or -1; there is an EMPTY cell always."""
    cells = keys.shape[0]
    at = home(row, cells)
    while True:
        key = keys[at]
        if key == row + 1:
            return at
        if key == EMPTY:
            return np.int64(-1)
        at += 1
        if at == cells:
            at = np.int64(0)


@functools.cache
def find_slots_cuda():
    """kernel(keys, places, rows, padding_idx, now, stamps, slots, claims, absent, count)

    slots (n,) i8     out: of each position's row; -1 where it is absent, 0 at padded positions
    now               of this batch: stamps what is found; 0 stamps nothing
    claims (2n,) i8   zeros; a set of the absent rows
    absent (n,) i8    out: the distinct absent rows, in any order; count (1,) i8 of them
    """
    digest = DIGEST

    @cuda_kernel
    def find_slots(keys, places, rows, padding_idx, now, stamps, slots, claims, absent, count):
        _ = digest
        for i in range(cuda.grid(1), rows.shape[0], cuda.gridsize(1)):
            row = rows[i]
            if row == padding_idx:
                slots[i] = 0
                continue
            at = seek(keys, row)
            if at >= 0:
                slot = places[at]
                slots[i] = slot
                if now != 0:
                    stamps[slot] = now
                continue
            slots[i] = -1
            cells = claims.shape[0]
            at = home(row, cells)
            while True:
                old = cuda.atomic.cas(claims, at, EMPTY, row + 1)
                if old == EMPTY:
                    absent[cuda.atomic.add(count, 0, 1)] = row
                if old == EMPTY or old == row + 1:
                    break
                at += 1
                if at == cells:
                    at = np.int64(0)

    return find_slots


@functools.cache
def look_up_slots_cuda():
    """kernel(keys, places, rows, slots): slots (n,) i8 of rows that may be absent (-1)."""
    digest = DIGEST

    @cuda_kernel
    def look_up_slots(keys, places, rows, slots):
        _ = digest
        for i in range(cuda.grid(1), rows.shape[0], cuda.gridsize(1)):
            at = seek(keys, rows[i])
            slots[i] = places[at] if at >= 0 else -1

    return look_up_slots


@device_function
def insert(keys, places, row, slot):
    """Put a row that is absent into the index."""
    cells = keys.shape[0]
    at = home(row, cells)
    while True:
        key = keys[at]
        if key <= EMPTY and cuda.atomic.cas(keys, at, key, row + 1) == key:
            places[at] = slot
            return
        at += 1
        if at == cells:
            at = np.int64(0)


@functools.cache
def admit_cuda():
    """kernel(keys, places, rows, slots, given, now, owners, stamps, seen, flags)

    Make distinct absent rows known in free slots; given (n,) u1: DIRTY and INFLIGHT they come with.
    """
    digest = DIGEST

    @cuda_kernel
    def admit(keys, places, rows, slots, given, now, owners, stamps, seen, flags):
        _ = digest
        for i in range(cuda.grid(1), rows.shape[0], cuda.gridsize(1)):
            row, slot = rows[i], slots[i]
            owners[slot] = row + 1
            stamps[slot] = now
            seen[slot] = 0
            flags[slot] = given[i] | USED
            insert(keys, places, row, slot)

    return admit


@functools.cache
def dismiss_cuda():
    """kernel(keys, slots, owners, flags): take the rows of these slots out of the index."""
    digest = DIGEST

    @cuda_kernel
    def dismiss(keys, slots, owners, flags):
        _ = digest
        for i in range(cuda.grid(1), slots.shape[0], cuda.gridsize(1)):
            slot = slots[i]
            at = seek(keys, owners[slot] - 1)
            if at >= 0:
                keys[at] = GONE
            owners[slot] = 0
            flags[slot] = _NONE

    return dismiss


@functools.cache
def index_again_cuda():
    """kernel(keys, places, owners, limit): insert all rows below `limit` into an empty index."""
    digest = DIGEST

    @cuda_kernel
    def index_again(keys, places, owners, limit):
        _ = digest
        for slot in range(cuda.grid(1), limit, cuda.gridsize(1)):
            if owners[slot] != 0:
                insert(keys, places, owners[slot] - 1, slot)

    return index_again


@functools.cache
def mark_idle_cuda():
    """kernel(owners, stamps, seen, begin, kept, marks)

    marks (n,) u1: 1 where slot begin + i may go: used, not by a batch from `kept` on, and not since
    the hand passed.
    """
    digest = DIGEST

    @cuda_kernel
    def mark_idle(owners, stamps, seen, begin, kept, marks):
        _ = digest
        for i in range(cuda.grid(1), marks.shape[0], cuda.gridsize(1)):
            slot = begin + i
            stamp = stamps[slot]
            idle = owners[slot] != 0 and stamp < kept and stamp == seen[slot]
            marks[i] = _ONE if idle else _NONE

    return mark_idle


@functools.cache
def pass_hand_cuda():
    """kernel(stamps, seen, begin, end): the hand has passed these slots."""
    digest = DIGEST

    @cuda_kernel
    def pass_hand(stamps, seen, begin, end):
        _ = digest
        for slot in range(begin + cuda.grid(1), end, cuda.gridsize(1)):
            seen[slot] = stamps[slot]

    return pass_hand


@functools.cache
def choose_cuda():
    """kernel(found, begin, now, stamps, chosen): chosen[i] = begin + found[i], kept from `now`."""
    digest = DIGEST

    @cuda_kernel
    def choose(found, begin, now, stamps, chosen):
        _ = digest
        for i in range(cuda.grid(1), chosen.shape[0], cuda.gridsize(1)):
            slot = begin + found[i]
            chosen[i] = slot
            stamps[slot] = now

    return choose


@functools.cache
def describe_cuda():
    """kernel(slots, owners, flags, rows, found): the row and the DIRTY and INFLIGHT of slots."""
    digest = DIGEST

    @cuda_kernel
    def describe(slots, owners, flags, rows, found):
        _ = digest
        for i in range(cuda.grid(1), slots.shape[0], cuda.gridsize(1)):
            rows[i] = owners[slots[i]] - 1
            found[i] = flags[slots[i]] & UNSAVED

    return describe


@functools.cache
def clear_records_cuda():
    """kernel(records, slots): these records become zeros, as those of virgin rows are."""
    digest = DIGEST

    @cuda_kernel
    def clear_records(records, slots):
        _ = digest
        width = records.shape[1]
        for place in range(cuda.grid(1), slots.shape[0] * width, cuda.gridsize(1)):
            records[slots[place // width], place % width] = np.float32(0)

    return clear_records


__all__ = ["DIRTY", "EMPTY", "GONE"]
