"""Collections of tables on a GPU: the bits of the CPU's, wherever the batch lies."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_embed as se
from tests.cases import assert_same_bits

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("memory"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

TABLES = {  # rows, columns, optimizer, dtype: odd columns before even ones
    "words": (50, 3, se.LazyAdam(0.1), "float32"),
    "users": (40, 8, se.LazyAdam(0.05), "float32"),
    "tags": (30, 4, se.SGD(0.1), "float32"),
    "items": (60, 4, se.SGD(0.1), "bfloat16"),
}
FEATURES = {
    "title": "words", "user": "users", "tag": "tags", "clicked": "items", "shown": "items",
    "query": "words", "friend": "users",
}  # fmt: skip
MODES = {"words": "mean", "users": "sum", "tags": "sqrtn", "items": "sum"}
PADDING = {"words": 0, "users": None, "tags": -1, "items": 7}
SIZE = 5


def make(device, modes=MODES, path=None, **more):
    store = se.Store.create(path)
    for i, (name, (rows, dim, optimizer, dtype)) in enumerate(TABLES.items()):
        store.create_table(
            name, num_embeddings=rows, embedding_dim=dim, optimizer=optimizer, seed=i,
            dtype=dtype, device=device, **more,
        )  # fmt: skip
    collection = se.EmbeddingBagCollection(store, FEATURES, mode=modes, padding_idx=PADDING)
    return store, collection


def one_batch(rng, hot=0):
    """indices, offsets, weights of all features; bags of 0 to 3 ids, one of `hot` more."""
    parts, lengths = [], []
    for name, table in FEATURES.items():
        rows = TABLES[table][0]
        own = rng.integers(0, 4, SIZE)
        if hot and name in ("user", "query"):
            own[1] += hot
        ids = rng.integers(0, min(rows, 40), own.sum()) * (rows // min(rows, 40))
        if hot and name in ("user", "query"):
            ids[rng.random(len(ids)) < 0.9] = 9 % rows
        if PADDING[table] is not None:
            ids[rng.random(len(ids)) < 0.2] = PADDING[table]
        parts.append(ids)
        lengths.append(own)
    indices = np.concatenate(parts).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return indices, offsets, rng.standard_normal(len(indices)).astype(np.float32)


def assert_same_stores(found, expected):
    for name, table in found.tables.items():
        other = expected.tables[name]
        assert table.step == other.step
        rows = other.trained_indices()
        assert_same_bits(table.trained_indices(), rows)
        assert_same_bits(np.asarray(table.lookup(rows)), other.lookup(rows))
        for field, values in table.state(rows).items():
            assert_same_bits(values, other.state(rows)[field])


def test_the_bits_of_the_cpu(memory):
    up = memory.upload
    ours, found = make("cuda")
    theirs, expected = make("cpu")
    assert found.tables["items"].device == memory.name
    for step in range(2):
        indices, offsets, weights = one_batch(np.random.default_rng(step))
        how = {"per_sample_weights": weights}
        grad = np.random.default_rng(9).standard_normal((SIZE, found.output_dim))
        grad = grad.astype(np.float32)
        bags = expected.lookup(indices, offsets, **how)
        assert_same_bits(found.lookup(indices, offsets, **how), bags)
        there = found.lookup(up(indices), up(offsets), per_sample_weights=up(weights))
        assert there.device == memory.name
        assert_same_bits(np.asarray(there), bags)
        for name, part in expected.split(bags).items():
            assert_same_bits(np.asarray(found.split(there)[name]), np.ascontiguousarray(part))
        if step:
            found.update(grad, indices, offsets, **how)
        else:
            batch = found.batch(up(indices), offsets, per_sample_weights=weights)
            merged = found.backward(up(grad), batch)
            for name, part in expected.backward(grad, indices, offsets, **how).items():
                assert_same_bits(merged[name].values, part.values)
            slopes = found.per_sample_weights_grad(grad, batch)
            assert_same_bits(
                np.asarray(slopes), expected.per_sample_weights_grad(grad, indices, offsets, **how)
            )
            found.update(up(grad), batch)
        expected.update(grad, indices, offsets, **how)
    assert_same_stores(ours, theirs)


def test_rows_that_are_everywhere_maxima_and_features_by_name(memory):
    """Blocks of 256 of rows of two dims; a table that is trained alone; gradients by feature."""
    modes = {**MODES, "tags": "max"}
    ours, found = make("cuda", modes)
    theirs, expected = make("cpu", modes)
    indices, offsets, _ = one_batch(np.random.default_rng(3), hot=800)
    ends = offsets[::SIZE]
    given = {
        name: (
            indices[ends[f] : ends[f + 1]], offsets[f * SIZE : (f + 1) * SIZE + 1] - ends[f]
        )
        for f, name in enumerate(FEATURES)
    }  # fmt: skip
    rng = np.random.default_rng(4)
    grad = {
        name: rng.standard_normal((SIZE, dim)).astype(np.float32)
        for name, dim in expected.embedding_dims.items()
    }
    expected.update(grad, given)
    found.update({name: memory.upload(array) for name, array in grad.items()}, given)
    assert_same_stores(ours, theirs)
    moved = {name: tuple(map(memory.upload, parts)) for name, parts in given.items()}
    assert_same_bits(np.asarray(found.lookup(moved)), expected.lookup(given))
    found.apply(expected.backward(grad, given))
    expected.apply(expected.backward(grad, given))
    assert_same_stores(ours, theirs)


def test_rows_from_files_and_a_table_larger_than_its_cache(tmp_path, monkeypatch, memory):
    from sparse_embed.storage import device_index

    monkeypatch.setattr(device_index, "_SMALLEST", 24)
    theirs, expected = make("cpu", path=tmp_path / "model")
    indices, offsets, _ = one_batch(np.random.default_rng(5))
    grad = np.random.default_rng(6).standard_normal((SIZE, expected.output_dim))
    grad = grad.astype(np.float32)
    expected.update(grad, indices, offsets)
    theirs.commit()
    theirs.close()
    theirs = se.Store.open(tmp_path / "model", "r")
    cache = {"words": None, "users": None, "tags": 1, "items": 1}
    names = {"mode": MODES, "padding_idx": PADDING}
    with se.Store.open(tmp_path / "model", "r", cache_bytes=cache, device="cuda") as store:
        found = se.EmbeddingBagCollection(store, FEATURES, **names)
        expected = se.EmbeddingBagCollection(theirs, FEATURES, **names)
        kinds = {name: table.info()["resident"] for name, table in store.tables.items()}
        assert kinds["items"] == kinds["tags"] == "indexed"
        assert kinds["users"] == "identity"
        bags = expected.lookup(indices, offsets)
        there = found.lookup(memory.upload(indices), memory.upload(offsets))
        assert_same_bits(np.asarray(there), bags)


def test_what_is_wrong_is_named_before_anything_changes(memory):
    up = memory.upload
    store, found = make("cuda")
    indices, offsets, _ = one_batch(np.random.default_rng(5))
    grad = np.zeros((SIZE, found.output_dim), np.float32)
    wrong = indices.copy()
    wrong[offsets[1 * SIZE]] = 40  # of "user"
    if offsets[SIZE] == offsets[2 * SIZE]:
        raise AssertionError("no id of that feature")
    for given in ((wrong, offsets), (up(wrong), up(offsets))):
        for call in (found.lookup, lambda *batch: found.update(grad, *batch)):
            with pytest.raises(se.IndexRangeError, match="indices of 'user'"):
                call(*given)
    falls = offsets.copy()
    falls[3] = falls[5] + 1
    with pytest.raises(se.ArgumentError, match="offsets"):
        found.lookup(up(indices), up(falls))
    with pytest.raises(se.ArgumentError, match=r"expected \(F B \+ 1,\) entries for F = 7"):
        found.lookup(up(indices), up(offsets[:-1]))
    with pytest.raises(se.ArgumentError, match=r"grad: expected shape \(5, 34\)"):
        found.update(up(grad[:, :7].copy()), up(indices), up(offsets))
    with pytest.raises(se.ArgumentError, match="offsets: is on a GPU, but indices are not"):
        found.lookup(indices, up(offsets))
    assert {table.step for table in store.tables.values()} == {0}
    empty = found.lookup(up(indices[:0]), up(offsets[:1]))
    assert empty.shape == (0, found.output_dim)
    found.update(up(grad[:0]), up(indices[:0]), up(offsets[:1]))
    found.update(grad, up(np.zeros((7, SIZE, 0), np.int64)))
    assert {table.step for table in store.tables.values()} == {2}
    _, other = make("cpu")
    with pytest.raises(se.ArgumentError, match="expected all on one device, got cpu, cuda:0"):
        se.EmbeddingBagCollection({"a": store.tables["users"], "b": other.tables["tags"]})
    with pytest.raises(se.ArgumentError, match="indices: is on a GPU, but this table is on the"):
        other.lookup(up(indices), offsets)
    with pytest.raises(se.ArgumentError, match="stream: only tables on a GPU"):
        other.lookup(indices, offsets, stream=7)
