"""EmbeddingTable against its NumPy twin, in memory and on disk, whole and through a small cache."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed import reference
from sparse_embed.storage import resident, rows
from tests.cases import assert_same_bits, zipf
from tests.twin import TwinTable

ROWS, DIM = 600, 7

OPTIMIZERS = [
    se.SGD(0.1, weight_decay=0.01),
    se.Adagrad(0.1, lr_decay=0.05, initial_accumulator_value=0.3),
    se.RowWiseAdagrad(0.1),
    se.LazyAdam(0.05, weight_decay=0.1),
    se.LazyAdam(0.05, eps_mode="outside", clip_value=0.5, clip_norm=0.7),
    se.RowWiseAdam(0.05),
]
MODES = ["sum", "mean", "sqrtn", "max"]


@pytest.fixture(params=["memory", "file", "small cache", "growing"])
def place(request, tmp_path, monkeypatch):
    """Keyword arguments of `create` for each way to hold a table."""
    if request.param == "memory":
        return {"path": None}
    if request.param == "file":
        return {"path": tmp_path / "t"}
    if request.param == "growing":  # starts compact, is laid out by row number on the way
        monkeypatch.setattr(rows, "_SMALL", 0)
        return {"path": tmp_path / "t"}
    # A tenth of the rows fit: most of every batch is evicted, spilled and read back.
    monkeypatch.setattr(resident, "_SMALLEST", 60)
    return {"path": tmp_path / "t", "cache_bytes": 1}


def make(place, optimizer, init=None):
    place = dict(place)
    return se.EmbeddingTable.create(
        place.pop("path"),
        num_embeddings=ROWS,
        embedding_dim=DIM,
        init=init or se.Uniform(0.5),
        optimizer=optimizer,
        seed=3,
        **place,
    )


def batch(rng, mode):
    indices = zipf(rng, ROWS, 200)
    indices[rng.random(200) < 0.3] = 17  # one id makes up a third of the batch
    offsets = np.sort(np.concatenate([[0, 0, 200], rng.integers(0, 201, 30)]))
    weights = None
    if mode != "max" and rng.random() < 0.5:
        weights = rng.standard_normal(200).astype(np.float32)
    padding = 17 if rng.random() < 0.3 else None
    grad = rng.standard_normal((len(offsets) - 1, DIM)).astype(np.float32)
    return grad, indices, offsets, {"mode": mode, "padding_idx": padding}, weights


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name}-{o.clip_norm}")
def test_equals_its_twin(place, optimizer):
    table = make(place, optimizer)
    twin = TwinTable(ROWS, DIM, se.Uniform(0.5), optimizer, 3)
    rng = np.random.default_rng(1)
    for step in range(16):
        grad, indices, offsets, how, weights = batch(rng, MODES[step % 4])
        if step == 9:
            table.lr = twin.lr = 0.01
        found = table.lookup(indices, offsets, per_sample_weights=weights, **how)
        assert_same_bits(found, twin.lookup(indices, offsets, weights=weights, **how))
        if step % 3:
            table.update(grad, indices, offsets, per_sample_weights=weights, **how)
        else:
            merged = table.backward(grad, indices, offsets, per_sample_weights=weights, **how)
            table.apply(merged)
        twin.update(grad, indices, offsets, weights=weights, **how)
        if step % 5 == 4:
            table.commit(wait=step % 2 == 0)
    rows = np.arange(ROWS)
    assert table.step == twin.step == 16
    assert_same_bits(table.lookup(rows), twin.weights())
    lanes = DIM
    for name, values in table.state(rows).items():
        virgin = twin.rec.records.view(np.uint32)[:, 0] == 0
        expected = twin.rec.records[:, lanes : lanes + values.shape[1]]
        assert_same_bits(values[~virgin], expected[~virgin])
        lanes += values.shape[1]
        assert name in ("exp_avg", "exp_avg_sq", "sum")
    touched = np.flatnonzero(twin.rec.records.view(np.uint32)[:, 0])
    assert np.array_equal(table.trained_indices(), touched)
    table.close()


def test_shapes_of_lookup(place):
    table = make(place, None)
    every = table.lookup(np.arange(ROWS))
    assert table.lookup(5).shape == (DIM,)
    assert table.lookup(np.array([[1, 2], [3, 4]], np.uint8)).shape == (2, 2, DIM)
    assert table.lookup([]).shape == (0, DIM)
    padded = np.array([[1, 2, -1], [-1, -1, -1]])
    assert_same_bits(
        table.lookup(padded, mode="mean", padding_idx=-1)[0],
        (every[1] + every[2]) / np.float32(2),
    )
    assert not table.lookup(padded, mode="mean", padding_idx=-1)[1].any()
    assert not table.lookup(padded, padding_idx=-1)[1].any()
    ragged = table.lookup([1, 2, 3], [0, 1], include_last_offset=False, mode="sum")
    assert_same_bits(ragged[1], every[2] + every[3])
    assert table.lookup(np.empty((0, 4), np.int32), mode="sum").shape == (0, DIM)
    assert table.lookup(np.empty((4, 0), np.int32), mode="max").shape == (4, DIM)
    assert table.lookup([], [0]).shape == (0, DIM)
    table.close()


def test_virgin_rows_are_the_initializer(place):
    for init in (se.Uniform(0.3), se.Normal(0.1), se.Zeros()):
        table = make(dict(place) | {"overwrite": True}, None, init)
        rows = np.array([0, 5, ROWS - 1])
        assert_same_bits(table.lookup(rows), reference.initialize(init, 3, rows, DIM))
        assert len(table.trained_indices()) == 0
        table.close()


def test_assign_reset_and_zero(place):
    table = make(place, se.LazyAdam(0.1))
    rows = np.array([4, 9, 599])
    values = np.zeros((3, DIM), np.float32)
    values[1] = 7.0
    table.assign(rows, values)
    assert np.array_equal(table.lookup(rows), values)  # a zero row is not a virgin one
    assert np.array_equal(table.trained_indices(), rows)
    table.update(np.ones((3, DIM), np.float32), rows)
    state = table.state(rows)
    table.assign(rows, values)
    assert np.array_equal(table.state(rows)["exp_avg"], state["exp_avg"])  # assign keeps it
    table.assign(rows[:1], values[:1], state={"exp_avg": np.full((1, DIM), 2, np.float32)})
    assert (table.state(rows[:1])["exp_avg"] == 2).all()
    before = reference.initialize(se.Uniform(0.5), 3, rows, DIM)
    table.reset(rows[[0, 0, 2]])
    assert np.array_equal(table.lookup(rows[[0, 2]]), before[[0, 2]])
    assert not table.state(rows[[0, 2]])["exp_avg"].any()
    assert np.array_equal(table.trained_indices(), [9])
    if table.path is not None:
        table.commit()
        table.close()
        table = se.EmbeddingTable.open(table.path, "r")
        assert np.array_equal(table.trained_indices(), [9])
        assert np.array_equal(table.lookup(rows[[0, 2]]), before[[0, 2]])
    table.close()


def test_untouched_rows_stay_and_empty_batches_count(place):
    table = make(place, se.LazyAdam(0.1))
    table.update(np.ones((2, DIM), np.float32), [1, 2])
    before = table.lookup(np.arange(ROWS))
    table.update(np.empty((0, DIM), np.float32), [])
    table.update(np.empty((3, DIM), np.float32), np.empty((3, 0), np.int64), mode="mean")
    assert table.step == 3
    assert_same_bits(table.lookup(np.arange(ROWS)), before)
    table.update(np.ones((1, DIM), np.float32), [1])
    changed = np.flatnonzero((table.lookup(np.arange(ROWS)) != before).any(axis=1))
    assert np.array_equal(changed, [1])
    table.close()


def test_per_sample_weights_gradient(place):
    table = make(place, se.SGD(0.1))
    rng = np.random.default_rng(2)
    indices, offsets = rng.integers(0, ROWS, 40), np.array([0, 3, 3, 20, 40])
    weights = (rng.random(40) + 0.5).astype(np.float32)
    grad = rng.standard_normal((4, DIM)).astype(np.float32)
    for mode in ("sum", "mean", "sqrtn"):
        found = table.per_sample_weights_grad(
            grad, indices, offsets, mode=mode, per_sample_weights=weights
        )
        for k in (0, 5, 39):
            moved = []
            for delta in (1e-2, -1e-2):
                other = weights.copy()
                other[k] += np.float32(delta)
                bags = table.lookup(indices, offsets, mode=mode, per_sample_weights=other)
                moved.append(float((bags.astype(np.float64) * grad).sum()))
            # Central differences of a smooth function: error about delta^2, and float32 sums.
            assert found[k] == pytest.approx((moved[0] - moved[1]) / 2e-2, abs=2e-3)
    table.close()


def test_nearest(place):
    table = make(place, se.SGD(0.1))
    rng = np.random.default_rng(3)
    rows = np.sort(rng.choice(ROWS, 50, replace=False))
    table.assign(rows, rng.standard_normal((50, DIM)).astype(np.float32))
    queries = rng.standard_normal((4, DIM)).astype(np.float32)
    for metric in ("cosine", "dot", "euclidean"):
        for chosen in ("trained", "all", rows[:7]):
            pool = {"trained": rows, "all": np.arange(ROWS)}.get(str(chosen), rows[:7])
            if not isinstance(chosen, str):
                pool = rows[:7]
            indices, scores = table.nearest(queries, 10, metric=metric, rows=chosen)
            block = table.lookup(pool)
            expected = reference.top_k(reference.scores(block, queries, metric), pool, 10, metric)
            assert np.array_equal(indices, expected[0])
            assert_same_bits(scores, expected[1])
    one, score = table.nearest(table.lookup(int(rows[3])), 1)
    assert one.tolist() == [rows[3]]
    assert score[0] == pytest.approx(1.0, abs=1e-6)
    table.close()


def test_dropout_bag(place):
    table = make(place, se.SGD(0.5))
    rng = np.random.default_rng(4)
    indices, offsets = rng.integers(0, ROWS, 60), np.array([0, 20, 20, 60])
    grad = rng.standard_normal((3, DIM)).astype(np.float32)
    bag = se.EmbeddingBag(table, mode="mean", dropout=0.5)
    keep = reference.dropout_scale(3, 0, 60, 0.5)
    count = np.repeat(np.float32([1 / 20, 1 / 40]), [20, 40])
    expected = table.lookup(indices, offsets, mode="sum", per_sample_weights=keep * count)
    assert_same_bits(bag(indices, offsets), expected)
    assert_same_bits(bag(indices, offsets), expected)  # the same step drops the same ones
    merged = bag.gradient(grad)
    kept = np.unique(indices[keep > 0])
    assert np.array_equal(merged.indices[merged.values.any(axis=1)], kept)
    bag.backward(grad)
    assert table.step == 1
    assert not np.array_equal(bag(indices, offsets), expected)
    plain = table.lookup(indices, offsets, mode="mean")
    assert_same_bits(bag.eval()(indices, offsets), plain)
    with pytest.raises(se.ArgumentError, match="max"):
        se.EmbeddingBag(table, mode="max", dropout=0.1)
    bag(indices, offsets)
    bag.backward(grad)
    with pytest.raises(se.ArgumentError, match="forward"):
        bag.backward(grad)
    table.close()


def test_scipy_round_trip():
    table = make({"path": None}, se.SGD(1.0))
    grad = table.backward(np.ones((3, DIM), np.float32), [5, 2, 5])
    assert grad.indices.tolist() == [2, 5]
    again = se.SparseGrad.from_scipy(grad.to_scipy())
    assert np.array_equal(again.indices, grad.indices)
    assert_same_bits(again.values, grad.values)
    table.apply(again)
    twice = grad + grad
    assert_same_bits(twice.values, grad.values * np.float32(2))


def test_export(place, tmp_path):
    table = make(place, se.SGD(0.1))
    rows = np.array([3, 77, 500])
    table.update(np.ones((3, DIM), np.float32), rows)
    weights = table.lookup(rows)
    assert table.export(tmp_path / "x.npy") == 3
    assert np.array_equal(np.load(tmp_path / "x.npy"), weights)
    assert np.array_equal(np.load(tmp_path / "x.indices.npy"), rows)
    table.export(tmp_path / "x.txt", names=["a", "b", "ü"])
    lines = (tmp_path / "x.txt").read_text("utf-8").splitlines()
    assert lines[0] == f"3 {DIM}"
    assert lines[3].split()[0] == "ü"
    numbers = np.array(lines[2].split()[1:], np.float32)
    assert_same_bits(numbers, weights[1])  # the shortest text that reads back to the same float32
    table.export(tmp_path / "x.bin")
    data = (tmp_path / "x.bin").read_bytes()
    assert data.startswith(f"3 {DIM}\n3 ".encode())
    assert table.export(tmp_path / "all.npy", rows="all") == ROWS
    assert np.array_equal(np.load(tmp_path / "all.npy"), table.lookup(np.arange(ROWS)))
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    table.export(tmp_path / "x.safetensors")
    loaded = safetensors.load_file(tmp_path / "x.safetensors")
    assert np.array_equal(loaded["weight"], weights)
    assert np.array_equal(loaded["indices"], rows)
    table.close()


def test_second_call_compiles_nothing(place):
    from numba.core.dispatcher import Dispatcher

    def signatures():
        import gc

        # By type: isinstance would ask dead weak proxies, which answer with an error.
        kernels = [d for d in gc.get_objects() if issubclass(type(d), Dispatcher)]
        return sum(len(d.signatures) for d in kernels)

    table = make(place, se.LazyAdam(0.1))
    rng = np.random.default_rng(5)
    counts = []
    for _ in range(3):
        grad, indices, offsets, how, weights = batch(rng, "mean")
        indices.setflags(write=False)
        table.lookup(indices, offsets, per_sample_weights=weights, **how)
        table.update(grad, indices, offsets, per_sample_weights=weights, **how)
        table.commit()
        counts.append(signatures())
    assert counts[1] == counts[2]
    table.close()
