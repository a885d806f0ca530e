"""state_dict refers, commit and resume hold all of it, copies of a module are readers."""

from __future__ import annotations

import io
import math
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import sparse_embed as se  # noqa: E402
from sparse_embed.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    commit,
    resume,
)

INPUT, OFFSETS = torch.tensor([1, 5, 5, 90]), torch.tensor([0, 3])


class Model(torch.nn.Module):
    def __init__(self, *tables, fused=True):
        super().__init__()
        self.bags = torch.nn.ModuleList(EmbeddingBag(t, mode="sum", fused=fused) for t in tables)
        self.head = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))

    def forward(self, input, offsets):
        return self.head(sum(bag(input, offsets) for bag in self.bags))


def make_store(path, names=("users", "items")):
    store = se.Store.create(path)
    for i, name in enumerate(names):
        store.create_table(
            name, num_embeddings=100, embedding_dim=8, optimizer=se.LazyAdam(0.1), seed=i
        )
    return store


def train(model, optimizer, steps=3):
    losses = []
    for k in range(steps):
        optimizer.zero_grad()
        loss = (model((INPUT * (k + 1)) % 100, OFFSETS) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def reload(file):
    """Anew each time: optimizers train on the tensors they are given."""
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_dict_is_a_reference(tmp_path):
    store = make_store(tmp_path / "s")
    model = Model(*store.tables.values())
    optimizer = adam(model)
    train(model, optimizer)
    with pytest.warns(UserWarning, match="commit first"):
        model.state_dict()
    store.commit()
    state = model.state_dict()
    assert state["bags.0._extra_state"]["commit"] == 1
    assert not any("anchor" in name for name in state)
    file = io.BytesIO()
    torch.save({"model": state, "optimizer": optimizer.state_dict()}, file)
    assert len(file.getvalue()) < 20_000
    expected = train(model, optimizer)
    store.commit()
    train(model, optimizer)

    # In place: the second commit and what came after it are undone.
    saved = reload(file)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert model.bags[0].table.step == 3
    assert model.bags[0].table._core is model.bags[1].table._core
    assert model.bags[1].table.name == "items"
    assert train(model, optimizer) == expected

    # Changes since the last commit are undone without opening anything.
    model.load_state_dict(saved["model"])
    table = model.bags[0].table
    train(model, optimizer)
    model.load_state_dict(saved["model"])
    assert model.bags[0].table is table
    assert table.step == 3
    table.close()

    # Into a fresh process's model, which knows nothing of the store.
    fresh = Model(*(EmbeddingBag(100, 8).table for _ in range(2)))
    fresh.load_state_dict(saved["model"])
    again = adam(fresh)
    again.load_state_dict(reload(file)["optimizer"])
    assert train(fresh, again) == expected
    fresh.bags[0].table.close()


def test_load_state_dict_refuses(tmp_path):
    module = EmbeddingBag(100, 8, path=tmp_path / "t")
    module.table.commit()
    state = module.state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        EmbeddingBag(100, 4).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight"):
        module.load_state_dict({**state, "weight": torch.zeros(1)})
    with pytest.raises(se.ArgumentError, match="in memory"):
        EmbeddingBag(100, 8).state_dict()
    state["_extra_state"]["path"] = str(tmp_path / "gone")
    with pytest.raises(se.NotAStoreError):
        module.load_state_dict(state)
    module.table.close()


def test_commit_and_resume(tmp_path):
    store = make_store(tmp_path / "s")
    model = Model(*store.tables.values())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    assert resume(model, optimizer=optimizer) is None
    train(model, optimizer)
    scheduler.step()
    extra = {
        "epoch": 3,
        "rng": torch.get_rng_state(),
        "best": math.inf,
        "numbers": np.random.default_rng(0).bit_generator.state,
        "mixed": [1, 2.5, None, True, "x", ("y", torch.ones(2, dtype=torch.bfloat16))],
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
    }
    number = commit(model, optimizer=optimizer, scheduler=scheduler, extra=extra)
    assert number == store.last_commit == 1
    assert "torch.model.head.1.weight" in store.arrays
    expected = train(model, optimizer)
    store.close()

    store = se.Store.open(tmp_path / "s")
    torch.manual_seed(99)
    model = Model(*store.tables.values())
    optimizer = torch.optim.Adam(model.parameters(), 7.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 9, 0.9)
    found = resume(model, optimizer=optimizer, scheduler=scheduler)["extra"]
    assert scheduler.step_size == 2
    mixed, wanted = found.pop("mixed"), extra.pop("mixed")
    assert mixed[:5] == wanted[:5]
    assert mixed[5][1].dtype == torch.bfloat16
    assert torch.equal(mixed[5][1], wanted[5][1])
    for name in ("rng", "scalar", "empty"):
        assert torch.equal(found[name], extra[name])
        assert found.pop(name).dtype == extra.pop(name).dtype
    assert found == extra
    assert train(model, optimizer) == expected
    commit(model, epoch=4)
    assert not any("optimizer" in name for name in store.arrays)
    with pytest.raises(se.ArgumentError, match="optimizer"):
        resume(model, optimizer=optimizer)
    with pytest.raises(se.ArgumentError, match=r"torch\.what"):
        commit(model, what=object())
    store.close()


def test_commit_needs_one_store(tmp_path):
    two = Model(*(EmbeddingBag(100, 8).table for _ in range(2)))
    with pytest.raises(se.ArgumentError, match="one store"):
        commit(two)
    with pytest.raises(se.ArgumentError, match="one store"):
        commit(torch.nn.Linear(2, 2))
    one = Model(EmbeddingBag(100, 8).table)
    handle = commit(one, wait=False)
    assert handle.wait() == 1


def test_pickle_is_a_reader(tmp_path):
    bag = EmbeddingBag(1000, 4, mode="sum", path=tmp_path / "t", padding_idx=3, max_norm=None)
    bag(INPUT, OFFSETS).sum().backward()
    bag.table.commit()
    expected = bag(INPUT, OFFSETS).detach()
    bag(INPUT, OFFSETS).sum().backward()
    data = pickle.dumps(bag)
    assert len(data) < 5000
    copy = pickle.loads(data)
    assert torch.equal(copy(INPUT, OFFSETS), expected)
    assert not copy(INPUT, OFFSETS).requires_grad
    with pytest.raises(se.ReadOnlyError):
        copy.table.assign([0], np.zeros((1, 4), np.float32))
    bag.table.commit()
    newer = pickle.loads(data)
    assert torch.equal(newer(INPUT, OFFSETS), bag(INPUT, OFFSETS))
    with pytest.raises(se.ArgumentError, match="memory"):
        pickle.dumps(Embedding(10, 4))
    copy.table.close()
    bag.table.close()


def test_to_and_from_torch():
    for plain in (
        torch.nn.EmbeddingBag(20, 4, 1.5, 1.0, mode="sum", include_last_offset=True, padding_idx=2),
        torch.nn.Embedding(20, 4, -1, 2.0, scale_grad_by_freq=True),
    ):
        kind = EmbeddingBag if isinstance(plain, torch.nn.EmbeddingBag) else Embedding
        ours = kind.from_torch(plain)
        back = ours.to_torch()
        assert torch.equal(back.weight, plain.weight)
        assert back.weight.requires_grad
        for name in plain.__constants__:
            if name != "sparse":
                assert getattr(back, name) == getattr(plain, name), name
        assert repr(ours).startswith(f"{kind.__name__}(20, 4, max_norm=")
        frozen = kind.from_pretrained(plain.weight.detach())
        assert not frozen.anchor.requires_grad
        assert not frozen.to_torch().weight.requires_grad


def test_collection(tmp_path):
    rows = {"user": 50, "item": 80}
    made = EmbeddingBagCollection.create(tmp_path / "m", rows, 4, optimizer=se.SGD(0.1))
    collection = EmbeddingBagCollection(
        dict(made.bags), {"user": "user", "item": "item", "bought": "item"}
    )
    plain = {name: bag.to_torch() for name, bag in made.bags.items()}
    values = {
        "user": (torch.tensor([1, 2]), torch.tensor([0, 1])),
        "item": (torch.tensor([7, 7, 8]), torch.tensor([0, 1]), torch.tensor([0.5, 1.0, 2.0])),
        "bought": torch.tensor([[7, 9], [3, 3]]),
    }

    class Jagged:
        """The methods of torchrec's JaggedTensor that are used."""

        def __init__(self, values, offsets=None, weights=None):
            if offsets is None:
                values, offsets = values.flatten(), torch.tensor([0, 2])
            self.parts = values, torch.cat([offsets, torch.tensor([len(values)])]), weights

        def values(self):
            return self.parts[0]

        def offsets(self):
            return self.parts[1]

        def weights_or_none(self):
            return self.parts[2]

    class KeyedJagged:
        """torchrec's KeyedJaggedTensor has no items(), but []."""

        def __getitem__(self, name):
            given = values[name]
            return Jagged(given) if isinstance(given, torch.Tensor) else Jagged(*given)

    found = collection(values)
    assert list(found) == ["user", "item", "bought"]
    jagged = collection(KeyedJagged())
    owner = {"user": "user", "item": "item", "bought": "item"}
    total = 0.0
    for name, given in values.items():
        given = (given,) if isinstance(given, torch.Tensor) else given
        expected = plain[owner[name]](*given)
        assert torch.allclose(found[name], expected, atol=1e-6)
        assert torch.equal(found[name], jagged[name])
        total = total + expected.square().sum()
    total.backward()
    sum(pooled.square().sum() for pooled in found.values()).backward()
    for name, bag in made.bags.items():
        assert bag.table.step == 1
        wanted = plain[name].weight.detach() - 0.1 * plain[name].weight.grad.to_dense()
        assert torch.allclose(bag.to_torch().weight, wanted, atol=1e-6)
    assert commit(collection) == 1
    with pytest.raises(se.ArgumentError, match="features"):
        EmbeddingBagCollection(dict(made.bags), {"x": "y"})
    made.bags["user"].table.close()
