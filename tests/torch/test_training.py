"""How gradients reach a table: uses merge, backward trains or keeps, torch's own tools apply.

Tolerance everywhere 2e-6: a few float32 roundings of numbers near 1, in another order than torch's.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.utils import clip_grad_norm_  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import sparse_embed as se  # noqa: E402
from sparse_embed.torch import Embedding, EmbeddingBag, follow, to_torch_sparse  # noqa: E402

ROWS, DIM = 60, 8
LR = 0.05


def pair(mode="sum", *, fused=True, optimizer=None, **more):
    """Our module and the same nn.EmbeddingBag with torch's SGD."""
    torch.manual_seed(0)
    plain = torch.nn.EmbeddingBag(ROWS, DIM, mode=mode, **more)
    ours = EmbeddingBag.from_torch(plain, optimizer=optimizer or se.SGD(LR), fused=fused)
    return ours, plain, torch.optim.SGD(plain.parameters(), LR)


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        input = torch.randint(0, ROWS, (24,), generator=generator)
        yield input, torch.tensor([0, 3, 3, 20])


def assert_same(ours, plain, atol=2e-6):
    found = ours.table.lookup(np.arange(ROWS))
    np.testing.assert_allclose(found, plain.weight.detach().numpy(), atol=atol, rtol=2e-6)


def chain(module, input, offsets):
    """Three uses, one of which depends on another."""
    first = module(input, offsets)
    second = module(input.flip(0), offsets) * first
    return (torch.tanh(second) + 0.1 * module(input[:10].reshape(2, 5)).mean()).square().mean()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_several_uses_are_one_step(mode, fused):
    ours, plain, optimizer = pair(mode, fused=fused)
    for input, offsets in itertools.islice(batches(), 4):
        for module in (ours, plain):
            chain(module, input, offsets).backward()
        assert fused or ours.step()
        optimizer.step()
        optimizer.zero_grad()
        assert_same(ours, plain)
        assert ours.anchor.grad is None
    assert ours.table.step == 4


def test_two_modules_on_one_table_are_one_step():
    ours, plain, optimizer = pair()
    rows = Embedding(ours.table, padding_idx=7)
    assert rows.anchor is ours.anchor
    input, offsets = next(batches())
    (ours(input, offsets).square().sum() + rows(input).sum(0).square().sum()).backward()
    plain_rows = torch.nn.functional.embedding(input, plain.weight, padding_idx=7)
    (plain(input, offsets).square().sum() + plain_rows.sum(0).square().sum()).backward()
    optimizer.step()
    assert ours.table.step == 1
    assert_same(ours, plain, 1e-5)


def test_many_uses_in_a_loop():
    """A recurrent network calls its embedding once a time step."""
    ours, plain, optimizer = pair(fused=True)
    for module in (ours, plain):
        state = torch.zeros(2, DIM)
        for k in range(50):
            state = torch.tanh(state + module(torch.tensor([[k % 9, k % 7], [k % 5, 3]])))
        state.sum().backward()
    optimizer.step()
    assert ours.table.step == 1
    assert_same(ours, plain)


def test_accumulation_clipping_and_steps():
    """Adam on the dense part, a global norm over everything, four backwards a step."""
    ours, plain, _ = pair(fused=False)
    torch.manual_seed(1)
    heads = [torch.nn.Linear(DIM, 1)]
    heads.append(copy.deepcopy(heads[0]))
    optimizers, losses = [], []
    models = [torch.nn.ModuleList([ours, heads[0]]), torch.nn.ModuleList([plain, heads[1]])]
    for model in models:
        optimizers.append(torch.optim.SGD(model.parameters(), LR))
        losses.append([])
    follow(optimizers[0], models[0])
    for model, optimizer, seen in zip(models, optimizers, losses, strict=True):
        stream = batches(2)
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(4):
                loss = (model[1](model[0](*next(stream))) - 1).square().mean() * 10
                loss.backward()
                seen.append(loss.item())
            norm = clip_grad_norm_(model.parameters(), 0.5)
            assert norm > 0.5
            optimizer.step()
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert_same(ours, plain, 1e-5)
    assert ours.table.step == 5


def test_the_anchor_carries_the_norm():
    ours, plain, _ = pair(fused=False)
    input, offsets = next(batches())
    for module in (ours, plain):
        module(input, offsets).square().sum().backward()
    expected = plain.weight.grad.norm()
    assert ours.anchor.grad.item() == pytest.approx(expected.item(), rel=1e-6)
    dense = to_torch_sparse(ours.grad)
    assert dense.is_coalesced()
    assert torch.allclose(dense.to_dense(), plain.weight.grad, atol=1e-5)
    before = ours.table.lookup(np.arange(ROWS))
    ours.zero_grad()  # forgets it
    assert not ours.step()
    assert np.array_equal(ours.table.lookup(np.arange(ROWS)), before)
    ours(input, offsets).sum().backward()
    ours.zero_grad(set_to_none=False)
    ours(input, offsets).sum().backward()
    plain.zero_grad()
    plain(input, offsets).sum().backward()
    assert torch.allclose(to_torch_sparse(ours.grad).to_dense(), plain.weight.grad, atol=1e-5)
    assert ours.step()
    assert not ours.step()


@pytest.mark.parametrize("fused_adam", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_grad_scaler(clip, fused_adam):
    """The loop of torch's AMP notes, unchanged; an inf skips the step of everything."""
    ours, plain, _ = pair(fused=False)
    torch.manual_seed(1)
    heads = [torch.nn.Linear(DIM, 1)]
    heads.append(copy.deepcopy(heads[0]))
    for module, head in ((ours, heads[0]), (plain, heads[1])):
        model = torch.nn.ModuleList([module, head])
        groups = [{"params": head.parameters()}, {"params": module.parameters(), "lr": 0.01}]
        optimizer = torch.optim.Adam(groups, 0.01, eps=1e-3, fused=fused_adam)
        sgd = torch.optim.SGD(plain.parameters(), LR)
        if module is ours:
            follow(optimizer, model)
        else:  # the plain table by SGD, as ours; both skip together
            optimizer = torch.optim.Adam(head.parameters(), 0.01, eps=1e-3, fused=fused_adam)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        stream = batches(3)
        for step in range(6):
            optimizer.zero_grad()
            sgd.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = head(module(*next(stream))).float().square().mean()
            if step == 2:
                loss = loss * torch.tensor(float("inf"))
            scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                if module is plain:
                    scaler.unscale_(sgd)
                clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            if module is plain:
                scaler.step(sgd)
            scaler.update()
        assert scaler.get_scale() == 2.0**9
    # bfloat16 heads: a rounding that falls the other way is 0.4 % of one gradient, times LR
    assert_same(ours, plain, 1e-3)
    assert ours.table.step == 5
    assert torch.isfinite(heads[0].weight).all()


def test_not_finite_gradients_are_dropped():
    ours, _, _ = pair(fused=False)
    input, offsets = next(batches())
    (ours(input, offsets).sum() * float("nan")).backward()
    assert ours.step() is False
    assert ours.grad is None
    ours(input, offsets).sum().backward()
    assert ours.step() is True
    assert np.isfinite(ours.table.lookup(np.arange(ROWS))).all()


@pytest.mark.parametrize("fused", [True, False])
def test_checkpointing_counts_once(fused):
    ours, plain, optimizer = pair(fused=fused)
    head = torch.nn.Linear(DIM, DIM)
    for input, offsets in itertools.islice(batches(), 3):
        for module in (ours, plain):

            def block(input, shift, module=module):
                return head(module(input, offsets)).tanh() + shift  # noqa: B023

            start = torch.zeros(4, DIM, requires_grad=True)
            result = checkpoint(block, input, start, use_reentrant=False)
            result = checkpoint(block, input.flip(0), result, use_reentrant=False)
            result.square().sum().backward()
        assert fused or ours.step()
        optimizer.step()
        optimizer.zero_grad()
        assert_same(ours, plain)
    assert ours.table.step == 3


def test_reentrant_checkpointing_with_kept_gradients():
    ours, plain, optimizer = pair(fused=False)
    input, offsets = next(batches())
    for module in (ours, plain):

        def block(shift, module=module):
            return module(input, offsets).tanh() + shift

        start = torch.zeros(4, DIM, requires_grad=True)
        result = checkpoint(block, checkpoint(block, start, use_reentrant=True), use_reentrant=True)
        result.square().sum().backward()
    ours.step()
    optimizer.step()
    assert_same(ours, plain)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend):
    """aot_eager merges equal calls and reorders: each use must still count."""
    torch._dynamo.reset()
    ours, plain, optimizer = pair()
    weights = torch.rand(24, requires_grad=True)
    grads = []

    def loss(module, input, offsets, weights):
        same = module(input, offsets, weights) + module(input, offsets, weights)
        return (same * module(input, offsets)).square().mean()

    compiled = torch.compile(lambda *a: loss(ours, *a), backend=backend, fullgraph=True)
    for input, offsets in itertools.islice(batches(), 3):
        compiled(input, offsets, weights).backward()
        grads.append(weights.grad)
        weights.grad = None
        loss(plain, input, offsets, weights).backward()
        np.testing.assert_allclose(grads[-1], weights.grad, rtol=1e-4, atol=1e-5)
        weights.grad = None
        optimizer.step()
        optimizer.zero_grad()
        assert_same(ours, plain, 1e-5)
    assert ours.table.step == 3
    with torch.no_grad():
        assert torch.equal(compiled(input, offsets, weights), loss(ours, input, offsets, weights))


def test_no_grad_eval_and_frozen_change_nothing():
    ours, _, _ = pair()
    input, offsets = next(batches())
    before = ours.table.lookup(np.arange(ROWS))
    with torch.no_grad():
        assert not ours(input, offsets).requires_grad
    with torch.inference_mode():
        ours(input, offsets)
    ours.eval()
    weights = torch.rand(24, requires_grad=True)
    ours(input, offsets, weights).sum().backward()
    assert weights.grad is not None
    ours.train()
    ours.requires_grad_(False)
    assert not ours(input, offsets).requires_grad
    ours(input, offsets, weights).sum().backward()
    ours.requires_grad_(True)
    (found,) = torch.autograd.grad(ours(input, offsets, weights).sum(), [weights])
    assert torch.isfinite(found).all()
    assert ours.table.step == 0
    assert np.array_equal(ours.table.lookup(np.arange(ROWS)), before)
    ours(input, offsets, weights).sum().backward()
    assert ours.table.step == 1


def test_a_failed_backward_leaves_nothing():
    ours, plain, optimizer = pair()
    input, offsets = next(batches())
    failing = torch.zeros(1, requires_grad=True)

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("on purpose")

    loss = ours(input, offsets, Fails.apply(failing + 1).expand(24)).sum()
    loss = loss + (ours(input, offsets) * 2).sum()
    with pytest.raises(RuntimeError, match="on purpose"):
        loss.backward()
    assert ours.table.step in (0, 1)
    start = ours.table.step
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(ours.table.lookup(np.arange(ROWS))))
    for module in (ours, plain):
        module(input, offsets).square().sum().backward()
    optimizer.step()
    assert ours.table.step == start + 1
    assert_same(ours, plain)


def test_rows_that_moved_on_are_refused():
    """The gradient of weights needs the rows of the forward; torch would refuse as well."""
    ours, _, _ = pair()
    input, offsets = next(batches())
    weights = torch.rand(24, requires_grad=True)
    early = ours(input, offsets, weights).sum()
    ours(input, offsets).sum().backward()
    with pytest.raises(se.ArgumentError, match="1 steps since this forward"):
        early.backward()


def test_no_second_derivative():
    ours, _, _ = pair()
    input, offsets = next(batches())
    weights = torch.rand(24, requires_grad=True)
    (first,) = torch.autograd.grad(
        ours(input, offsets, weights).square().sum(), [weights], create_graph=True
    )
    assert first.shape == (24,)


def test_table_stays_in_float32_on_the_cpu():
    ours, _, _ = pair()
    same = ours.anchor
    ours.half().double().to(torch.bfloat16)
    assert ours.anchor is same
    assert ours.anchor.dtype == torch.float32
    input, offsets = next(batches())
    assert ours(input.to(torch.int32), offsets.to(torch.int32)).dtype == torch.float32
    with pytest.raises(se.ArgumentError, match="meta"):
        ours(input.to("meta"), offsets)


def test_inputs_are_views():
    """int64 tensors reach the engine without a copy."""
    ours, _, _ = pair()
    seen = []
    lookup = se.EmbeddingTable.lookup

    def spy(self, indices, *args, **more):
        seen.append(indices)
        return lookup(self, indices, *args, **more)

    input, offsets = next(batches())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(se.EmbeddingTable, "lookup", spy)
        ours(input, offsets)
    assert seen[0].__array_interface__["data"][0] == input.data_ptr()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_numeric_gradients(mode):
    """Central differences in float64 of the reference formula, against autograd through the table.

    The upstream gradient is a constant, so a bag is linear in each weight (away from ties of
    "max") and the difference is exact: what is left is the float32 sum of at most 24 numbers.
    """
    ours, plain, _ = pair(mode, fused=False)
    input, offsets = next(batches(5))
    upstream = torch.randn(4, DIM)
    weights = torch.rand(24, requires_grad=True) if mode == "sum" else None
    ours(input, offsets, weights).backward(upstream)
    found = to_torch_sparse(ours.grad).to_dense()
    matrix = plain.weight.detach().double()

    def bags(matrix, weights):
        return torch.nn.functional.embedding_bag(
            input, matrix, offsets, mode=mode, per_sample_weights=weights
        )

    double = None if weights is None else weights.detach().double()
    delta = 1e-6
    for row, column in itertools.product([int(input[0]), int(input[4]), int(input[23])], (0, 5)):
        ends = []
        for sign in (delta, -delta):
            moved = matrix.clone()
            moved[row, column] += sign
            ends.append((bags(moved, double) * upstream).sum())
        slope = (ends[0] - ends[1]) / (2 * delta)
        assert found[row, column].item() == pytest.approx(slope.item(), rel=1e-6, abs=2e-6)
    if weights is not None:
        for k in (0, 3, 23):
            ends = []
            for sign in (delta, -delta):
                moved = double.clone()
                moved[k] += sign
                ends.append((bags(matrix, moved) * upstream).sum())
            slope = (ends[0] - ends[1]) / (2 * delta)
            assert weights.grad[k].item() == pytest.approx(slope.item(), rel=1e-5, abs=5e-6)
    exact = torch.nn.EmbeddingBag(ROWS, DIM, mode=mode, _weight=matrix.clone())
    exact(input, offsets, double).backward(upstream.double())
    assert torch.allclose(found.double(), exact.weight.grad, rtol=1e-6, atol=2e-6)
