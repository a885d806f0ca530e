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

from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.reduce import dot
from sparse_embed.kernels.vectors import blocks, load_columns, spread, store_columns


@device_function
def adagrad_value(w, total, g, clr, eps):
    """One new weight and its accumulator, from a gradient that has the decay in it."""
    total = total + g * g
    return w - clr * (g / (math.sqrt(total) + eps)), total


@device_function
def adagrad_row(w, state, g, dim, scalars):
    """Update one row in place."""
    clr, weight_decay, eps = spread(scalars[0]), spread(scalars[1]), spread(scalars[2])
    for b in range(blocks(dim)):
        old = load_columns(w, b, dim)
        decayed = load_columns(g, b, dim) + weight_decay * old
        new, total = adagrad_value(old, load_columns(state, b, dim), decayed, clr, eps)
        store_columns(state, b, dim, total)
        store_columns(w, b, dim, new)


@device_function
def row_wise_adagrad_row(w, state, g, dim, scalars):
    """Update one row in place."""
    lr, weight_decay, eps = scalars[0], spread(scalars[1]), scalars[2]
    for b in range(blocks(dim)):
        decayed = load_columns(g, b, dim) + weight_decay * load_columns(w, b, dim)
        store_columns(g, b, dim, decayed)
    total = state[0] + dot(g, g, dim) / np.float32(dim)
    state[0] = total
    rate = spread(lr / (np.float32(math.sqrt(total)) + eps))
    for b in range(blocks(dim)):
        store_columns(w, b, dim, load_columns(w, b, dim) - rate * load_columns(g, b, dim))
