"""EmbeddingBagCollection: the bits of the same operations done table by table."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed import ops_many
from sparse_embed.collection_run import ManyExecution
from tests.cases import assert_same_bits, zipf

TABLES = {  # name: rows, columns, optimizer: two update kernels
    "users": (4000, 8, se.LazyAdam(0.05)),
    "words": (50, 8, se.LazyAdam(0.1, eps_mode="outside", clip_norm=0.5)),
    "tags": (300, 4, se.SGD(0.1)),
    "items": (1 << 36, 8, se.LazyAdam(0.02, clip_value=0.1)),
}
FEATURES = {
    "user": "users", "title": "words", "tag": "tags", "clicked": "items", "shown": "items",
    "friend": "users", "query": "words",
}  # fmt: skip
MODES = {"users": "sum", "words": "mean", "tags": "sqrtn", "items": "sum"}
PADDING = {"users": None, "words": 0, "tags": -1, "items": 7}


def make_store(path=None, cache=None, seed=0):
    store = se.Store.create(path)
    for i, (name, (rows, dim, optimizer)) in enumerate(TABLES.items()):
        store.create_table(
            name, num_embeddings=rows, embedding_dim=dim, optimizer=optimizer, seed=seed + i,
            init=[se.Normal(0.5), se.Uniform(0.5)][i % 2], cache_bytes=cache,
        )  # fmt: skip
    return store


def collection_of(store, mode=MODES):
    return se.EmbeddingBagCollection(store, FEATURES, mode=mode, padding_idx=PADDING)


def one_batch(rng, size=40, most=6, weighted=True, hot=0):
    """Ragged bags with empty ones and padding; `hot`: ids of one row in one bag."""
    given = {}
    for name, table in FEATURES.items():
        rows = TABLES[table][0]
        lengths = rng.integers(0, most, size)
        if hot and name in ("title", "query", "clicked"):
            lengths[1] = hot
        ids = zipf(rng, min(rows, 4000), int(lengths.sum()), 0.6) * (rows // min(rows, 4000))
        if hot and name in ("title", "query", "clicked"):
            ids[lengths[0] : lengths[0] + hot] = 3 % rows
        if PADDING[table] is not None and len(ids):
            ids[rng.random(len(ids)) < 0.1] = PADDING[table]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        weights = rng.standard_normal(len(ids)).astype(np.float32)
        given[name] = (ids, offsets, weights) if weighted else (ids, offsets)
    return given


def flat(given):
    """The same as arrays."""
    parts = list(given.values())
    ends = np.cumsum([0] + [len(part[0]) for part in parts])
    offsets = [part[1][:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
    indices = np.concatenate([part[0] for part in parts])
    weights = np.concatenate([part[2] for part in parts]) if len(parts[0]) == 3 else None
    return indices, np.append(np.concatenate(offsets), ends[-1]), weights


def by_table(given, table):
    """The features of a table, one batch behind the other."""
    indices, offsets, weights = flat({f: given[f] for f, t in FEATURES.items() if t == table})
    return indices, offsets, {"per_sample_weights": weights, "padding_idx": PADDING[table]}


def columns(grad, table):
    ends = np.cumsum([TABLES[t][1] for t in FEATURES.values()])
    dim = TABLES[table][1]
    parts = [
        grad[:, e - dim : e] for e, t in zip(ends, FEATURES.values(), strict=True) if t == table
    ]
    return np.ascontiguousarray(np.concatenate(parts))


def lookup_by_table(store, given, modes):
    size = len(given["user"][1]) - 1
    pooled = {}
    for name in TABLES:
        indices, offsets, how = by_table(given, name)
        found = store.tables[name].lookup(indices, offsets, mode=modes[name], **how)
        features = [f for f, t in FEATURES.items() if t == name]
        for i, feature in enumerate(features):
            pooled[feature] = found[i * size : (i + 1) * size]
    return np.concatenate([pooled[feature] for feature in FEATURES], axis=1)


def update_by_table(store, grad, given, modes):
    for name in TABLES:
        indices, offsets, how = by_table(given, name)
        store.tables[name].update(columns(grad, name), indices, offsets, mode=modes[name], **how)


def assert_same_stores(found, expected):
    for name, table in found.tables.items():
        other = expected.tables[name]
        assert table.step == other.step
        rows = table.trained_indices()
        assert_same_bits(rows, other.trained_indices())
        assert_same_bits(table.lookup(rows), other.lookup(rows))
        for field, values in table.state(rows).items():
            assert_same_bits(values, other.state(rows)[field])


def grads(rng, collection, size=40):
    return rng.standard_normal((size, collection.output_dim)).astype(np.float32)


@pytest.mark.parametrize(
    ("weighted", "modes", "hot"),
    [
        (True, MODES, 0),
        (False, MODES, 0),
        (True, MODES, 5000),
        (False, {**MODES, "tags": "max"}, 3),
    ],
)
def test_same_bits_as_table_by_table(weighted, modes, hot):
    rng = np.random.default_rng(1)
    store, twin = make_store(), make_store()
    collection = collection_of(store, modes)
    for step in range(4):
        given = one_batch(rng, weighted=weighted, hot=hot)
        grad = grads(rng, collection)
        assert_same_bits(collection.lookup(given), lookup_by_table(twin, given, modes))
        collection.update(grad, given)
        update_by_table(twin, grad, given, modes)
        if step == 2:
            store.tables["users"].lr = twin.tables["users"].lr = 0.01
    assert_same_stores(store, twin)
    assert_same_bits(collection.lookup(given), lookup_by_table(twin, given, modes))


def test_threads_do_not_show():
    results = []
    for threads in (1, se.get_num_threads()):
        before = se.get_num_threads()
        se.set_num_threads(threads)
        try:
            rng = np.random.default_rng(2)
            store = make_store()
            collection = collection_of(store)
            for _ in range(3):
                given = one_batch(rng, hot=3000)
                collection.update(grads(rng, collection), given)
            results.append((store, collection.lookup(given)))
        finally:
            se.set_num_threads(before)
    assert_same_bits(results[0][1], results[1][1])
    assert_same_stores(results[0][0], results[1][0])


@pytest.mark.parametrize("cache", [None, 1 << 20, 1])
def test_on_disk_with_a_cache_of_any_size(tmp_path, monkeypatch, cache):
    """From all rows in memory to a cache that no batch fits, through commits and reopening."""
    rng = np.random.default_rng(3)
    twin = make_store()
    path = tmp_path / "model"
    store = make_store(path, cache)
    alone = []
    update_alone = ManyExecution._update_alone
    monkeypatch.setattr(
        ManyExecution, "_update_alone", lambda *a: (alone.append(a[-1]), update_alone(*a))
    )
    for _ in range(2):
        collection = collection_of(store)
        for _ in range(2):
            given = one_batch(rng, size=400, most=14)
            grad = grads(rng, collection, 400)
            assert_same_bits(collection.lookup(given), lookup_by_table(twin, given, MODES))
            collection.update(grad, given)
            update_by_table(twin, grad, given, MODES)
        store.commit()
        collection.update(grad, given)
        store.rollback()
        assert_same_stores(store, twin)
        store.close()
        store = se.Store.open(path, cache_bytes=cache)
    assert_same_stores(store, twin)
    assert (cache == 1) == bool(alone)
    store.close()
    with se.Store.open(path, "r") as reader:
        collection = collection_of(reader)
        assert_same_bits(collection.lookup(given), lookup_by_table(twin, given, MODES))
        with pytest.raises(se.ReadOnlyError):
            collection.update(grad, given)


class Jagged:
    """What a KeyedJaggedTensor can do, as far as it is asked."""

    def __init__(self, names, given):
        self._names = names
        self._indices, self._offsets, self._weights = flat({name: given[name] for name in names})

    def keys(self):
        return list(self._names)

    def values(self):
        return self._indices

    def offsets(self):
        return self._offsets

    def weights_or_none(self):
        return self._weights


def test_every_form_of_a_batch():
    rng = np.random.default_rng(4)
    collection = collection_of(make_store())
    given = one_batch(rng)
    expected = collection.lookup(given)
    indices, offsets, weights = flat(given)
    how = {"per_sample_weights": weights}
    assert_same_bits(collection.lookup(indices, offsets, **how), expected)
    last = collection.lookup(indices, offsets[:-1], include_last_offset=False, **how)
    assert_same_bits(last, expected)
    batch = collection.batch(indices, offsets, **how)
    assert batch.batch_size == 40
    assert_same_bits(collection.lookup(batch), expected)
    assert_same_bits(collection.lookup(Jagged(list(FEATURES), given)), expected)
    reordered = {**given, "more": given["user"]}
    assert_same_bits(collection.lookup(Jagged(list(reversed(reordered)), reordered)), expected)
    assert_same_bits(
        collection.lookup(indices.astype(">i8"), offsets.astype(np.int32), **how), expected
    )

    square = {name: rng.integers(0, 50, (40, 3)) for name in FEATURES}
    expected = collection.lookup(square)
    assert_same_bits(collection.lookup(np.stack(list(square.values()))), expected)
    assert_same_bits(collection.lookup(np.stack(list(square.values())).astype(np.uint64)), expected)
    mixed = {**square, "tag": square["tag"].astype(np.uint64)}
    assert_same_bits(collection.lookup(mixed), expected)
    views = collection.split(expected)
    assert list(views) == list(FEATURES)
    assert views["tag"].base is expected
    assert views["tag"].shape == (40, 4)

    grad = grads(rng, collection)
    twin = collection_of(make_store())
    collection.update(grad, square)
    twin.update({name: view.copy() for name, view in twin.split(grad).items()}, twin.batch(square))
    for name, table in collection.tables.items():
        rows = table.trained_indices()
        assert_same_bits(table.lookup(rows), twin.tables[name].lookup(rows))


def test_no_bags_and_no_ids_count_as_steps():
    collection = collection_of(make_store())
    before = {name: table.trained_indices() for name, table in collection.tables.items()}
    none = np.empty(0, np.int64)
    assert collection.lookup(none, np.zeros(1, np.int64)).shape == (0, collection.output_dim)
    collection.update(np.empty((0, collection.output_dim), np.float32), none, np.zeros(1, np.int64))
    zeros = np.zeros(len(FEATURES) * 3 + 1, np.int64)
    bags = collection.lookup(none, zeros)
    assert bags.shape == (3, collection.output_dim)
    assert not bags.any()
    collection.update(np.ones_like(bags), none, zeros)
    for name, table in collection.tables.items():
        assert table.step == 2
        assert_same_bits(table.trained_indices(), before[name])


def test_backward_and_apply_are_update():
    rng = np.random.default_rng(5)
    store, twin = make_store(), make_store()
    collection, other = collection_of(store), collection_of(twin)
    for _ in range(3):
        given = one_batch(rng, hot=2500)
        grad = grads(rng, collection)
        collection.update(grad, given)
        merged = other.backward(grad, given)
        assert list(merged) == list(other.tables)
        other.apply(merged)
    assert_same_stores(store, twin)
    found = collection.per_sample_weights_grad(grad, given)
    _, _, weights = flat(given)
    assert found.shape == weights.shape
    at = 0
    for feature, name in FEATURES.items():
        ids, starts, w = given[feature]
        expected = store.tables[name].per_sample_weights_grad(
            collection.split(grad)[feature].copy(), ids, starts, mode=MODES[name],
            per_sample_weights=w, padding_idx=PADDING[name],
        )  # fmt: skip
        assert_same_bits(found[at : at + len(ids)], expected)
        at += len(ids)


def test_bad_input_changes_nothing_in_any_table():
    rng = np.random.default_rng(6)
    store, twin = make_store(), make_store()
    collection = collection_of(store)
    good = one_batch(rng)
    grad = grads(rng, collection)
    collection.update(grad, good)
    update_by_table(twin, grad, good, MODES)
    indices, offsets, _ = flat(good)
    ids, starts, w = good["query"]
    beyond = ids.copy()
    beyond[0] = 50
    wrong = [
        (good | {"query": (beyond, starts, w)}, "indices of 'query'.*50"),
        ({**good, "what": good["user"]}, "features"),
        ({f: good[f] for f in list(good)[1:]}, "features"),
        (good | {"query": (ids, starts[:-1], w)}, "'query'.*39"),
        (good | {"query": (ids, starts + 1, w)}, "'query': offsets"),
        (good | {"query": (ids[: starts[20]], starts[:21], w[: starts[20]])}, "'query'.*bags"),
        (good | {"query": (ids, starts, w.astype(np.float64))}, "'query'.*float32"),
        (good | {"query": (ids.astype(np.float32), starts, w)}, "'query'.*integer"),
        (good | {"query": ids}, r"\(B, N\)"),
        (good | {"query": (ids,)}, "two or three"),
        (np.zeros((2, 40, 1), np.int64), r"\(F, B, N\)"),
    ]  # fmt: skip
    for given, message in wrong:
        with pytest.raises((se.ArgumentError, se.IndexRangeError), match=message):
            collection.update(grad, given)
    flats = [
        ((indices, offsets[:-1]), "offsets"),
        ((indices[:-1], offsets), "offsets"),
        ((indices, np.append(offsets, len(indices))), "F B"),
        ((indices.reshape(1, -1), offsets), r"\(L,\)"),
    ]
    for given, message in flats:
        with pytest.raises(se.ArgumentError, match=message):
            collection.update(grad, *given)
    for bad in (grad[:, 1:], grad[1:], grad.astype(np.float64), {"user": grad}):
        with pytest.raises(se.ArgumentError, match="grad"):
            collection.update(bad, good)
    infinite = grad.copy()
    infinite[3, 4] = np.inf
    with pytest.raises(se.ArgumentError, match="finite"):
        collection.update(infinite, good, check_finite=True)
    with pytest.raises(se.IndexRangeError, match="query"):
        collection.lookup(good | {"query": (np.full(len(ids), 2**63, np.uint64), starts, w)})
    other = collection_of(make_store())
    with pytest.raises(se.ArgumentError, match="own collection"):
        collection.update(grad, other.batch(good))
    with pytest.raises(se.ArgumentError, match="mapping"):
        collection.lookup(good, offsets)
    assert_same_stores(store, twin)


def test_wrong_collections():
    store = make_store()
    tables = dict(store.tables)
    bare = se.EmbeddingTable.create(None, num_embeddings=9, embedding_dim=2)
    wrong = [
        (({},), {}, "tables"),
        (([],), {}, "tables"),
        (({"a": 1},), {}, "tables"),
        ((store, {"a": "what"}), {}, "features"),
        ((store, {}), {}, "features"),
        (({**tables, "again": tables["users"]},), {}, "each table once"),
        ((store,), {"mode": "median"}, "mode"),
        ((store,), {"mode": {"users": "sum"}}, "mode"),
        ((store,), {"mode": {**MODES, "what": "sum"}}, "mode"),
        ((store,), {"padding_idx": 0.5}, "padding_idx"),
    ]
    for args, how, message in wrong:
        with pytest.raises(se.ArgumentError, match=message):
            se.EmbeddingBagCollection(*args, **how)
    collection = se.EmbeddingBagCollection({"bare": bare, **tables})
    with pytest.raises(se.ArgumentError, match="'bare' was created without"):
        collection.update(np.zeros((0, 30), np.float32), np.empty(0, np.int64), [0])
    with pytest.raises(se.ArgumentError, match="weights"):
        se.EmbeddingBagCollection({"bare": bare}, mode="max").lookup(
            [1], [0, 1], per_sample_weights=np.ones(1, np.float32)
        )


@pytest.mark.parametrize("stores", [1, 2])
def test_an_interrupted_step_fails_every_store(tmp_path, monkeypatch, stores):
    rng = np.random.default_rng(7)
    made = [make_store(tmp_path / str(i), seed=i) for i in range(stores)]
    tables = {f"{name}{i}": t for i, store in enumerate(made) for name, t in store.tables.items()}
    collection = se.EmbeddingBagCollection(tables)
    indices = rng.integers(0, 50, (len(tables), 30, 2))
    grad = grads(rng, collection, 30)
    collection.update(grad, indices)
    for store in made:
        store.commit()
    expected = collection.lookup(indices)
    calls = []
    update = ops_many.update

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(ops_many, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collection.update(grad, indices)
    with pytest.raises(se.StoreFailedError):
        collection.lookup(indices)
    for store in made:
        with pytest.raises(se.StoreFailedError):
            store.commit()
        store.rollback()
    assert_same_bits(collection.lookup(indices), expected)
    assert all(table.step == 1 for table in tables.values())
    collection.update(grad, indices)
    for store in made:
        store.close()


def test_narrow_tables_beside_float32():
    """bfloat16 rows, or state, are out of the batched kernels' reach: by their own, same bits."""
    rng = np.random.default_rng(10)
    kinds = [{"dtype": "bfloat16"}, {}, {"state_dtype": "bfloat16"}]
    made = []
    for _ in range(2):
        made.append({
            str(i): se.EmbeddingTable.create(
                None, num_embeddings=50, embedding_dim=8, optimizer=se.LazyAdam(0.1), **kind
            )
            for i, kind in enumerate(kinds)
        })  # fmt: skip
    collection = se.EmbeddingBagCollection(made[0])
    indices = rng.integers(0, 50, (3, 20, 2))
    for _ in range(2):
        grad = grads(rng, collection, 20)
        found = collection.lookup(indices)
        collection.update(grad, indices)
        for i, table in enumerate(made[1].values()):
            part = np.ascontiguousarray(grad[:, i * 8 : (i + 1) * 8])
            assert_same_bits(
                np.ascontiguousarray(found[:, i * 8 : (i + 1) * 8]),
                table.lookup(indices[i], mode="sum"),
            )
            table.update(part, indices[i], mode="sum")


@pytest.mark.parametrize("rows", [2**61, 2**62])
def test_row_numbers_beyond_a_word(rows):
    """2^61: key and position need two sorts; 2^62: the keys of all tables do not fit at all."""
    rng = np.random.default_rng(8)
    stores = []
    for _ in range(2):
        tables = {
            name: se.EmbeddingTable.create(
                None, num_embeddings=rows, embedding_dim=8, optimizer=se.LazyAdam(0.1), seed=i
            )
            for i, name in enumerate("ab")
        }
        stores.append(tables)
    collection = se.EmbeddingBagCollection(stores[0])
    indices = rng.integers(0, rows, (2, 20, 3))
    indices[:, 5:9] = indices[:, :4]
    indices[0, 0, 0] = rows - 1
    grad = grads(rng, collection, 20)
    for _ in range(2):
        found = collection.lookup(indices)
        collection.update(grad, indices)
        for i, table in enumerate(stores[1].values()):
            part = np.ascontiguousarray(grad[:, i * 8 : (i + 1) * 8])
            assert_same_bits(found[:, i * 8 : (i + 1) * 8], table.lookup(indices[i], mode="sum"))
            table.update(part, indices[i], mode="sum")


def test_create_and_what_it_says(tmp_path):
    rows = {"a": 10, "b": 20}
    made = se.EmbeddingBagCollection.create(
        tmp_path / "m", rows, {"a": 2, "b": 3}, features={"x": "b", "y": "a"}, optimizer=se.SGD(0.1)
    )
    assert made.embedding_dims == {"x": 3, "y": 2}
    assert made.output_dim == 5
    assert list(made.tables) == ["a", "b"]
    assert dict(made.features) == {"x": "b", "y": "a"}
    assert "2 features, 2 tables" in repr(made)
    assert made.tables["b"].seed == 1
    assert made.store.commit() == 1
    with pytest.raises(se.ArgumentError, match="mode"):
        se.EmbeddingBagCollection.create(tmp_path / "n", rows, 2, mode="no")
    assert not (tmp_path / "n").exists()
    made.store.close()
