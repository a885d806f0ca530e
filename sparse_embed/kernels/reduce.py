"""Sums over the columns of a row, in one order everywhere: 16 lanes and a fixed tree.

Lane j sums columns j, j + 16, j + 32, ... in this order from +0.0; then lane i takes in lane i + 8
(i < 8), then i + 4, i + 2, i + 1.  One AVX-512 register, two AVX2 or four NEON ones do the same.
"""

from __future__ import annotations

import numpy as np

from sparse_embed.kernels._intrinsics import add_products_16, at, stack_f32
from sparse_embed.kernels._jit import device_function

_ZERO = np.float32(0)


@device_function
def _tree(lanes):
    for j in range(8):
        lanes[j] = lanes[j] + lanes[j + 8]
    for j in range(4):
        lanes[j] = lanes[j] + lanes[j + 4]
    for j in range(2):
        lanes[j] = lanes[j] + lanes[j + 2]
    return lanes[0] + lanes[1]


@device_function
def dot(a, b, dim):
    """sum_d a[d] b[d]"""
    lanes = stack_f32(16)
    for j in range(16):
        lanes[j] = _ZERO
    for block in range(dim // 16):
        add_products_16(lanes, at(a, block * 16), at(b, block * 16))
    for j in range(dim % 16):
        d = dim - dim % 16 + j
        lanes[j] = lanes[j] + a[d] * b[d]
    return _tree(lanes)


@device_function
def squared_distance(a, b, dim):
    """sum_d (a[d] - b[d])^2"""
    lanes = stack_f32(16)
    for j in range(16):
        lanes[j] = _ZERO
    for block in range(dim // 16):
        for j in range(16):
            difference = a[block * 16 + j] - b[block * 16 + j]
            lanes[j] = lanes[j] + difference * difference
    for j in range(dim % 16):
        d = dim - dim % 16 + j
        difference = a[d] - b[d]
        lanes[j] = lanes[j] + difference * difference
    return _tree(lanes)
