"""The objectives of `kernels/contrast.py`, and the answer of `neighbours.py`, in plain NumPy and
float64: their specification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _unit(x: Array) -> tuple[Array, Array]:
    length: Array = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    length[length == 0] = 1
    return x / length, length


def _through_unit(gradient: Array, unit: Array, length: Array) -> Array:
    along: Array = (gradient * unit).sum(axis=-1, keepdims=True)
    result: Array = (gradient - along * unit) / length
    return result


def loss_and_slopes(
    name: str,
    own: Array,
    others: Array,
    marks: npt.NDArray[Any],
    a: float,
    b: float,
    own_offsets: Array,
    offsets: Array,
) -> tuple[Array, Array, Array]:
    """Of interactions (B,) with scores own (B,) and others (B, M): losses, slopes by each score."""
    free = marks == 0
    number = others.shape[1]
    if name == "logistic":
        losses = np.logaddexp(0, -own) + a / number * (np.logaddexp(0, others) * free).sum(axis=1)
        return losses, -1 / (1 + np.exp(own)), a / number * free / (1 + np.exp(-others))
    if name == "softmax":
        z = np.concatenate(
            [(own / a - own_offsets)[:, None], np.where(free, others / a - offsets, -np.inf)],
            axis=1,
        )
        total = np.logaddexp.reduce(z, axis=1, keepdims=True)
        chances = np.exp(z - total)
        return total[:, 0] - z[:, 0], (chances[:, 0] - 1) / a, chances[:, 1:] / a
    over = np.where(free, np.maximum(others - b, 0), 0)
    return 1 - own + a / number * over.sum(axis=1), np.full(len(own), -1.0), a / number * (over > 0)


def contrast(
    name: str,
    unit: bool,
    size: int,
    a: float,
    b: float,
    regularization: float,
    users: Array,
    items: Array,
    negatives: Array,
    marks: npt.NDArray[Any],
    own_offsets: Array,
    offsets: Array,
) -> tuple[float, Array, Array, Array]:
    """The loss of a batch, and its gradients by users, items and negatives; shapes as the kernel's.

    Without the penalty in the loss, as the kernel reports it.
    """
    number, dim = marks.shape[1], users.shape[1] - 1
    grads = [np.zeros_like(part) for part in (users, items, negatives)]
    loss = 0.0
    for block, start in enumerate(range(0, len(users), size)):
        rows = slice(start, min(start + size, len(users)))
        shared = slice(block * number, (block + 1) * number)
        parts = [users[rows], items[rows], negatives[shared]]
        p, q, n = (part[:, :dim] for part in parts)
        lengths: list[Array] = []
        if unit:
            (p, p_length), (q, q_length), (n, n_length) = (_unit(x) for x in (p, q, n))
            lengths = [p_length, q_length, n_length]
            own, others = (p * q).sum(axis=1), p @ n.T
        else:
            bias_u, bias_i, bias_n = (part[:, dim] for part in parts)
            own = (p * q).sum(axis=1) + bias_u + bias_i
            others = p @ n.T + bias_u[:, None] + bias_n
        losses, g, h = loss_and_slopes(
            name, own, others, marks[rows], a, b, own_offsets[rows], offsets[shared]
        )
        loss += float(losses.sum())
        raw = [g[:, None] * q + h @ n, g[:, None] * p, h.T @ p]
        for grad, where, part, row, direction, place in zip(
            grads, (rows, rows, shared), parts, raw, (p, q, n), range(3), strict=True
        ):
            if unit:
                row = _through_unit(row, direction, lengths[place])
            grad[where, :dim] = row + regularization * part[:, :dim]
            if not unit:
                slopes = (g + h.sum(axis=1), g, h.sum(axis=0))[place]
                grad[where, dim] = slopes + regularization * part[:, dim]
    return loss, grads[0], grads[1], grads[2]


def agreement(
    taken: npt.NDArray[np.bool_],
    questions: Iterable[tuple[int, int, npt.NDArray[Any], npt.NDArray[Any]]],
) -> float:
    """taken (users, items): who took what.  Questions: user, item, known items, rivals."""
    by_user, by_item = taken.sum(axis=1), taken.sum(axis=0)
    shares = []
    for user, item, known, rivals in questions:
        if len(known) == 0 or len(rivals) == 0:
            continue
        weights = (taken[:, known] / np.sqrt(by_item[known])).sum(axis=1) / np.maximum(by_user, 1)
        votes = []
        for candidate in [item, *rivals]:
            others = [v for v in np.flatnonzero(taken[:, candidate]) if v != user]
            votes.append(weights[others].mean() if others else 0.0)
        less = np.array(votes[1:]) < votes[0] * (1 - 1e-12)
        same = np.isclose(votes[1:], votes[0], rtol=1e-12, atol=0)
        shares.append((less + same / 2).mean())
    return float(np.mean(shares)) if shares else 0.5
