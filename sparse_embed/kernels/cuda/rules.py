"""What an update does to one column of a row, and where the fields of a record lie.

A rule takes weight, first and second state, gradient, the row's rate and state (row-wise
optimizers) and the scalars of `update`, and gives (w, m, v); where there is no m or v they are
rubbish.  The formulas are those of the CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_embed.kernels._jit import device_function
from sparse_embed.kernels.adagrad import adagrad_value
from sparse_embed.kernels.adam import adam_moment, adam_value
from sparse_embed.kernels.cuda._rows import load_tile_once
from sparse_embed.kernels.cuda.formats import FORMATS, STORES, store_float32_once
from sparse_embed.kernels.formats import lanes_of
from sparse_embed.kernels.sgd import sgd_value


@device_function
def _sgd_column(w, m, v, g, rate, state, scalars):
    return sgd_value(w, g, scalars[0], scalars[1]), m, v


@device_function
def _adagrad_column(w, m, v, g, rate, state, scalars):
    weight, total = adagrad_value(w, m, g + scalars[1] * w, scalars[0], scalars[2])
    return weight, total, v


@device_function
def _adam_column(w, m, v, g, rate, state, scalars):
    m = adam_moment(m, g, scalars[4])
    v = adam_moment(v, g * g, scalars[5])
    return adam_value(w, m, v, scalars[0], scalars[1], scalars[2], scalars[3]), m, v


@device_function
def _row_adagrad_column(w, m, v, g, rate, state, scalars):
    return w - rate * g, m, v


@device_function
def _row_adam_column(w, m, v, g, rate, state, scalars):
    m = adam_moment(m, g, scalars[4])
    return adam_value(w, m, state, scalars[0], scalars[1], scalars[2], scalars[3]), m, v


RULES = {  # and how many fields of D numbers there are
    "sgd": (_sgd_column, 0),
    "adagrad": (_adagrad_column, 1),
    "lazy_adam": (_adam_column, 2),
    "row_wise_adagrad": (_row_adagrad_column, 0),
    "row_wise_adam": (_row_adam_column, 1),
}


class Fields(NamedTuple):
    """Where the fields of a record are, in lanes, and how they are read and written."""

    load_weight: Any
    settled: Any
    first_bits: np.uint32
    store_weight: Any
    load_state: Any
    store_state: Any
    noisy: bool
    first_at: int
    second_at: int


def fields_of(dim: int, dtype: str, state_dtype: str, rounding: str, once: bool = False) -> Fields:
    """Of the records of a table.

    once: each is read and written once, and may leave the caches before what is read again (the
    gradients of bags): float32 only, 3 to 5 % of a step."""
    if dim == 1:  # one number a row stays float32
        state_dtype = "float32"
    noisy = rounding == "stochastic"
    weight, lanes = FORMATS[dtype], lanes_of(dim, dtype)
    loads = {name: format_.load for name, format_ in FORMATS.items()}
    stores = {name: STORES[name, noisy] for name in (dtype, state_dtype)}
    if once:
        loads["float32"] = load_tile_once
        if "float32" in stores:
            stores["float32"] = store_float32_once
    return Fields(
        loads[dtype], weight.settled, weight.first_bits, stores[dtype],
        loads[state_dtype], stores[state_dtype], noisy,
        lanes, lanes + lanes_of(dim, state_dtype),
    )  # fmt: skip


__all__ = ["RULES", "Fields", "fields_of"]
