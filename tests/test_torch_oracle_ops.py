"""Operations and optimizers against numbers that PyTorch and TensorFlow computed.

Tolerances: bags of at most 5 float32 rows and gradients of at most 4 positions are sums in another
order than torch's: 4 units in the last place of numbers near 1 (5e-7).  Trajectories of 6 steps
accumulate one rounding per operation and step: 2e-6 relative to weights near 1.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparse_embed import ops
from sparse_embed.initializers import Zeros
from sparse_embed.optim import SGD, Adagrad, LazyAdam

BAG_CASES = [
    "bag_sum", "bag_mean", "bag_max", "bag_sum_pad3", "bag_mean_pad3", "bag_max_pad3",
    "bag_sum_psw", "bag_sum_psw_pad0", "bag_sum_lastoff", "bag_mean_lastoff",
]  # fmt: skip


@pytest.fixture(scope="module")
def oracle(shared_data):
    folder = shared_data / "torch-oracle"
    cases = json.loads((folder / "cases.json").read_text())
    with np.load(folder / "torch_oracle.npz") as arrays:
        return {case["name"]: case["args"] for case in cases["bag_cases"]}, dict(arrays)


def _table(weight, optimizer=None):
    lanes = weight.shape[1]
    if optimizer is not None:
        lanes += sum(field.lanes for field in optimizer.state_fields(weight.shape[1]))
    data = np.zeros((len(weight), lanes), np.float32)
    data[:, : weight.shape[1]] = weight
    data[data[:, 0] == 0, 0] = -0.0
    if optimizer is not None and optimizer.state_fields(1):
        data[:, weight.shape[1] :] = optimizer.state_fields(1)[0].fill
    flags = np.zeros(len(weight), np.uint8)
    return ops.Records(data, flags, weight.shape[1], Zeros(), 0)


@pytest.mark.parametrize("name", BAG_CASES)
def test_embedding_bag(oracle, name):
    cases, arrays = oracle
    args = cases[name]
    mode, padding = args["mode"], args.get("padding_idx", ops.NO_PADDING)
    indices = arrays["idx"]
    if args.get("include_last_offset"):
        offsets = np.array(args["off"])
    else:
        offsets = np.append(arrays["off"], len(indices))
    weights = arrays["psw"] if args.get("psw") else None
    rec = _table(arrays["W"])
    found = ops.lookup_bags(rec, indices, indices, offsets, weights, mode, padding)
    np.testing.assert_allclose(found, arrays[f"{name}.y.f4"], rtol=1e-6, atol=5e-7)

    grad = np.ascontiguousarray(arrays["G"][: len(offsets) - 1])
    argmax = None
    if mode == "max":
        argmax = ops.max_positions(rec, indices, indices, offsets, padding)
    merged = ops.merge(indices, padding)
    coefficients = ops.bag_coefficients(indices, offsets, weights, mode, padding)
    values = ops.backward(merged, coefficients, grad, argmax)
    dense = np.zeros_like(arrays["W"])
    dense[merged.indices] = values
    np.testing.assert_allclose(dense, arrays[f"{name}.gW.f4"], rtol=1e-6, atol=1e-6)
    if weights is not None:
        dots = ops.dots(rec, indices, indices, grad, coefficients.bag_ids, padding)
        found = ops.weights_grad(dots, indices, offsets, weights, mode, padding)
        np.testing.assert_allclose(found, arrays[f"{name}.gpsw.f4"], rtol=1e-5, atol=1e-6)


def test_sparse_gradient_of_repeated_indices(oracle):
    _, arrays = oracle
    merged = ops.merge(arrays["idx"], ops.NO_PADDING)
    grad = arrays["emb.gy"].astype(np.float32)
    found = ops.backward(merged, ops.Coefficients(None, None, None), grad, None)
    np.testing.assert_array_equal(merged.indices, arrays["emb.g.idx"])
    np.testing.assert_allclose(found, arrays["emb.g.val"], rtol=1e-6, atol=5e-7)


TRAJECTORIES = {
    "SparseAdam_lr1e-2": LazyAdam(1e-2),
    "SparseAdam_b.8_.95_eps1e-6": LazyAdam(3e-2, (0.8, 0.95), 1e-6),
    "Adagrad_lr.1": Adagrad(0.1),
    "Adagrad_lr.1_acc.5_decay.01": Adagrad(0.1, 0.01, initial_accumulator_value=0.5),
    "SGD_lr.1": SGD(0.1),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories_at_every_step(oracle, name):
    _, arrays = oracle
    optimizer = TRAJECTORIES[name]
    rec = _table(arrays["W"], optimizer)
    for step, (indices, grad) in enumerate(zip(arrays["opt.idx"], arrays["opt.g"], strict=True), 1):
        merged = ops.merge(indices, ops.NO_PADDING)
        rest = (ops.Coefficients(None, None, None), grad.astype(np.float32), None)
        rows = merged.indices
        ops.update(rec, rows, merged, 0, len(rows), *rest, optimizer, step, optimizer.lr)
        expected = arrays[f"{name}.W.f4"][step - 1]
        np.testing.assert_allclose(rec.records[:, :7], expected, rtol=2e-6, atol=1e-7)
    at = 7
    for field in optimizer.state_fields(7):
        expected = arrays[f"{name}.{field.name}.f4"]
        found = rec.records[:, at : at + field.lanes]
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)
        at += field.lanes


@pytest.mark.parametrize(
    ("key", "optimizer"),
    [
        ("tf_eps_1e7", LazyAdam(1e-3, eps=1e-7)),
        ("torch_sparseadam_eps_1e8", LazyAdam(1e-3, eps=1e-8)),
    ],
)
def test_tensorflow_lazy_adam(shared_data, key, optimizer):
    """tensorflow/addons lazy_adam_test.py as numbers; float64 there, one float32 rounding here."""
    path = shared_data / "hash-vectors" / "lazy_adam.json"
    expected = json.loads(path.read_text())[key]
    for name, start, grad in (("var0", [1.0, 1.0, 2.0], 0.1), ("var1", [3.0, 3.0, 4.0], 0.01)):
        rec = _table(np.array(start, np.float32)[:, None], optimizer)
        rows = np.array([0, 2])
        for step, after in enumerate(expected[name], 1):
            values = np.full((2, 1), grad, np.float32)
            ops.apply(rec, rows, rows, values, optimizer, step, optimizer.lr)
            np.testing.assert_allclose(rec.records[:, 0], after, rtol=1e-6)


def test_two_small_gradients_equal_their_sum():
    """TensorFlow's test_sparse_repeated_indices: two of 0.1 on a row are one of 0.2."""
    weight = np.array([[1.0], [2.0]], np.float32)
    results = []
    for indices, grads in (([1, 1], [0.1, 0.1]), ([1], [0.2])):
        rec = _table(weight, LazyAdam())
        merged = ops.merge(np.array(indices), ops.NO_PADDING)
        grad = np.array(grads, np.float32)[:, None]
        rest = (ops.Coefficients(None, None, None), grad, None, LazyAdam())
        for step in (1, 2, 3):
            ops.update(rec, merged.indices, merged, 0, 1, *rest, step, 1e-3)
        results.append(rec.records.copy())
    np.testing.assert_array_equal(*results)
