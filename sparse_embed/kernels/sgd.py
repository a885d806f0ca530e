"""SGD's row update.  Source: torch.optim.SGD without momentum.

    g = g + weight_decay w;   w = w - lr g

Shapes   w, g: pointers to D float32 · scalars (SCALARS,) f4, see `update`
"""

from __future__ import annotations

from sparse_embed.kernels._jit import device_function


@device_function
def sgd_value(w, g, lr, weight_decay):
    """One new weight."""
    return w - lr * (g + weight_decay * w)


@device_function
def sgd_row(w, g, dim, scalars):
    """Update one record in place."""
    lr, weight_decay = scalars[0], scalars[1]
    for d in range(dim):
        w[d] = sgd_value(w[d], g[d], lr, weight_decay)
