"""The modules against numbers that PyTorch 2.13 computed, and against the PyTorch installed here.

Tolerances: sums of at most 14 float32 numbers near 1 in another order than torch's: 4 units in the
last place (5e-7); trajectories of 6 steps: one rounding per operation and step (2e-6).
"""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import sparse_embed as se  # noqa: E402
from sparse_embed.torch import Embedding, EmbeddingBag, to_torch_sparse  # noqa: E402
from sparse_embed.torch.table_module import swaps_counts  # noqa: E402


@pytest.fixture(scope="module")
def oracle(shared_data):
    folder = shared_data / "torch-oracle"
    cases = json.loads((folder / "cases.json").read_text())
    with np.load(folder / "torch_oracle.npz") as arrays:
        return {case["name"]: case["args"] for case in cases["bag_cases"]}, dict(arrays)


def without_torch_bug(grad, indices):
    """torch's CPU EmbeddingBag divides by the count of another row: with indices sorted, row number
    i of the touched ones by that of sorted[i] (pytorch/pytorch#190063, fixed after 2.13).  The
    documented gradient, from torch's: times its divisor, by the row's own count."""
    rows, counts = np.unique(indices, return_counts=True)
    divisors = counts[np.searchsorted(rows, np.sort(indices)[: len(rows)])]
    right = grad.copy()
    right[rows] *= (divisors / counts)[:, None].astype(grad.dtype)
    return right


BAG_CASES = [
    "bag_sum", "bag_mean", "bag_max", "bag_sum_pad3", "bag_mean_pad3", "bag_max_pad3",
    "bag_sum_psw", "bag_sum_psw_pad0", "bag_sum_lastoff", "bag_mean_lastoff", "bag_sum_gradfreq",
]  # fmt: skip


def test_all_cases_are_here(oracle):
    assert sorted(oracle[0]) == sorted(BAG_CASES)


@pytest.mark.parametrize("name", [*BAG_CASES, "bag_sum_gradfreq as documented"])
def test_embedding_bag(oracle, name):
    """torch 2.13's numbers as they are.  A later torch has that bug no more, and nor have we."""
    cases, arrays = oracle
    name, _, documented = name.partition(" as ")
    args = dict(cases[name])
    right = bool(args.get("scale_grad_by_freq")) and bool(documented or not swaps_counts())
    if documented:
        args["scale_grad_by_freq"] = documented
    weighted = args.pop("psw", False)
    offsets = torch.tensor(args.pop("off", arrays["off"]))
    bag = EmbeddingBag.from_pretrained(
        torch.from_numpy(arrays["W"]), freeze=False, optimizer=se.SGD(1.0), fused=False, **args
    )
    weights = torch.from_numpy(arrays["psw"]).requires_grad_() if weighted else None
    out = bag(torch.from_numpy(arrays["idx"]), offsets, weights)
    np.testing.assert_allclose(out.detach(), arrays[f"{name}.y.f4"], rtol=1e-6, atol=5e-7)
    out.backward(torch.from_numpy(arrays["G"][: len(out)]))
    dense = to_torch_sparse(bag.grad).to_dense()
    for precision in ("f4", "f8"):
        expected = arrays[f"{name}.gW.{precision}"]
        if right:
            expected = without_torch_bug(expected, arrays["idx"])
        np.testing.assert_allclose(dense, expected, rtol=1e-6, atol=1e-6)
    if weights is not None:
        np.testing.assert_allclose(weights.grad, arrays[f"{name}.gpsw.f8"], rtol=1e-5, atol=1e-6)


def test_embedding_gradient(oracle):
    _, arrays = oracle
    weight = torch.from_numpy(arrays["W"])
    layer = Embedding.from_pretrained(weight, False, optimizer=se.SGD(1.0), fused=False)
    grad = torch.from_numpy(arrays["emb.gy"].astype(np.float32))
    layer(torch.from_numpy(arrays["idx"])).backward(grad)
    np.testing.assert_array_equal(layer.grad.indices, arrays["emb.g.idx"])
    np.testing.assert_allclose(layer.grad.values, arrays["emb.g.val"], rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize(
    ("key", "max_norm", "norm_type"), [("emb.max_norm1.5", 1.5, 2.0), ("emb.max_norm2_p1", 2, 1.0)]
)
def test_max_norm(oracle, key, max_norm, norm_type):
    _, arrays = oracle
    layer = Embedding.from_pretrained(
        torch.from_numpy(arrays["W"]), max_norm=max_norm, norm_type=norm_type
    )
    out = layer(torch.from_numpy(arrays["idx"]))
    rows = layer.table.lookup(np.arange(50))
    np.testing.assert_allclose(rows, arrays[f"{key}.W"], rtol=1e-6)
    if f"{key}.y" in arrays:
        np.testing.assert_allclose(out, arrays[f"{key}.y"], rtol=1e-6)


TRAJECTORIES = {
    "SparseAdam_lr1e-2": se.LazyAdam(1e-2),
    "SparseAdam_b.8_.95_eps1e-6": se.LazyAdam(3e-2, (0.8, 0.95), 1e-6),
    "Adagrad_lr.1": se.Adagrad(0.1),
    "Adagrad_lr.1_acc.5_decay.01": se.Adagrad(0.1, 0.01, initial_accumulator_value=0.5),
    "SGD_lr.1": se.SGD(0.1),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories(oracle, name, fused):
    _, arrays = oracle
    layer = Embedding.from_pretrained(
        torch.from_numpy(arrays["W"]), False, optimizer=TRAJECTORIES[name], fused=fused
    )
    rows = np.arange(50)
    for step, (indices, grad) in enumerate(zip(arrays["opt.idx"], arrays["opt.g"], strict=True)):
        layer(torch.from_numpy(indices)).backward(torch.from_numpy(grad).float())
        assert fused or layer.step()
        expected = arrays[f"{name}.W.f4"][step]
        np.testing.assert_allclose(layer.table.lookup(rows), expected, rtol=2e-6, atol=1e-7)
    for field, values in layer.table.state(rows).items():
        np.testing.assert_allclose(values, arrays[f"{name}.{field}.f4"], rtol=2e-6, atol=1e-7)


OPTIMIZERS = [
    (se.LazyAdam(1e-2), lambda p: torch.optim.SparseAdam(p, 1e-2)),
    (se.Adagrad(0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
    (se.SGD(0.002), lambda p: torch.optim.SGD(p, 0.002)),
]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch's own optimizers
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS)
def test_fused_steps_are_torch_steps(ours, theirs, mode):
    """20 fused steps against nn.EmbeddingBag(sparse=True) and torch's own optimizer."""
    torch.manual_seed(0)
    plain = torch.nn.EmbeddingBag(200, 8, mode=mode, sparse=True)
    layer = EmbeddingBag.from_torch(plain, optimizer=ours)
    optimizer = theirs(list(plain.parameters()))
    for _ in range(20):
        input = torch.randint(0, 200, (64,)) ** 2 // 200
        offsets = torch.tensor([0, 5, 5, 30])
        goal = torch.randn(4, 8)
        for module in (layer, plain):
            (module(input, offsets) - goal).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    # 20 steps of a chain that amplifies a rounding at most a few times
    np.testing.assert_allclose(layer.to_torch().weight.detach(), plain.weight.detach(), atol=2e-6)
    assert layer.table.step == 20


def test_max_mode_steps_are_torch_steps():
    torch.manual_seed(0)
    plain = torch.nn.EmbeddingBag(50, 8, mode="max")
    layer = EmbeddingBag.from_torch(plain, optimizer=se.SGD(0.1))
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for _ in range(5):
        input = torch.randint(0, 50, (6, 10))
        for module in (layer, plain):
            module(input).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    np.testing.assert_allclose(layer.to_torch().weight.detach(), plain.weight.detach(), atol=2e-6)
