"""Dropout and batch normalisation: their twins, bit for bit; torch; gradients by differences."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed import reference_layers as reference
from sparse_embed.reference import dropout_scale


def vectors(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 2, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 1), (7, 16), (64, 37), (300, 100)])
def test_batch_norm_is_its_twin(shape):
    x, grad = vectors(*shape), vectors(*shape, seed=1)
    norm = se.BatchNorm(shape[1])
    norm.weight, norm.bias = vectors(1, shape[1], 2)[0], vectors(1, shape[1], 3)[0]
    y, mean, variance = reference.batch_norm(x, norm.weight, norm.bias, 1e-5)
    assert np.array_equal(norm(x), y)
    dx, dweight, dbias = reference.batch_norm_backward(
        grad, x, norm.weight, 1e-5, mean, variance, True
    )
    assert np.array_equal(norm.backward(grad), dx)
    assert np.array_equal(norm.weight_grad, dweight)
    assert np.array_equal(norm.bias_grad, dbias)

    norm.eval()
    given = (norm.running_mean, norm.running_var)
    y, _, _ = reference.batch_norm(x, norm.weight, norm.bias, 1e-5, given)
    assert np.array_equal(norm(x), y)
    dx, _, _ = reference.batch_norm_backward(grad, x, norm.weight, 1e-5, *given, False)
    assert np.array_equal(norm.backward(grad), dx)


def test_batch_norm_is_torchs():
    torch = pytest.importorskip("torch")
    theirs, ours = torch.nn.BatchNorm1d(20), se.BatchNorm(20)
    for step in range(3):
        x, grad = vectors(33, 20, step), vectors(33, 20, 10 + step)
        t = torch.tensor(x, requires_grad=True)
        theirs.zero_grad()
        out = theirs(t)
        out.backward(torch.tensor(grad))
        # float32 sums in other orders
        np.testing.assert_allclose(ours(x), out.detach().numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours.backward(grad), t.grad.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            ours.weight_grad, theirs.weight.grad.numpy(), rtol=1e-4, atol=1e-4
        )
    np.testing.assert_allclose(ours.running_mean, theirs.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.running_var, theirs.running_var.numpy(), rtol=1e-5)
    assert ours.num_batches_tracked == 3


def test_gradients_by_differences():
    """The twin in float64: a change of 1e-6 in each input moves the loss as `backward` says."""
    rng = np.random.default_rng(0)
    x, weight, bias, c = rng.normal(size=(5, 3)), *rng.normal(size=(2, 3)), rng.normal(size=(5, 3))

    def loss(x, weight, bias):
        y, _, _ = reference.batch_norm(x, weight, bias, 1e-5)
        return float((c * np.sin(y)).sum())

    y, mean, variance = reference.batch_norm(x, weight, bias, 1e-5)
    found = reference.batch_norm_backward(c * np.cos(y), x, weight, 1e-5, mean, variance, True)
    for which, array in enumerate((x, weight, bias)):
        for place in np.ndindex(array.shape):
            ends = []
            for step in (1e-6, -1e-6):
                arrays = [x.copy(), weight.copy(), bias.copy()]
                arrays[which][place] += step
                ends.append(loss(*arrays))
            assert found[which][place] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_statistics_live_in_a_store(tmp_path):
    with se.Store.create(tmp_path / "s") as store:
        store.create_table("rows", num_embeddings=10, embedding_dim=4)
        norm = se.BatchNorm(4, arrays=store.arrays)
        norm(vectors(8, 4))
        kept = norm.running_mean.copy()
        store.commit()
        norm(vectors(8, 4, 1))
        store.rollback()
        assert np.array_equal(norm.running_mean, kept)
    with se.Store.open(tmp_path / "s", "r") as store:
        assert np.array_equal(se.BatchNorm(4, arrays=store.arrays).running_mean, kept)
        with pytest.raises(se.ArgumentError, match="running_mean"):
            se.BatchNorm(5, arrays=store.arrays)


def test_dropout():
    x = vectors(40, 25)
    drop = se.Dropout(0.3, seed=7)
    drop.step = 5
    scale = dropout_scale(7, 5, x.size, 0.3).reshape(x.shape)
    assert 0.6 < np.mean(scale > 0) < 0.8
    expected = x * scale
    assert np.array_equal(drop(x), expected)
    assert np.array_equal(drop.backward(x), expected)
    assert drop.step == 6
    assert not np.array_equal(drop(x), expected)
    assert drop.eval()(x) is x
    assert drop.backward(x) is x


def test_bad_input():
    with pytest.raises(se.ArgumentError, match="p: expected"):
        se.Dropout(1.0)
    with pytest.raises(se.ArgumentError, match="num_features"):
        se.BatchNorm(0)
    norm = se.BatchNorm(4)
    with pytest.raises(se.ArgumentError, match="backward"):
        norm.backward(vectors(2, 4))
    with pytest.raises(se.ArgumentError, match="at least two vectors"):
        norm(vectors(1, 4))
    with pytest.raises(se.ArgumentError, match="x: expected shape"):
        norm(vectors(2, 5))
    with pytest.raises(se.ArgumentError, match="float32"):
        norm(vectors(2, 4).astype(np.float64))
    with pytest.raises(se.ArgumentError, match="eps"):
        se.BatchNorm(4, eps=0)
    with pytest.raises(se.ArgumentError, match="momentum"):
        se.BatchNorm(4, momentum=0)


def test_with_a_bag():
    """Embeddings with dropout and batch normalisation, as the docstring has it."""
    table = se.EmbeddingTable.create(
        None, num_embeddings=100, embedding_dim=16, optimizer=se.Adagrad(lr=0.05)
    )
    bag, drop, norm = se.EmbeddingBag(table), se.Dropout(0.2), se.BatchNorm(16)
    indices, offsets = np.arange(60), np.arange(0, 61, 3)
    before = table.lookup(indices)
    y = norm(drop(bag(indices, offsets)))
    bag.backward(drop.backward(norm.backward(y)))
    assert table.step == 1
    assert not np.array_equal(table.lookup(indices), before)
