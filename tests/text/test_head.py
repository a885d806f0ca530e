"""The classifier's dense layer: kernels against the NumPy twin, gradients by differences."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed import reference_layers as reference
from sparse_embed.kernels import head
from sparse_embed.kernels._jit import new_counter

RNG = np.random.default_rng(0)


def case(batch: int, classes: int, columns: int):
    hidden = RNG.normal(size=(batch, columns)).astype(np.float32)
    weight = RNG.normal(size=(classes, columns)).astype(np.float32)
    bias = RNG.normal(size=classes).astype(np.float32)
    rows = [np.sort(RNG.permutation(classes)[: RNG.integers(0, 3)]) for _ in range(batch)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    example = RNG.uniform(0, 2, batch).astype(np.float32)
    weights = RNG.uniform(0, 2, (2, classes)).astype(np.float32)
    return hidden, weight, bias, np.concatenate(rows).astype(np.int32), offsets, example, *weights


def run(kind: int, arrays):
    hidden, weight, *_ = arrays
    out = (
        np.empty((len(hidden), len(weight)), np.float32),
        np.empty_like(hidden),
        np.empty_like(weight),
        np.empty(len(weight), np.float32),
        np.empty(len(hidden), np.float64),
    )
    ds, dhidden, dweight, dbias, losses = out
    head.head_slopes_cpu()(*arrays[:3], kind, *arrays[3:], new_counter(), ds, dhidden, losses)
    head.head_gradients_cpu()(hidden, ds, new_counter(), dweight, dbias)
    return out


def of_twin(kind: int, arrays):
    hidden, weight, bias, targets, offsets, example, positive, negative = arrays
    is_target = np.zeros((len(hidden), len(weight)), bool)
    texts = np.repeat(np.arange(len(hidden)), np.diff(offsets))
    is_target[texts, targets] = True
    s = reference.dense_scores(hidden, weight, bias)
    if kind == head.SOFTMAX:
        counts = np.maximum(np.diff(offsets), 1).astype(hidden.dtype)
        share = is_target * positive / counts[:, None]
        return reference.softmax_gradient(s, share.astype(hidden.dtype), example)
    return reference.sigmoid_gradient(s, is_target, positive, negative, example)


@pytest.mark.parametrize("kind", [head.SOFTMAX, head.SIGMOID])
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 3, 16), (40, 70, 37), (5, 1, 5000), (0, 2, 3)])
def test_is_its_twin(kind, shape):
    arrays = case(*shape) if shape[0] else _empty(*shape[1:])
    ds, dhidden, dweight, dbias, losses = run(kind, arrays)
    hidden, weight, bias = arrays[:3]
    scores = np.empty_like(ds)
    head.head_scores_cpu()(hidden, weight, bias, new_counter(), scores)
    assert np.array_equal(scores, reference.dense_scores(hidden, weight, bias))
    if shape[0]:
        expected, twin_losses = of_twin(kind, arrays)
        # e^x is the kernel's own, by NumPy's float32 routine in the twin; each is off by an ulp
        np.testing.assert_allclose(ds, expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(losses, twin_losses, rtol=1e-4, atol=1e-5)
    for found, twin in zip(
        (dhidden, dweight, dbias), reference.dense_backward(ds, hidden, weight), strict=True
    ):
        assert np.array_equal(found, twin)


def _empty(classes: int, columns: int):
    whole = case(1, classes, columns)
    nothing = np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.float32)
    return whole[0][:0], *whole[1:3], *nothing, *whole[6:]


@pytest.mark.parametrize("kind", [head.SOFTMAX, head.SIGMOID])
def test_gradients_by_differences(kind):
    """The twin in float64."""
    arrays = [a.astype(np.float64) if a.dtype == np.float32 else a for a in case(4, 3, 5)]
    ds, _ = of_twin(kind, arrays)
    found = reference.dense_backward(ds, *arrays[:2])
    for which in range(3):
        for place in np.ndindex(arrays[which].shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arrays]
                moved[which][place] += step
                ends.append(of_twin(kind, moved)[1].sum())
            difference = (ends[0] - ends[1]) / 2e-6
            assert found[which][place] == pytest.approx(difference, abs=1e-7)


def test_large_scores_do_not_overflow():
    arrays = list(case(3, 2, 2))
    arrays[0] = np.array([[1e20, 0], [-1e20, 0], [0, 0]], np.float32)
    arrays[1] = np.array([[1, 0], [-1, 0]], np.float32)
    for kind in (head.SOFTMAX, head.SIGMOID):
        ds, _, _, _, losses = run(kind, arrays)
        assert np.isfinite(ds).all()
        assert np.isfinite(losses).all()
