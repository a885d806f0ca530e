"""SGD's row update.  Source: torch.optim.SGD without momentum.

    g = g + weight_decay w;   w = w - lr g

Shapes   w, g: pointers to D float32 · scalars (SCALARS,) f4, see `update`
"""

from __future__ import annotations

from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.vectors import blocks, load_columns, spread, store_columns


@device_function
def sgd_value(w, g, lr, weight_decay):
    """One new weight."""
    return w - lr * (g + weight_decay * w)


@device_function
def sgd_row(w, state, g, dim, scalars):
    """Update one row in place; it has no state."""
    lr, weight_decay = spread(scalars[0]), spread(scalars[1])
    for b in range(blocks(dim)):
        new = sgd_value(load_columns(w, b, dim), load_columns(g, b, dim), lr, weight_decay)
        store_columns(w, b, dim, new)
