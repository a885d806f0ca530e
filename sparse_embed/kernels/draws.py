"""Counter-based draws: mixing, bounded integers, and an alias table for draws by weight.

A draw is a function of a key and a counter, so that nothing depends on what was drawn before.
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._jit import DIGEST, device_function, serial_kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_A = np.uint64(0xBF58476D1CE4E5B9)
MIX_B = np.uint64(0x94D049BB133111EB)
ALWAYS = np.uint64(1 << 32)
U32 = np.uint64(32)
LOW_32 = np.uint64(0xFFFFFFFF)


@device_function
def mix64(z):
    """splitmix64's finaliser; every operand is uint64."""
    z = (z ^ (z >> np.uint64(30))) * MIX_A
    z = (z ^ (z >> np.uint64(27))) * MIX_B
    return z ^ (z >> np.uint64(31))


@device_function
def below(random, bound):
    """Uniform 0..bound-1 from 64 random bits, bound < 2**32 (multiply and shift; both uint64)."""
    return ((random >> U32) * bound + (((random & LOW_32) * bound) >> U32)) >> U32


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
