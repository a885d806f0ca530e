"""Gradient of the rows of a batch: for each unique row, the sum over its positions.

    g[u, d] = sum_i c[i] grad[bag(i), d]       i in [starts[u], starts[u+1])
    max     = only the i with argmax[bag(i), d] == positions[i]

Shapes   starts (U+1,) i8 · of entries [shift, shift + e), see `entries`: bags (e,) i8 and
         factors (e,) f4, or one 1 and a step of 0 · positions (n,) i8 · argmax (B, D) i8
         grad (B, D) f4 · out (U, D) f4
         bounds, blocks: see `plan.cut_segments` · block_sums (H, D) f4
Order    left to right in blocks of 256 positions counted from the segment's start, each block from
         +0.0; then the block sums left to right.  So threads can share a row that is everywhere:
         the block sums of hot segments are computed first, in parallel.  (A segment of one block
         is summed at once: a sum that began with +0.0 is never -0.0, so adding it to +0.0 changes
         no bit.)
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import (
    first,
    next_chunk,
    prefetch_row,
    row_pointer,
    stack_f32,
    unlikely,
)
from sparse_embed.kernels._jit import DIGEST, cold_function, device_function, team_kernel
from sparse_embed.kernels.lanes import add_row, add_scaled_row, zero_row
from sparse_embed.kernels.plan import BLOCK, HOT

CHUNK = 512  # see `plan`
_AHEAD = 12
_ZERO = np.float32(0)


@device_function
def sum_entries(total, begin, end, last, bags, factors, factor_step, grad, dim):
    """total = the sum over entries [begin, end), left to right from +0.0.

    bags, factors: pointers.  `last` is the last entry there is.
    """
    zero_row(total, dim)
    for i in range(begin, end):
        prefetch_row(grad, bags[min(i + _AHEAD, last)], dim)
        add_scaled_row(total, row_pointer(grad, bags[i]), factors[i * factor_step], dim)


@cold_function
def first_block(blocks, begin):
    """The first hot block that begins at this entry or later."""
    low, high = 0, blocks.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if blocks[middle, 0] < begin:
            low = middle + 1
        else:
            high = middle
    return low


@device_function
def add_hot_blocks(total, begin, end, shift, blocks, block_sums, dim):
    """total += the sums of the blocks of a hot segment, left to right."""
    j = first_block(blocks, shift + begin)
    for _start in range(begin, end, BLOCK):
        add_row(total, row_pointer(block_sums, j), dim)
        j += 1


@cold_function
def sum_blocks(
    total, block, begin, end, last, bags, factors, factor_step, grad, shift, blocks, block_sums, dim
):
    """As `sum_entries`, of a segment of several blocks; hot ones have their sums already."""
    zero_row(total, dim)
    if end - begin > HOT:
        add_hot_blocks(total, begin, end, shift, blocks, block_sums, dim)
    else:
        for start in range(begin, end, BLOCK):
            stop = min(start + BLOCK, end)
            sum_entries(block, start, stop, last, bags, factors, factor_step, grad, dim)
            add_row(total, block, dim)


@device_function
def sum_segment(
    total, block, begin, end, last, bags, factors, factor_step, grad, shift, blocks, block_sums, dim
):
    """total = the gradient of a row: the sum over entries [begin, end) of its segment.

    begin and end count from `shift`, the blocks from 0.  block: scratch.
    """
    if unlikely(end - begin > BLOCK):
        sum_blocks(
            total, block, begin, end, last, bags, factors, factor_step, grad,
            shift, blocks, block_sums, dim,
        )  # fmt: skip
    else:
        sum_entries(total, begin, end, last, bags, factors, factor_step, grad, dim)


@functools.cache
def block_sums_cpu(dim: int):
    """For hot segments only, so compiled when the first one is met."""
    digest = DIGEST

    @team_kernel
    def block_sums(blocks, shift, bags, factors, factor_step, grad, counter, out):
        """out[j] = the sum of hot block j"""
        _ = digest
        last = bags.shape[0] - 1
        num_blocks = blocks.shape[0]
        bag, factor = first(bags), first(factors)
        total = stack_f32(dim)
        while True:
            j = next_chunk(counter, 0)
            if j >= num_blocks:
                break
            begin, end = blocks[j, 0] - shift, blocks[j, 1] - shift
            sum_entries(total, begin, end, last, bag, factor, factor_step, grad, dim)
            target = row_pointer(out, j)
            for d in range(dim):
                target[d] = total[d]

    return block_sums


@functools.cache
def backward_cpu(dim: int):
    digest = DIGEST

    @team_kernel
    def backward(
        bounds, blocks, block_sums, starts, bags, factors, factor_step, grad, counter, out
    ):
        _ = digest
        chunks, shift = bounds.shape[0] - 1, starts[0]
        last = bags.shape[0] - 1
        start, bag, factor = first(starts), first(bags), first(factors)
        block = stack_f32(dim)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            for u in range(bounds[chunk], bounds[chunk + 1]):
                sum_segment(
                    row_pointer(out, u), block, start[u] - shift, start[u + 1] - shift, last,
                    bag, factor, factor_step, grad, shift, blocks, block_sums, dim,
                )  # fmt: skip

    return backward


@functools.cache
def backward_max_cpu(dim: int):
    digest = DIGEST

    @team_kernel
    def backward_max(bounds, starts, positions, bags, argmax, grad, counter, out):
        """The gradient of mode "max"; a hot row is not shared here."""
        _ = digest
        chunks, shift = bounds.shape[0] - 1, starts[0]
        block = stack_f32(dim)
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= chunks:
                break
            for u in range(bounds[chunk], bounds[chunk + 1]):
                total = row_pointer(out, u)
                zero_row(total, dim)
                for begin in range(starts[u], starts[u + 1], BLOCK):
                    zero_row(block, dim)
                    for i in range(begin, min(begin + BLOCK, starts[u + 1])):
                        k, bag = positions[i], bags[i - shift]
                        winner, row = row_pointer(argmax, bag), row_pointer(grad, bag)
                        for d in range(dim):
                            block[d] = block[d] + (row[d] if winner[d] == k else _ZERO)
                    add_row(total, block, dim)

    return backward_max
