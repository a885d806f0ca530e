"""Entries: where the gradient of each sorted position comes from, and its share of it.

    bags[i - begin] = bag(k),  factors[i - begin] = weights[k] * scale[bag(k)]      k = positions[i]

Shapes   positions (n,) i8 · bag_ids (L,) i8 · weights (L,), scale (B,) f4, or one 1 and a step of 0
         bags (e,) i8, factors (e,) f4 or (0,) where each is 1, for entries [begin, begin + e)
Why      done once and in order, so that the sums of `backward` read two streams: looking a bag up
         twice for every entry there, to prefetch and to add, cost a third of the step.
"""

from __future__ import annotations

import functools

from sparse_embed.kernels._intrinsics import first, next_chunk
from sparse_embed.kernels._jit import DIGEST, team_kernel

_CHUNKS = 64


@functools.cache
def entries_cpu():
    digest = DIGEST

    @team_kernel
    def entries(
        positions, begin, bag_ids, weights, weight_step, scale, scale_step, counter, bags, factors
    ):
        _ = digest
        n, with_factors = bags.shape[0], factors.shape[0] > 0
        while True:
            c = next_chunk(counter, 0)
            if c >= _CHUNKS:
                break
            position, bag_of, weight, factor = (
                first(positions),
                first(bag_ids),
                first(weights),
                first(scale),
            )
            to_bag, to_factor = first(bags), first(factors)
            for i in range(c * n // _CHUNKS, (c + 1) * n // _CHUNKS):
                k = position[begin + i]
                bag = bag_of[k]
                to_bag[i] = bag
                if with_factors:
                    to_factor[i] = weight[k * weight_step] * factor[bag * scale_step]

    return entries
