"""Adagrad's row updates.

    adagrad            g += weight_decay w;  sum += g^2;          w -= clr g / (sqrt(sum) + eps)
                       clr = lr / (1 + (step - 1) lr_decay)        (host)
    row_wise_adagrad   g += weight_decay w;  sum += mean_d(g^2);  w -= (lr / (sqrt(sum) + eps)) g

Shapes   record: weight lanes [0, D), `sum` lanes [D, 2 D), or the one lane D when row-wise
         g: pointer to D float32, overwritten when row-wise · scalars (SCALARS,) f4, see `update`
Order    mean_d: 16 lanes and a tree (`reduce`), then one division by D
Source   torch.optim.Adagrad; FBGEMM EXACT_ROWWISE_ADAGRAD with L2 weight decay
"""

from __future__ import annotations

import math

import numpy as np

from sparse_embed.kernels._intrinsics import at
from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.reduce import dot


@device_function
def adagrad_value(w, total, g, clr, eps):
    """One new weight and its accumulator, from a gradient that has the decay in it."""
    total = total + g * g
    return w - clr * (g / (np.float32(math.sqrt(total)) + eps)), total


@device_function
def adagrad_row(w, g, dim, scalars):
    """Update one record in place."""
    clr, weight_decay, eps = scalars[0], scalars[1], scalars[2]
    total = at(w, dim)
    for d in range(dim):
        decayed = g[d] + weight_decay * w[d]
        w[d], total[d] = adagrad_value(w[d], total[d], decayed, clr, eps)


@device_function
def row_wise_adagrad_row(w, g, dim, scalars):
    """Update one record in place."""
    lr, weight_decay, eps = scalars[0], scalars[1], scalars[2]
    for d in range(dim):
        g[d] = g[d] + weight_decay * w[d]
    total = w[dim] + dot(g, g, dim) / np.float32(dim)
    w[dim] = total
    rate = lr / (np.float32(math.sqrt(total)) + eps)
    for d in range(dim):
        w[d] = w[d] - rate * g[d]
