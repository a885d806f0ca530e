"""Bayesian personalised ranking: the loss of a triplet, and its gradients.

A triplet is (user u, an item i the user took, an item j the user did not take), with the loss

    -ln sigmoid(x) + reg/2 (|p_u|^2 + |q|^2),   x = <[p_u, 1], q>,   q = [q_i - q_j, b_i - b_j]

(Rendle et al., UAI 2009, who penalise |q_i|^2 + |q_j|^2; the loss knows items by their differences
alone, and so does this penalty).  The gradient by q_i is that by q, the one by q_j its negative.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from sparse_embed.kernels._intrinsics import row_pointer
from sparse_embed.kernels._jit import DIGEST, cpu_kernel, device_function
from sparse_embed.kernels.exponential import exp_of, log_of
from sparse_embed.kernels.reduce import dot

ONE = np.float32(1)
ZERO = np.float32(0)
CHUNK = 256  # triplets; by size, never by threads


@device_function
def slope_and_loss(x):
    """1 - sigmoid(x) and -ln sigmoid(x)."""
    e = exp_of(-abs(x))  # serves both without overflow
    return (e if x > ZERO else ONE) / (ONE + e), log_of(e) - min(x, ZERO)


@device_function
def by_user(reg, g, user, item):
    """The gradient by a number of p_u."""
    return reg * user - g * item


@device_function
def by_item(reg, g, user, item):
    """The gradient by a number of q."""
    return reg * item - g * user


@functools.cache
def bpr_gradients_cpu(dim: int):
    """kernel(reg, users, differences, losses)

    Rows come in, gradients go out in the same place: fresh memory would cost more than the
    arithmetic.

    reg          f4              L2 weight
    users        (B, D+1) f4     in: p_u and a last column not used; out: the gradient by q
    differences  (B, D+1) f4     in: q; out: the gradient by p_u, and 0
    losses       (chunks,) f8    out: sums of -ln sigmoid(x) by chunks of 256 triplets
    """
    digest = DIGEST

    @cpu_kernel
    def kernel(reg, users, differences, losses):
        _ = digest
        batch = users.shape[0]
        for chunk in prange((batch + CHUNK - 1) // CHUNK):
            loss = 0.0
            for k in range(chunk * CHUNK, min(batch, (chunk + 1) * CHUNK)):
                p = row_pointer(users, k)
                q = row_pointer(differences, k)
                x = dot(p, q, dim) + q[dim]
                g, own = slope_and_loss(x)
                loss += np.float64(own)
                for d in range(dim):
                    user, item = p[d], q[d]
                    p[d] = by_item(reg, g, user, item)
                    q[d] = by_user(reg, g, user, item)
                p[dim] = by_item(reg, g, ONE, q[dim])
                q[dim] = ZERO
            losses[chunk] = loss

    return kernel
