"""Adam's row updates: moments of touched rows only, bias corrected by the table's step.

    m += (g - m) (1 - beta1);   v += (g^2 - v) (1 - beta2)
    w  = w decay - rate (m / (sqrt(v) root + eps))
    row-wise: one v a row, with mean_d(g^2) for g^2

    decay = 1 - lr weight_decay;   with bc1 = 1 - beta1^step, bc2 = 1 - beta2^step     (host)
    "hat":      rate = lr sqrt(bc2) / bc1,  root = 1                torch SparseAdam, TF LazyAdam
    "outside":  rate = lr / bc1,            root = 1 / sqrt(bc2)    torch Adam, FBGEMM

Shapes   w: pointer to D weights · state: to exp_avg lanes [0, D), exp_avg_sq lanes [D, 2 D), or the
         one lane D when row-wise · g: to D float32 · scalars (SCALARS,) f4, see `update`
Order    mean_d: 16 lanes and a tree (`reduce`), then one division by D
Source   torch.optim.SparseAdam (the moments are moved as it moves them); tensorflow/addons
         LazyAdam; FBGEMM PARTIAL_ROWWISE_ADAM
"""

from __future__ import annotations

import math

import numpy as np

from sparse_embed.kernels._intrinsics import at
from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.reduce import dot
from sparse_embed.kernels.vectors import blocks, load_columns, spread, store_columns


@device_function
def adam_moment(old, new, weight):
    """The moving average after one more value."""
    return old + (new - old) * weight


@device_function
def adam_value(w, m, v, rate, decay, eps, root):
    """One new weight from its moments."""
    return w * decay - rate * (m / (math.sqrt(v) * root + eps))


@device_function
def lazy_adam_row(w, state, g, dim, scalars):
    """Update one row in place."""
    rate, decay, eps = spread(scalars[0]), spread(scalars[1]), spread(scalars[2])
    root, weight1, weight2 = spread(scalars[3]), spread(scalars[4]), spread(scalars[5])
    exp_avg, exp_avg_sq = state, at(state, dim)
    for b in range(blocks(dim)):
        x = load_columns(g, b, dim)
        m = adam_moment(load_columns(exp_avg, b, dim), x, weight1)
        v = adam_moment(load_columns(exp_avg_sq, b, dim), x * x, weight2)
        store_columns(exp_avg, b, dim, m)
        store_columns(exp_avg_sq, b, dim, v)
        new = adam_value(load_columns(w, b, dim), m, v, rate, decay, eps, root)
        store_columns(w, b, dim, new)


@device_function
def row_wise_adam_row(w, state, g, dim, scalars):
    """Update one row in place."""
    rate, decay, eps = spread(scalars[0]), spread(scalars[1]), spread(scalars[2])
    root, weight1 = spread(scalars[3]), spread(scalars[4])
    exp_avg = state
    mean = adam_moment(state[dim], dot(g, g, dim) / np.float32(dim), scalars[5])
    state[dim] = mean
    v = spread(mean)
    for b in range(blocks(dim)):
        m = adam_moment(load_columns(exp_avg, b, dim), load_columns(g, b, dim), weight1)
        store_columns(exp_avg, b, dim, m)
        new = adam_value(load_columns(w, b, dim), m, v, rate, decay, eps, root)
        store_columns(w, b, dim, new)
