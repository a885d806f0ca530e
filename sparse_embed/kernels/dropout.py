"""Dropout of whole positions, reproducible from (seed, step, position) alone.

    h = mix64(mix64(mix64(seed + G) + step G) + (position + 1) G)
    scale[position] = 0 if (h >> 40) < threshold else 1 / (1 - p)
    threshold = round(p 2^24), 1 / (1 - p) in float32                                  (host)

Shapes   scale (n,) f4 · seed, step u8 · threshold u8 · keep f4
"""

from __future__ import annotations

import functools

import numpy as np

from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import DIGEST, team_kernel
from sparse_embed.kernels.initialize import GAMMA, mix64

_CHUNK = 8192
_S40 = np.uint64(40)
_ONE = np.uint64(1)
_ZERO = np.float32(0)


@functools.cache
def dropout_scale_cpu():
    digest = DIGEST

    @team_kernel
    def dropout_scale(seed, step, threshold, keep, counter, scale):
        _ = digest
        key = mix64(mix64(seed + GAMMA) + step * GAMMA)
        n = scale.shape[0]
        while True:
            begin = next_chunk(counter, 0) * _CHUNK
            if begin >= n:
                break
            for k in range(begin, min(n, begin + _CHUNK)):
                h = mix64(key + (np.uint64(k) + _ONE) * GAMMA)
                scale[k] = _ZERO if (h >> _S40) < threshold else keep

    return dropout_scale
