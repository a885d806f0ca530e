"""The torch collection in one call against the same bags one by one, in all its uses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.utils import clip_grad_norm_  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import sparse_embed as se  # noqa: E402
from sparse_embed.torch import EmbeddingBag, EmbeddingBagCollection, commit, follow  # noqa: E402
from sparse_embed.torch.many import Many, Together  # noqa: E402

DIM, SIZE = 4, 12
ROWS = {"user": 40, "item": 30, "tag": 9}
SHARED = {"user": "user", "item": "item", "tag": "tag", "bought": "item"}


def make(features=None, *, mode="sum", fused=True, path=None, **bag):
    store = se.Store.create(path)
    bags = {}
    for i, (name, rows) in enumerate(ROWS.items()):
        table = store.create_table(
            name, num_embeddings=rows, embedding_dim=DIM, optimizer=se.SGD(0.1), seed=i
        )
        bags[name] = EmbeddingBag(table, mode=mode, fused=fused, **bag)
    return EmbeddingBagCollection(bags, features)


def one_by_one(collection):
    """The same collection, which takes its features bag by bag."""
    collection._together = lambda features: None
    return collection


def batch(seed=0, features=ROWS, weighted=False, ragged=True):
    rng = np.random.default_rng(seed)
    given = {}
    for name in features:
        rows = ROWS[SHARED[name]]
        if not ragged:
            given[name] = torch.from_numpy(rng.integers(0, rows, (SIZE, 3)))
            continue
        lengths = rng.integers(0, 4, SIZE)
        ids = torch.from_numpy(rng.integers(0, rows, lengths.sum()))
        offsets = torch.from_numpy(np.cumsum(lengths) - lengths)
        given[name] = ids, offsets
        if weighted:
            weights = torch.from_numpy(rng.random(len(ids), np.float32))
            given[name] = ids, offsets, weights.requires_grad_()
    return given


def loss_of(bags, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.stack(list(bags.values()), 1)
    goal = torch.randn(mixed.shape, generator=generator)
    return (mixed.tanh() - goal).square().sum()


def rows_of(collection):
    return {name: bag.table.lookup(np.arange(ROWS[name])) for name, bag in collection.bags.items()}


def assert_same(found, expected, exact=True):
    for name, rows in rows_of(found).items():
        other = rows_of(expected)[name]
        if exact:
            assert np.array_equal(rows.view(np.uint32), other.view(np.uint32)), name
        else:  # a shared table adds the positions of its features in another order
            np.testing.assert_allclose(rows, other, atol=1e-5)
        assert found.bags[name].table.step == expected.bags[name].table.step


@pytest.fixture
def trained(monkeypatch):
    """How many tables each batched step trained."""
    seen = []
    train = Together.train

    def spy(self):
        seen.append(len(self.ready))
        train(self)

    monkeypatch.setattr(Together, "train", spy)
    return seen


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("ragged", [True, False])
def test_the_bits_of_bag_by_bag(mode, ragged, trained):
    together, alone = make(mode=mode), one_by_one(make(mode=mode))
    for seed in range(3):
        given = batch(seed, ragged=ragged)
        found, expected = together(given), alone(given)
        for name in ROWS:
            assert torch.equal(found[name], expected[name])
        loss_of(found).backward()
        loss_of(expected).backward()
    assert_same(together, alone)
    assert trained == ([0] * 3 if mode == "max" else [3] * 3)
    assert all(bag.anchor.grad is None for bag in together.bags.values())


def test_features_that_share_a_bag_are_one_batch(trained):
    together, alone = make(SHARED), one_by_one(make(SHARED))
    for seed in range(3):
        given = batch(seed, SHARED)
        found = together(given)
        loss_of(found).backward()
        loss_of(alone(given)).backward()
    assert list(found) == list(SHARED)
    assert_same(together, alone, exact=False)
    assert trained == [3] * 3
    # exactly: as one batch of the table, one feature behind the other
    given = batch(9, SHARED)
    found = together(given)
    for pooled in found.values():
        pooled.retain_grad()
    twin = make()
    for name, rows in rows_of(together).items():
        twin.bags[name].table.assign(np.arange(ROWS[name]), rows)
    loss_of(found).backward()
    ids = np.concatenate([given[name][0].numpy() for name in ("item", "bought")])
    offsets = np.concatenate(
        [given["item"][1].numpy(), given["bought"][1].numpy() + len(given["item"][0])]
    )
    grad = np.concatenate([found[name].grad.numpy() for name in ("item", "bought")])
    table = twin.bags["item"].table
    table.update(grad, ids, offsets, mode="sum", include_last_offset=False)
    assert np.array_equal(table.lookup(np.arange(30)), rows_of(together)["item"])


def test_gradients_of_weights():
    together, alone = make(SHARED), one_by_one(make(SHARED))
    given, again = batch(1, SHARED, weighted=True), batch(1, SHARED, weighted=True)
    again["tag"] = again["tag"][:2]
    given["tag"] = given["tag"][:2]
    given["user"][2].requires_grad_(False)
    loss_of(together(given)).backward()
    loss_of(alone(again)).backward()
    assert given["user"][2].grad is None
    for name in ("item", "bought"):
        assert torch.allclose(given[name][2].grad, again[name][2].grad, atol=1e-5)
    assert_same(together, alone, exact=False)


def test_unused_features_and_frozen_tables(trained):
    """A feature that the loss does not use gives its table no step; of a shared one only the rows
    of the used feature move."""
    together, alone = make(SHARED), one_by_one(make(SHARED))
    for collection in (together, alone):
        bags = collection(batch(0, SHARED))
        (bags["user"].square().sum() + bags["bought"].square().sum()).backward()
        assert collection.bags["tag"].table.step == 0
        collection.bags["user"].requires_grad_(False)
        loss_of(collection(batch(1, SHARED))).backward()
        collection.eval()
        assert not loss_of(collection(batch(1, SHARED))).requires_grad
        collection.train()
        with torch.no_grad():
            assert not collection(batch(1, SHARED))["user"].requires_grad
        assert collection.bags["user"].table.step == 1
        assert collection.bags["item"].table.step == 2
    assert_same(together, alone, exact=False)
    assert trained == [1, 2]


def test_several_uses_are_one_step(trained):
    """The collection twice and one of its bags alone, in one backward."""
    together, alone = make(), one_by_one(make())
    for collection in (together, alone):
        first, second = collection(batch(0)), collection(batch(1))
        loss = loss_of(first) + loss_of(second)
        (loss + collection.bags["tag"](*batch(2)["tag"]).sum()).backward()
        assert [bag.table.step for bag in collection.bags.values()] == [1, 1, 1]
    assert_same(together, alone, exact=False)
    for collection in (together, alone):
        loss = loss_of(collection(batch(3)))
        (loss + collection.bags["tag"](*batch(2)["tag"]).sum()).backward()
    assert_same(together, alone, exact=False)
    assert trained == [0, 0, 2]


def test_kept_gradients_clipping_and_steps():
    together, alone = make(SHARED, fused=False), one_by_one(make(SHARED, fused=False))
    for collection in (together, alone):
        optimizer = torch.optim.SGD(collection.parameters(), 0.1)
        follow(optimizer, collection)
        for step in range(3):
            for half in range(2):
                loss_of(collection(batch(2 * step + half, SHARED))).backward()
            assert clip_grad_norm_(collection.parameters(), 0.5) > 0.5
            optimizer.step()
            optimizer.zero_grad()
        assert [bag.table.step for bag in collection.bags.values()] == [3, 3, 3]
    assert_same(together, alone, exact=False)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    together, alone = make(fused=not reentrant), one_by_one(make(fused=not reentrant))
    given = batch(0)
    for collection in (together, alone):
        start = torch.zeros(SIZE, DIM, requires_grad=True)

        def block(shift, collection=collection):
            return sum(collection(given).values()).tanh() + shift

        for _ in range(2):
            start = checkpoint(block, start, use_reentrant=reentrant)
        start.square().sum().backward()
        if reentrant:
            for bag in collection.bags.values():
                assert bag.step()
        assert [bag.table.step for bag in collection.bags.values()] == [1, 1, 1]
    assert_same(together, alone, exact=False)


def test_compiled():
    torch._dynamo.reset()
    compiled, eager = make(SHARED), make(SHARED)

    def loss(collection, given):
        return torch.stack(list(collection(given).values()), 1).tanh().square().sum()

    run = torch.compile(lambda given: loss(compiled, given), backend="eager", fullgraph=True)
    for seed in range(2):
        run(batch(seed, SHARED)).backward()
        loss(eager, batch(seed, SHARED)).backward()
    assert_same(compiled, eager, exact=False)


class KeyedJagged:
    """The methods of torchrec's KeyedJaggedTensor that are used."""

    def __init__(self, given, names):
        parts = [given[name] for name in names]
        lengths = [torch.diff(o, append=torch.tensor([len(i)])) for i, o, *_ in parts]
        self._names, self._values = list(names), torch.cat([part[0] for part in parts])
        self._offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lengths).cumsum(0)])
        weights = [part[2] for part in parts if len(part) > 2]
        self._weights = torch.cat(weights) if weights else None

    def keys(self):
        return self._names

    def values(self):
        return self._values

    def offsets(self):
        return self._offsets

    def weights_or_none(self):
        return self._weights

    def __getitem__(self, name):
        f = self._names.index(name)
        offsets = self._offsets[f * SIZE : (f + 1) * SIZE + 1]
        part = slice(int(offsets[0]), int(offsets[-1]))
        weights = None if self._weights is None else self._weights[part]
        found = object.__new__(KeyedJagged)
        found._values, found._offsets, found._weights = (
            self._values[part],
            offsets - offsets[0],
            weights,
        )
        return found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", [list(SHARED), list(reversed(SHARED))])
def test_keyed_jagged_tensor(weighted, order, monkeypatch):
    together, alone = make(SHARED), make(SHARED)
    given, again = batch(0, SHARED, weighted), batch(0, SHARED, weighted)
    jagged = KeyedJagged(given, order)
    found, expected = together(jagged), alone(again)
    for name in SHARED:
        assert torch.equal(found[name], expected[name])
    loss_of(found).backward()
    loss_of(expected).backward()
    assert_same(together, alone)
    for name in SHARED if weighted else ():
        assert torch.allclose(given[name][2].grad, again[name][2].grad, atol=1e-6)


def test_what_one_call_cannot_take_goes_bag_by_bag(monkeypatch):
    monkeypatch.setattr(Many, "__call__", None)  # not to be called
    torch.manual_seed(0)
    for collection in (
        make(max_norm=0.5),
        EmbeddingBagCollection({"a": (bag := make().bags["user"]), "b": EmbeddingBag(bag.table)}),
    ):
        given = {name: torch.randint(0, 9, (SIZE, 2)) for name in collection.features}
        loss_of(collection(given)).backward()
        assert all(bag.table.step == 1 for bag in collection.bags.values())
    uneven = batch(0, ragged=False)
    uneven["tag"] = uneven["tag"][:5]
    assert make()(uneven)["tag"].shape == (5, DIM)


def test_scaled_by_frequency():
    together, alone = make(scale_grad_by_freq=True), one_by_one(make(scale_grad_by_freq=True))
    for collection in (together, alone):
        loss_of(collection(batch(0))).backward()
    assert_same(together, alone)


def test_errors_are_the_bags_own():
    collection = make()
    given = batch(0)
    ids, offsets = given["tag"]
    wrong = [
        ((ids + 9, offsets), IndexError, "out of range"),
        ((ids.float(), offsets), se.ArgumentError, "int32 or int64"),
        ((ids, offsets.float()), se.ArgumentError, "offsets"),
        ((ids, offsets + 1), se.ArgumentError, "offsets"),
        ((ids, offsets.flip(0)), se.ArgumentError, "offsets"),
        ((ids, None), se.ArgumentError, "offsets"),
        ((ids, offsets, ids), se.ArgumentError, "float32"),
    ]
    for tag, kind, message in wrong:
        with pytest.raises(kind, match=message):
            collection(given | {"tag": tag})
    with pytest.raises(KeyError):
        collection({"user": given["user"]})
    assert all(bag.table.step == 0 for bag in collection.bags.values())


def test_changed_in_place_is_refused():
    collection = make()
    given = batch(0)
    loss = loss_of(collection(given))
    given["tag"][0].zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
    assert all(bag.table.step == 0 for bag in collection.bags.values())
    weighted = batch(0, weighted=True)
    early = loss_of(collection(weighted))
    loss_of(collection(given)).backward()
    with pytest.raises(se.ArgumentError, match="1 steps since this forward"):
        early.backward()


def test_tables_that_moved_and_pickles(tmp_path):
    collection = make(path=tmp_path / "m")
    loss_of(collection(batch(0))).backward()
    assert commit(collection) == 1
    rows, state = rows_of(collection), collection.state_dict()
    loss_of(collection(batch(1))).backward()
    commit(collection)
    copy = pickle.loads(pickle.dumps(collection))
    assert torch.equal(copy(batch(0))["tag"], collection(batch(0))["tag"])
    copy.bags["tag"].table.close()
    collection.load_state_dict(state)
    for name, expected in rows.items():
        assert np.array_equal(rows_of(collection)[name], expected)
    loss_of(collection(batch(2))).backward()
    assert collection.bags["tag"].table.step == 2
    collection.bags["tag"].table.close()
