"""Tables in bfloat16, float16 and int8: the same promises as float32 ones."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.dtypes import narrow, widen
from sparse_embed.quantize import quantise
from tests.cases import assert_same_bits

ROWS, DIM = 3000, 7
KINDS = {
    "bfloat16": {"dtype": "bfloat16", "state_dtype": "bfloat16", "optimizer": se.LazyAdam(0.01)},
    "float16": {"dtype": "float16", "optimizer": se.RowWiseAdagrad(0.1)},
}


def make(path=None, kind="bfloat16", **more):
    return se.EmbeddingTable.create(
        path, num_embeddings=ROWS, embedding_dim=DIM, seed=3, **(KINDS[kind] | more)
    )


def train(table, first, last):
    for step in range(first, last):
        rng = np.random.default_rng(step)
        indices = rng.integers(0, ROWS, 400)
        table.update(rng.standard_normal((400, DIM)).astype(np.float32), indices)


def content(table):
    rows = np.arange(ROWS)
    return [table.lookup(rows), *table.state(rows).values()]


def assert_same(a, b):
    for found, expected in zip(content(a), content(b), strict=True):
        assert_same_bits(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_in_any_cache_and_file_and_after_a_crash(tmp_path, kind):
    expected = make(kind=kind)
    train(expected, 0, 12)
    with make(tmp_path / "small", kind, cache_bytes=20_000) as small:  # a seventh of the rows
        train(small, 0, 6)
        small.commit()
        train(small, 6, 12)
        assert_same(small, expected)
    crashed = make(tmp_path / "crashed", kind)
    train(crashed, 0, 6)
    crashed.commit()
    train(crashed, 6, 9)
    shutil.copytree(tmp_path / "crashed", tmp_path / "found")  # what a kill would leave
    crashed.close(checkpoint=False)
    with se.EmbeddingTable.open(tmp_path / "found") as found:
        assert found.step == 6
        train(found, 6, 12)
        assert_same(found, expected)
    with se.EmbeddingTable.open(tmp_path / "found", "r") as found:
        assert_same(found, expected)
        found.verify()


def test_threads_do_not_matter():
    threads = se.get_num_threads()
    expected = make()
    train(expected, 0, 5)
    try:
        se.set_num_threads(1)
        alone = make()
        train(alone, 0, 5)
    finally:
        se.set_num_threads(threads)
    assert_same(alone, expected)


def test_weights_are_of_the_dtype():
    """Virgin ones too; what is assigned is rounded to nearest."""
    for kind in KINDS:
        table = make(kind=kind)
        train(table, 0, 3)
        rows = np.arange(ROWS)
        found = table.lookup(rows)
        assert_same_bits(widen(narrow(found, kind), kind), found)
        values = np.random.default_rng(0).standard_normal((10, DIM)).astype(np.float32)
        values[0, 0] = 0.0
        table.assign(np.arange(10), values)
        stored = widen(narrow(values, kind), kind)
        stored[0, 0] = -0.0
        assert_same_bits(table.lookup(np.arange(10)), stored)
        table.reset(np.arange(10))
        assert 5 not in table.trained_indices()
        first = make(kind=kind)
        assert_same_bits(table.lookup(np.arange(10)), first.lookup(np.arange(10)))


def test_state_survives_assign(tmp_path):
    table = make()
    train(table, 0, 3)
    rows = np.arange(50)
    copy = make()
    copy.assign(rows, table.lookup(rows), state=table.state(rows))
    assert_same_bits(copy.lookup(rows), table.lookup(rows))
    for name, values in table.state(rows).items():
        assert_same_bits(copy.state(rows)[name], values)


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_reads_the_file(tmp_path, kind):
    with make(tmp_path / "t", kind) as table:
        train(table, 0, 3)
        rows = table.trained_indices()
        expected, state = table.lookup(rows), table.state(rows)
        table.commit()
        table.snapshot(tmp_path / "copy")
    for name in ("t", "copy"):
        data = np.load(tmp_path / name / "rows.npy", mmap_mode="r")
        assert data.dtype["weight"].base == ("<u2" if kind == "bfloat16" else "<f2")
        stored = np.array(data["weight"][rows])
        plain = (
            (stored.astype(np.uint32) << 16).view(np.float32)  # as the README says
            if kind == "bfloat16"
            else stored.astype(np.float32)
        )
        assert_same_bits(plain, expected)
        if kind == "float16":
            assert_same_bits(data["sum"][rows].reshape(-1, 1).copy(), state["sum"])


def test_stochastic_rounding_moves_where_nearest_stands_still():
    """Steps of a thousandth of a weight: below half a unit of bfloat16."""
    moved = {}
    for rounding in ("stochastic", "nearest"):
        table = se.EmbeddingTable.create(
            None, num_embeddings=100, embedding_dim=DIM, dtype="bfloat16", rounding=rounding,
            optimizer=se.SGD(1.0),
        )  # fmt: skip
        rows = np.arange(100)
        table.assign(rows, np.ones((100, DIM), np.float32))
        for _ in range(100):
            table.update(np.full((100, DIM), 1e-3, np.float32), rows)
        moved[rounding] = 1 - table.lookup(rows).mean()
    assert moved["nearest"] == 0
    assert abs(moved["stochastic"] - 0.1) < 0.005


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dtype": "float64"}, "dtype: expected one of float32, float16, bfloat16, got 'float64'"),
        ({"dtype": "int8"}, "quantize"),
        ({"dtype": 5}, "dtype: expected the name"),
        ({"dtype": "bfloat16", "rounding": "up"}, "rounding: expected one of stochastic, nearest"),
        ({"rounding": "nearest"}, "rounding: nothing is rounded"),
        ({"dtype": "bfloat16", "state_dtype": "float16"}, "state_dtype: expected one of"),
        ({"state_dtype": "bfloat16", "optimizer": None}, "state_dtype: there is no optimizer"),
        ({"dtype": "bfloat16", "device": "cuda:x"}, "device"),
    ],
)
def test_what_cannot_be(tmp_path, how, message):
    given = {"num_embeddings": 10, "embedding_dim": 4, "optimizer": se.SGD(0.1)} | how
    with pytest.raises(se.ArgumentError, match=message):
        se.EmbeddingTable.create(tmp_path / "t", **given)
    assert not (tmp_path / "t").exists()


def test_numpy_dtypes_are_names_too():
    for dtype in (np.float16, np.dtype("<f2"), "<f2"):
        table = se.EmbeddingTable.create(None, num_embeddings=4, embedding_dim=2, dtype=dtype)
        assert table.dtype == "float16" == table.info()["dtype"]


def test_a_data_file_of_another_dtype_is_refused(tmp_path):
    """float16 and bfloat16 records are equally long: the header tells."""
    for kind in ("float16", "bfloat16"):
        se.EmbeddingTable.create(
            tmp_path / kind, num_embeddings=10, embedding_dim=4, dtype=kind
        ).close()
    shutil.copy(tmp_path / "float16" / "rows.npy", tmp_path / "bfloat16" / "rows.npy")
    with pytest.raises(se.CorruptStoreError, match="header"):
        se.EmbeddingTable.open(tmp_path / "bfloat16")


@pytest.mark.slow
def test_collections_take_them_along():
    tables = {"a": make(), "b": make(kind="float16"), "c": make(optimizer=se.SGD(0.1), **FLOAT32)}
    alone = {"a": make(), "b": make(kind="float16"), "c": make(optimizer=se.SGD(0.1), **FLOAT32)}
    bags = se.EmbeddingBagCollection(tables)
    rng = np.random.default_rng(0)
    batch = {name: (rng.integers(0, ROWS, 30), np.arange(0, 31, 3)) for name in tables}
    found = bags.lookup(batch)
    for i, (name, (indices, offsets)) in enumerate(batch.items()):
        expected = alone[name].lookup(indices, offsets, mode="sum")
        assert_same_bits(np.ascontiguousarray(found[:, i * DIM : (i + 1) * DIM]), expected)


FLOAT32 = {"dtype": "float32", "state_dtype": "float32"}


# ---- copies --------------------------------------------------------------------------------------


def test_int8_is_within_half_a_scale():
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((200, 16)) * 10.0 ** rng.integers(-20, 20, (200, 1))).astype(
        "f4"
    )
    weights[0] = 3.25
    weights[1] = 0.0
    weights[2, :2] = -1.4e38, 1.5e38
    scale, bias, levels = quantise(weights)
    found = levels.astype(np.float32) * scale[:, None] + bias[:, None]
    size = np.abs(weights).max(axis=1, keepdims=True)
    assert (np.abs(found.astype("f8") - weights) <= scale[:, None] * 0.5001 + size * 2e-7).all()
    assert (found[:2] == weights[:2]).all()


@pytest.mark.parametrize("source", [*KINDS, "float32"])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float16"])
def test_copies(tmp_path, source, dtype):
    table = make(kind=source) if source in KINDS else make(**FLOAT32)
    train(table, 0, 4)
    rows = table.trained_indices()
    weights = table.lookup(rows)
    for copy in (table.quantize(dtype, tmp_path / "c"), table.quantize(dtype)):
        with copy:
            assert copy.dtype == dtype
            assert copy.optimizer is None
            assert_same_bits(copy.trained_indices(), rows)
            found = copy.lookup(rows)
            if dtype == "int8":
                scale, bias, levels = quantise(weights)
                expected = levels.astype(np.float32) * scale[:, None] + bias[:, None]
                assert_same_bits(found, expected.astype(np.float32))
            else:
                assert_same_bits(found, widen(narrow(weights, dtype), dtype))
            pooled = copy.lookup(rows[:12].reshape(3, 4), mode="mean")
            assert np.allclose(pooled, found[:12].reshape(3, 4, DIM).mean(axis=1), atol=1e-6)
            nearest, _ = copy.nearest(weights[:20], k=1)
            assert_same_bits(nearest[:, 0], rows[:20])
            virgin = np.setdiff1d(np.arange(ROWS), rows)[:5]
            assert np.allclose(copy.lookup(virgin), table.lookup(virgin), rtol=2**-7)
            copy.verify()
    with se.EmbeddingTable.open(tmp_path / "c", "r", cache_bytes=10_000) as copy:
        assert_same_bits(copy.lookup(rows), found)
    data = np.load(tmp_path / "c" / "rows.npy", mmap_mode="r")
    if dtype == "int8":
        part = data[rows]
        plain = part["weight"] * part["scale"][:, None] + part["bias"][:, None]
        assert_same_bits(plain.astype(np.float32), found)


def test_an_int8_table_does_not_change(tmp_path):
    table = make()
    train(table, 0, 2)
    table.quantize("int8", tmp_path / "c").close()
    one, row = np.zeros((1, DIM), np.float32), [3]
    with se.EmbeddingTable.open(tmp_path / "c", "r+") as copy:
        for change in (
            lambda: copy.update(one, row),
            lambda: copy.apply(table.backward(one, row)),
            lambda: copy.assign(row, one),
            lambda: copy.reset(row),
        ):
            with pytest.raises(se.ArgumentError, match="int8 table is a quantised copy"):
                change()
        with pytest.raises(se.ArgumentError, match="already"):
            copy.quantize()


def test_all_rows_can_be_written(tmp_path):
    table = make()
    train(table, 0, 2)
    with table.quantize("int8", tmp_path / "c", rows="all") as copy:
        assert len(copy.trained_indices()) == ROWS
    with table.quantize("int8", tmp_path / "d", rows=[5, 3]) as copy:
        assert copy.trained_indices().tolist() == [3, 5]


def test_a_refused_copy_leaves_nothing(tmp_path):
    with make(tmp_path / "t") as table:
        train(table, 0, 2)
        with pytest.raises(se.ArgumentError, match="expected one of int8"):
            table.quantize("int4", tmp_path / "c")
        with pytest.raises(se.ArgumentError, match="the table that is to be copied"):
            table.quantize("int8", tmp_path / "t", overwrite=True)
        table.assign([7], np.array([[1, np.nan, 0, 0, 0, 0, 0]], np.float32))
        with pytest.raises(se.ArgumentError, match="row 7"):
            table.quantize("int8", tmp_path / "c")
        assert not (tmp_path / "c").exists()
        table.assign([7], np.array([[-3e38, 3e38, 0, 0, 0, 0, 0]], np.float32))
        with pytest.raises(se.ArgumentError, match="row 7"):
            table.quantize("int8")
        table.assign([7], np.ones((1, DIM), np.float32))
        table.quantize("int8", tmp_path / "c").close()
        with pytest.raises(se.StoreError, match="overwrite"):
            table.quantize("int8", tmp_path / "c")
        table.quantize("float16", tmp_path / "c", overwrite=True).close()
        assert se.EmbeddingTable.open(tmp_path / "c", "r").dtype == "float16"
