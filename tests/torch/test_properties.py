"""Random arguments, right and wrong, against the installed torch: values, gradients, refusals.

Left out, because torch has no defined answer: decreasing offsets and offsets that do not reach the
end with include_last_offset (it reads beyond its arrays, or averages over the wrong count), and
input without any offset (mode "max" kills the process).
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import sparse_embed as se  # noqa: E402
from sparse_embed.torch import Embedding, EmbeddingBag  # noqa: E402
from sparse_embed.torch.table_module import swaps_counts  # noqa: E402
from tests.torch.test_oracle import without_torch_bug  # noqa: E402

CASES = int(os.environ.get("SPARSE_EMBED_TORCH_CASES", "10000"))
DIMS, ROWS = (1, 3, 8), 37
INTEGERS = (torch.int32, torch.int64)


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    made = {}
    for dim in DIMS:
        weight = rng.standard_normal((ROWS, dim)).astype(np.float32)
        table = se.EmbeddingTable.create(
            None, num_embeddings=ROWS, embedding_dim=dim, optimizer=se.SGD(1.0)
        )
        table.assign(np.arange(ROWS), weight)
        made[dim] = table, torch.from_numpy(weight)
    return made


def bag_case(rng):
    """Constructor's and call's arguments of one case; one in four has something wrong in it."""
    make = {
        "mode": str(rng.choice(["sum", "mean", "max"])),
        "include_last_offset": bool(rng.random() < 0.5),
        "padding_idx": [None, None, 0, 5, -1, -ROWS, ROWS - 1][rng.integers(7)],
    }
    if make["mode"] != "max" and rng.random() < 0.3:
        make["scale_grad_by_freq"] = True
    if rng.random() < 0.2:
        make["max_norm"], make["norm_type"] = float(rng.random() * 3), float(rng.choice([1, 2, 3]))
        if rng.random() < 0.2:
            make["norm_type"] = float("inf")
    high = int(rng.choice([2, ROWS]))
    dtype = INTEGERS[rng.integers(2)]
    if rng.random() < 0.4:
        shape = (int(rng.integers(0, 5)), int(rng.integers(1, 7)))
        input, offsets = torch.from_numpy(rng.integers(0, high, shape)).to(dtype), None
    else:
        length, bags = int(rng.integers(0, 30)), int(rng.integers(1, 6))
        input = torch.from_numpy(rng.integers(0, high, length)).to(dtype)
        starts = np.concatenate([[0], np.sort(rng.integers(0, length + 1, bags - 1))])
        if make["include_last_offset"]:
            starts = np.append(starts, length)
        offsets = torch.from_numpy(starts).to(INTEGERS[rng.integers(2)])
    weights = None
    if rng.random() < (0.6 if make["mode"] == "sum" else 0.05):
        weights = torch.from_numpy(rng.standard_normal(tuple(input.shape)).astype(np.float32))
    if rng.random() < 0.25:
        input, offsets, weights = spoil(rng, input, offsets, weights)
    return make, input, offsets, weights


def spoil(rng, input, offsets, weights):
    kind = rng.integers(10)
    if kind == 0 and input.numel():
        input.view(-1)[rng.integers(input.numel())] = int(
            rng.choice([ROWS, ROWS + 5, -1, 2**31 - 1])
        )
    elif kind == 1:
        input = input.to(torch.int16 if rng.random() < 0.5 else torch.float32)
        offsets = None if offsets is None else offsets.to(input.dtype)
    elif kind == 2 and offsets is not None:
        offsets = offsets.clone()
        offsets[0] = 1
    elif kind == 3 and offsets is not None:
        offsets = offsets.clone()
        offsets[-1] = input.numel() + 1
    elif kind == 4:
        offsets = None if offsets is not None else torch.tensor([0])
    elif kind == 5 and offsets is not None:
        offsets = offsets[None]
    elif kind == 6:
        input = input[..., None, None]
    elif kind == 7:
        weights = torch.ones(input.numel() + 1)
    elif kind == 8:
        weights = torch.ones(input.shape, dtype=torch.float64)
    elif kind == 9 and offsets is not None:
        offsets = offsets.to(torch.float32)
    return input, offsets, weights


def outcome(run):
    try:
        return run(), None
    except Exception as error:
        return None, error


def compare(found, expected, what):
    """30 positions of float32: within 32 units in the last place of the largest partial sum."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=2e-5, atol=1e-5), what


def test_embedding_bag(tables):
    rng = np.random.default_rng(1)
    seen: Counter[str] = Counter()
    for n in range(CASES * 4 // 5):
        make, input, offsets, weights = bag_case(rng)
        table, weight = tables[DIMS[n % len(DIMS)]]
        plain = torch.nn.EmbeddingBag(ROWS, weight.shape[1], _weight=weight.clone(), **make)
        documented = bool(make.get("scale_grad_by_freq")) and n % 2 == 1
        if documented:
            make["scale_grad_by_freq"] = "documented"
        ours = EmbeddingBag(table, fused=False, **make)
        mine = None if weights is None else weights.clone().requires_grad_()
        theirs = None if weights is None else weights.clone().requires_grad_()
        found, problem = outcome(lambda: ours(input, offsets, mine))  # noqa: B023
        expected, refused = outcome(lambda: plain(input, offsets, theirs))  # noqa: B023
        what = (n, make, input, offsets, weights, problem, refused)
        assert (problem is None) == (refused is None), what
        if problem is not None:
            seen["refused"] += 1
            kinds = (ValueError, NotImplementedError)
            assert isinstance(problem, se.SparseEmbedError), what
            for kind in kinds:
                assert not isinstance(refused, kind) or isinstance(problem, kind), what
            continue
        seen["right"] += 1
        compare(found.detach(), expected.detach(), what)
        grad = torch.from_numpy(rng.standard_normal(tuple(found.shape)).astype(np.float32))
        found.backward(grad)
        expected.backward(grad)
        wanted = plain.weight.grad
        if documented and swaps_counts():
            wanted = torch.from_numpy(without_torch_bug(wanted.numpy(), input.flatten().numpy()))
        compare(dense(ours), wanted, what)
        if theirs is not None:
            compare(mine.grad, theirs.grad, what)
        ours.anchor.grad = None
        if "max_norm" in make:
            seen["max_norm"] += 1
            compare(torch.from_numpy(table.lookup(np.arange(ROWS))), plain.weight.detach(), what)
            table.assign(np.arange(ROWS), weight.numpy())
    assert seen["refused"] > CASES // 20
    assert seen["right"] > CASES // 2
    assert seen["max_norm"] > CASES // 20


def dense(module):
    result = torch.zeros(module.num_embeddings, module.embedding_dim)
    result[torch.from_numpy(module.grad.indices)] = torch.from_numpy(module.grad.values)
    return result


def test_embedding(tables):
    rng = np.random.default_rng(2)
    for n in range(CASES // 5):
        make = {"padding_idx": [None, 0, 5, -1, -ROWS][rng.integers(5)]}
        make["scale_grad_by_freq"] = bool(rng.random() < 0.3)
        if rng.random() < 0.2:
            make["max_norm"] = float(rng.random() * 3)
        table, weight = tables[DIMS[n % len(DIMS)]]
        shape = tuple(int(k) for k in rng.integers(0, 4, rng.integers(0, 4)))
        input = torch.from_numpy(np.asarray(rng.integers(0, ROWS, shape)))
        input = input.to(INTEGERS[rng.integers(2)])
        if rng.random() < 0.1 and input.numel():
            input.view(-1)[0] = [ROWS, -1][rng.integers(2)]
        elif rng.random() < 0.1:
            input = input.to([torch.int16, torch.float32][rng.integers(2)])
        plain = torch.nn.Embedding(ROWS, weight.shape[1], _weight=weight.clone(), **make)
        ours = Embedding(table, fused=False, **make)
        found, problem = outcome(lambda: ours(input))  # noqa: B023
        expected, refused = outcome(lambda: plain(input))  # noqa: B023
        what = (n, make, input, problem, refused)
        assert (problem is None) == (refused is None), what
        if problem is not None:
            assert isinstance(problem, IndexError) or not isinstance(refused, IndexError), what
            continue
        compare(found.detach(), expected.detach(), what)
        grad = torch.from_numpy(rng.standard_normal(tuple(found.shape)).astype(np.float32))
        found.backward(grad)
        expected.backward(grad)
        compare(dense(ours), plain.weight.grad, what)
        ours.anchor.grad = None
        if "max_norm" in make:
            compare(torch.from_numpy(table.lookup(np.arange(ROWS))), plain.weight.detach(), what)
            table.assign(np.arange(ROWS), weight.numpy())


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_padding_idx_of_construction(kind):
    theirs = getattr(torch.nn, kind.__name__)
    for padding_idx in (None, 0, 3, 9, -1, -10, 10, -11):
        module, problem = outcome(lambda: kind(10, 2, padding_idx=padding_idx))  # noqa: B023
        plain, refused = outcome(lambda: theirs(10, 2, padding_idx=padding_idx))  # noqa: B023
        assert (problem is None) == (refused is None)
        if plain is not None:
            assert module.padding_idx == plain.padding_idx
            rows = module.table.lookup(np.arange(10))
            assert np.array_equal((rows == 0).all(axis=1), (plain.weight == 0).all(dim=1).numpy())


def test_wrong_constructors():
    for wrong in (
        {"mode": "sqrt"}, {"mode": "max", "scale_grad_by_freq": True}, {"device": "cuda"},
        {"dtype": torch.float64}, {"_weight": torch.zeros(3, 3)},
    ):  # fmt: skip
        with pytest.raises(se.ArgumentError, match=next(iter(wrong)) if len(wrong) == 1 else "max"):
            EmbeddingBag(10, 2, **wrong)
    table = EmbeddingBag(10, 2).table
    with pytest.raises(se.ArgumentError, match="table"):
        EmbeddingBag(table, 2)
    with pytest.raises(se.ArgumentError, match="embedding_dim"):
        EmbeddingBag(10)
    with pytest.raises(se.ArgumentError, match="two dimensions"):
        EmbeddingBag.from_pretrained(torch.zeros(3))
