"""Cutting a batch's work into chunks that cost about the same, by its contents, never by threads.

    bags       chunk c: the bags b with offsets[b] + b in [c SIZE, (c + 1) SIZE)
    segments   chunk c: the segments u with (starts[u] - starts[u0]) + 3 (u - u0) in [.., ..): a
               row of its own costs as much as three positions more
    hot        a segment of more than HOT positions is also cut into its blocks of BLOCK positions,
               whose sums threads share (`backward`)

Shapes   offsets (B+1,) i8 · starts (U+1,) i8
         bounds (chunks+1,) i8: bags or segments [bounds[c], bounds[c+1]) are chunk c's
         blocks (H, 2) i8: begin and end of each block of the hot segments, in order
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from sparse_embed.kernels._intrinsics import first
from sparse_embed.kernels._jit import DIGEST, cold_function, serial_kernel

Int64 = NDArray[np.int64]
BLOCK = 256
HOT = 2048
_PROBE = 1024  # entries between probes for hot segments: at most HOT, so each is hit
_ROW = 3


@functools.cache
def cut_bags_cpu():
    digest = DIGEST

    @serial_kernel
    def cut_bags(offsets, size, bounds):
        """-> whether the offsets never fall; where they do, bounds are rubbish"""
        _ = digest
        num_bags = offsets.shape[0] - 1
        offset, falls = first(offsets), 0
        for b in range(num_bags):
            falls += offset[b + 1] < offset[b]
        for c in range(bounds.shape[0]):
            low, high = 0, num_bags
            while low < high:
                middle = (low + high) >> 1
                if offsets[middle] + middle < c * size:
                    low = middle + 1
                else:
                    high = middle
            bounds[c] = low
        return falls == 0

    return cut_bags


def cut_bags_if_sorted(offsets: Int64, size: int) -> Int64 | None:
    """bounds; None where the offsets, whose first and last are as they should be, fall."""
    work = int(offsets[-1]) + len(offsets) - 1
    bounds = np.empty(-(-work // size) + 1, np.int64)
    return bounds if cut_bags_cpu()(offsets, size, bounds) else None


def cut_bags(offsets: Int64, size: int) -> Int64:
    """bounds, from offsets that were checked"""
    bounds = cut_bags_if_sorted(offsets, size)
    assert bounds is not None
    return bounds


@cold_function
def _segment_of(starts, low, high, entry):
    """The segment in [low, high) that holds this entry."""
    high -= 1
    while low < high:
        middle = (low + high + 1) >> 1
        if starts[middle] <= entry:
            low = middle
        else:
            high = middle - 1
    return low


@functools.cache
def cut_segments_cpu():
    digest = DIGEST

    @serial_kernel
    def cut_segments(starts, u0, u1, size, bounds, blocks):
        """-> how many blocks there are"""
        _ = digest
        low = u0
        for c in range(bounds.shape[0]):
            # Each segment is at least one position and a row: the next bound is not far.
            high = min(u1, low + size // (_ROW + 1) + 1)
            while low < high:
                u = (low + high) >> 1
                if starts[u] - starts[u0] + _ROW * (u - u0) < c * size:
                    low = u + 1
                else:
                    high = u
            bounds[c] = low
        j = 0
        entry = starts[u0]
        while entry < starts[u1]:
            u = _segment_of(starts, u0, u1, entry)
            begin, end = starts[u], starts[u + 1]
            if end - begin <= HOT:
                entry += _PROBE
                continue
            while begin < end:
                blocks[j, 0] = begin
                blocks[j, 1] = min(begin + BLOCK, end)
                begin += BLOCK
                j += 1
            entry = end
        return j

    return cut_segments


def cut_segments(starts: Int64, u0: int, u1: int, size: int) -> tuple[Int64, Int64]:
    """bounds, blocks"""
    entries = int(starts[u1] - starts[u0])
    work = entries + _ROW * (u1 - u0)
    bounds = np.empty(-(-work // size) + 1, np.int64)
    blocks = np.empty((entries // BLOCK + entries // HOT, 2), np.int64)  # at most
    count = cut_segments_cpu()(starts, u0, u1, size, bounds, blocks)
    return bounds, blocks[:count]
