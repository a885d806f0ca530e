"""The ceilings where no C compiler is: the same loops in plain Numba, without prefetching."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_NONE = np.empty(0, np.float32)


@njit(parallel=True)
def _copy(to, source):  # type: ignore[no-untyped-def]
    for i in prange(source.size):
        to[i] = source[i]


@njit(parallel=True)
def _copy_records(records, rows, out):  # type: ignore[no-untyped-def]
    for i in prange(rows.size):
        for d in range(out.shape[1]):
            out[i, d] = records[rows[i], d]


@njit(parallel=True)
def _gather_sum(records, indices, offsets, weights, mean, out):  # type: ignore[no-untyped-def]
    for b in prange(out.shape[0]):
        total = np.float32(0)
        out[b] = 0
        for k in range(offsets[b], offsets[b + 1]):
            w = weights[k] if weights.size else np.float32(1)
            total += w
            for d in range(out.shape[1]):
                out[b, d] += w * records[indices[k], d]
        if mean and total != 0:
            for d in range(out.shape[1]):
                out[b, d] /= total


@njit(parallel=True)
def _lazy_adam_rows(records, rows, grad, rate, eps):  # type: ignore[no-untyped-def]
    dim = grad.shape[1]
    beta1, beta2, one = np.float32(0.9), np.float32(0.999), np.float32(1)
    for i in prange(len(rows)):
        row = records[rows[i]]
        for d in range(dim):
            g = grad[i, d]
            row[dim + d] = beta1 * row[dim + d] + (one - beta1) * g
            row[2 * dim + d] = beta2 * row[2 * dim + d] + (one - beta2) * g * g
            row[d] -= rate * row[dim + d] / (np.sqrt(row[2 * dim + d]) + eps)


@njit(parallel=True)
def _adagrad_rows(records, rows, grad, rate, eps):  # type: ignore[no-untyped-def]
    dim = grad.shape[1]
    for i in prange(len(rows)):
        row = records[rows[i]]
        for d in range(dim):
            g = grad[i, d]
            row[dim + d] += g * g
            row[d] -= rate * g / (np.sqrt(row[dim + d]) + eps)


@njit(parallel=True)
def _row_wise_adagrad_rows(records, rows, grad, rate, eps):  # type: ignore[no-untyped-def]
    dim = grad.shape[1]
    for i in prange(len(rows)):
        row, total = records[rows[i]], np.float32(0)
        for d in range(dim):
            total += grad[i, d] * grad[i, d]
        row[dim] += total / np.float32(dim)
        scale = rate / (np.sqrt(row[dim]) + eps)
        for d in range(dim):
            row[d] -= scale * grad[i, d]


@njit(parallel=True)
def _sgd_rows(records, rows, grad, rate, eps):  # type: ignore[no-untyped-def]
    for i in prange(len(rows)):
        row = records[rows[i]]
        for d in range(grad.shape[1]):
            row[d] -= rate * grad[i, d]


UPDATES = {
    "lazy_adam": _lazy_adam_rows,
    "adagrad": _adagrad_rows,
    "row_wise_adagrad": _row_wise_adagrad_rows,
    "sgd": _sgd_rows,
}


@njit(parallel=True)
def _sum_runs(grad, bags, order, starts, unique, sums):  # type: ignore[no-untyped-def]
    for u in prange(unique):
        sums[u] = 0
        for k in range(starts[u], starts[u + 1]):
            for d in range(sums.shape[1]):
                sums[u, d] += grad[bags[order[k]], d]


def copy(to: Floats, source: Floats) -> None:
    _copy(to.reshape(-1), source.reshape(-1))


def copy_records(records: Floats, rows: Ints, out: Floats) -> None:
    _copy_records(records, rows, out)


def gather_sum(
    records: Floats, indices: Ints, offsets: Ints, weights: Floats | None, mean: bool, out: Floats
) -> None:
    _gather_sum(records, indices, offsets, _NONE if weights is None else weights, mean, out)


def merge(
    grad: Floats, rows: Ints, bags: NDArray[np.int32], starts: Ints, unique: int, sums: Floats
) -> None:
    _sum_runs(grad, bags, np.argsort(rows, kind="stable"), starts, unique, sums)
