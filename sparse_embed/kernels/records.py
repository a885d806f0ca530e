"""Moving whole records, and the flags that say what became of them.

Shapes   records (S, W) f4: the resident records, W lanes each · flags (S,) u1 · rows (n,) i8
         slots (n,) i8 · data (n, W) f4: records on their way to or from a file
Flags    DIRTY: newer than the newest commit frame · INFLIGHT: in the frame being written now
         REFERENCED: used since the clock hand passed · PINNED: needed by the batch in hand
         USED: the slot holds a row (indexed tables) · HOT: the newest commit frame had the row
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import (
    at,
    first,
    next_chunk,
    prefetch,
    prefetch_read,
    prefetch_write,
    row_pointer,
    stream_4,
    streams_done,
)
from sparse_embed.kernels._jit import DIGEST, serial_kernel, team_kernel
from sparse_embed.kernels.checksum import avalanche, merged, round_of, start

DIRTY = np.uint8(1)
INFLIGHT = np.uint8(2)
REFERENCED = np.uint8(8)
PINNED = np.uint8(4)
USED = np.uint8(16)
HOT = np.uint8(32)
UNSAVED = np.uint8(3)  # DIRTY | INFLIGHT: must go to the scratch file when evicted
_KEEP = np.uint8(255)
_NOT_DIRTY_OR_HOT = np.uint8(222)
_KEEP_INFLIGHT = np.uint8(253)
_TO_INFLIGHT = np.uint8(1)
_TO_HOT = np.uint8(5)
_ONE = np.uint64(1)
_EACH = np.uint64(0x0101010101010101)  # a flag of eight slots
_NO_FLAG = np.uint64(0)
_SIX = np.int64(6)
_MASK6 = np.int64(63)
_CHUNKS = 32
FLAGS_A_CHUNK = 1 << 14
_AHEAD = 8
_SOON = 4  # records ahead of which all lines are asked for
_LINES = 16  # at the most; the hardware has seen the stream by then
_BYTES = np.uint64(8)


@functools.cache
def gather_records_cpu():
    digest = DIGEST

    @team_kernel
    def gather_records(records, slots, counter, data):
        """data[i] = records[slots[i]]"""
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        n, width = data.shape
        while True:
            c = next_chunk(counter, 0)
            if c >= _CHUNKS:
                break
            begin, end = n * c // _CHUNKS, n * (c + 1) // _CHUNKS
            for i in range(begin, end):
                if i + _AHEAD < end:
                    prefetch(records, slots[i + _AHEAD], 0)
                s = slots[i]
                for d in range(width):
                    data[i, d] = records[s, d]

    return gather_records


@functools.cache
def gather_blocks_cpu():
    digest = DIGEST

    @team_kernel
    def gather_blocks(words, slots, begin, seed, counter, out, digests):
        """out = the words of records[slots], one behind the other, from word `begin` of them on;
        digests[b] = XXH64 of the b-th of as many equal parts of `out`.

        words (S, W / 2) u8: the records, a multiple of four words each, as `begin` and the parts
        are.  One pass over memory: 1.8 times as fast as the copy and then the digests.
        """
        digest  # noqa: B018
        width, n = words.shape[1], slots.shape[0]
        size = out.shape[0] // digests.shape[0]
        lines = min((width + 7) // 8, _LINES)
        base = first(out)
        while True:
            block = next_chunk(counter, 0)
            if block >= digests.shape[0]:
                break
            i = (begin + block * size) // width
            w = (begin + block * size) - i * width  # of record i's words come before this part
            to = at(base, block * size)
            left = size
            a, b, c, d = start(seed)
            while left > 0:
                if i + _SOON < n:
                    soon = row_pointer(words, slots[i + _SOON])
                    for line in range(lines):
                        prefetch_read(at(soon, 8 * line))
                source = at(row_pointer(words, slots[i]), w)
                count = min(width - w, left)
                for k in range(0, count, 4):
                    four = at(source, k)
                    stream_4(at(to, k), four)
                    a, b = round_of(a, four[0]), round_of(b, four[1])
                    c, d = round_of(c, four[2]), round_of(d, four[3])
                to = at(to, count)
                left -= count
                i += 1
                w = np.int64(0)
            digests[block] = avalanche(merged(a, b, c, d) + np.uint64(size) * _BYTES)
            streams_done()

    return gather_blocks


@functools.cache
def scatter_records_cpu():
    digest = DIGEST

    @team_kernel
    def scatter_records(records, slots, counter, data):
        """records[slots[i]] = data[i]; slots are distinct."""
        digest  # noqa: B018
        n, width = data.shape
        while True:
            c = next_chunk(counter, 0)
            if c >= _CHUNKS:
                break
            begin, end = n * c // _CHUNKS, n * (c + 1) // _CHUNKS
            for i in range(begin, end):
                s = slots[i]
                for d in range(width):
                    records[s, d] = data[i, d]

    return scatter_records


@functools.cache
def move_records_serial():
    digest = DIGEST

    @serial_kernel
    def move_records(source, begins, target, places, width):
        """target[places[i] + d] = source[begins[i] + d] for d < width, for a background thread.

        source, target (words,) f4 · begins, places (n,) i8: of word 0 of each record.  Neither was
        looked at lately (a disk wrote the one, the other lies anywhere), so both are asked for.
        """
        digest  # noqa: B018
        n = begins.shape[0]
        lines = min((width + 15) // 16, _LINES)
        for i in range(n):
            if i + _SOON < n:
                soon = at(first(source), begins[i + _SOON])
                then = at(first(target), places[i + _SOON])
                for line in range(lines):
                    prefetch_read(at(soon, 16 * line))
                    prefetch_write(at(then, 16 * line))
            s, t = begins[i], places[i]
            for d in range(width):
                target[t + d] = source[s + d]

    return move_records


@functools.cache
def count_flagged_cpu():
    digest = DIGEST
    size = FLAGS_A_CHUNK

    @team_kernel
    def count_flagged(flags, limit, want, counter, counts):
        """counts[c] = how many slots of chunk c, all below `limit`, have any flag of `want`."""
        digest  # noqa: B018
        while True:
            c = next_chunk(counter, 0)
            if c >= counts.shape[0]:
                break
            count = np.int64(0)
            for s in range(c * size, min((c + 1) * size, limit)):
                count += (flags[s] & want) != 0
            counts[c] = count

    return count_flagged


@functools.cache
def select_flagged_cpu():
    digest = DIGEST
    size = FLAGS_A_CHUNK

    @team_kernel
    def select_flagged(flags, words, want, ends, counter, slots):
        """The slots with any flag of `want`, ascending; ends (chunks,): running sum of the counts,
        words: the flags eight at a time, as many as there are of them.

        Few rows change between two commits, so eight are passed over at a time.  The others
        without branches: flags of a training step are as good as random.
        """
        digest  # noqa: B018
        wants = np.uint64(want) * _EACH
        while True:
            c = next_chunk(counter, 0)
            if c >= ends.shape[0]:
                break
            n = ends[c - 1] if c else np.int64(0)
            s = c * size
            end = ends[c]
            while n < end:
                if s & 7 == 0 and s >> 3 < words.shape[0]:
                    if words[s >> 3] & wants == _NO_FLAG:
                        s += 8
                        continue
                    if n + 8 <= end:  # so many are still to come: all eight are below the limit
                        for t in range(s, s + 8):
                            slots[n] = t
                            n += (flags[t] & want) != 0
                        s += 8
                        continue
                slots[n] = s
                n += (flags[s] & want) != 0
                s += 1

    return select_flagged


@functools.cache
def change_flags_cpu():
    digest = DIGEST

    @serial_kernel
    def change_flags(flags, slots, clear, put):
        """flags[s] = flags[s] & ~clear | put for the given slots."""
        digest  # noqa: B018
        for i in range(slots.shape[0]):
            s = slots[i]
            flags[s] = (flags[s] & (_KEEP ^ clear)) | put

    return change_flags


@functools.cache
def mark_written_cpu():
    digest = DIGEST

    @serial_kernel
    def mark_written(flags, limit):
        """After a frame is taken: DIRTY flags below `limit` become INFLIGHT and HOT ones."""
        digest  # noqa: B018
        for s in range(limit):  # without branches: many flags at once
            f = flags[s]
            d = f & DIRTY
            flags[s] = (f & _NOT_DIRTY_OR_HOT) | (d << _TO_INFLIGHT) | (d << _TO_HOT)

    return mark_written


@functools.cache
def settle_cpu():
    digest = DIGEST

    @serial_kernel
    def settle(flags, limit, put):
        """The frame's fate is known: INFLIGHT flags become `put` (0 durable, DIRTY failed)."""
        digest  # noqa: B018
        for s in range(limit):
            f = flags[s]
            flags[s] = (f & _KEEP_INFLIGHT) | (((f & INFLIGHT) >> _TO_INFLIGHT) * put)

    return settle


@functools.cache
def choose_victims_cpu():
    digest = DIGEST

    @serial_kernel
    def choose_victims(flags, limit, hand, victims):
        """Second chance: fill `victims` with slots to evict, from `hand` on.

        A referenced slot loses its mark and is passed over once; pinned and free ones always.
        Returns (found, hand).  Found is smaller than asked when all others are pinned.
        """
        digest  # noqa: B018
        found = 0
        steps = 0
        while found < victims.shape[0] and steps < 2 * limit:
            f = flags[hand]
            if f & USED and not f & PINNED:
                if f & REFERENCED:
                    flags[hand] = f & (_KEEP ^ REFERENCED)
                else:
                    victims[found] = hand
                    found += 1
                    flags[hand] = f | PINNED  # not twice in one call
            hand += 1
            if hand >= limit:
                hand = 0
            steps += 1
        return found, hand

    return choose_victims


@functools.cache
def missing_rows_cpu():
    digest = DIGEST

    @team_kernel
    def missing_rows(present, rows, counter, counts):
        """counts[c] = how many rows of chunk c have no bit in `present` ((E + 63) // 64,) u8."""
        digest  # noqa: B018
        n = rows.shape[0]
        chunks = counts.shape[0]
        while True:
            c = next_chunk(counter, 0)
            if c >= chunks:
                break
            count = 0
            for i in range(n * c // chunks, n * (c + 1) // chunks):
                r = rows[i]
                if not (present[r >> _SIX] >> np.uint64(r & _MASK6)) & _ONE:
                    count += 1
            counts[c] = count

    return missing_rows


@functools.cache
def collect_missing_cpu():
    digest = DIGEST

    @serial_kernel
    def collect_missing(present, rows, missing):
        """The rows without a bit in `present`, each once, in order of appearance; sets the bits."""
        digest  # noqa: B018
        n = 0
        for i in range(rows.shape[0]):
            r = rows[i]
            bit = _ONE << np.uint64(r & _MASK6)
            if not present[r >> _SIX] & bit:
                present[r >> _SIX] |= bit
                missing[n] = r
                n += 1
        return n

    return collect_missing


@functools.cache
def clear_bits_cpu():
    digest = DIGEST

    @serial_kernel
    def clear_bits(present, rows):
        digest  # noqa: B018
        for i in range(rows.shape[0]):
            r = rows[i]
            present[r >> _SIX] &= ~(_ONE << np.uint64(r & _MASK6))

    return clear_bits
