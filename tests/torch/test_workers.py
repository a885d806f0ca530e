"""DataLoader workers: a forked one is refused by the store, a spawned one gets a reader."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import sparse_embed as se  # noqa: E402
from sparse_embed.torch import EmbeddingBag  # noqa: E402


class Rows(torch.utils.data.Dataset):
    """Looks up in the worker."""

    def __init__(self, bag):
        self.bag = bag

    def __len__(self):
        return 8

    def __getitem__(self, k):
        with torch.no_grad():
            return self.bag(torch.arange(3000)[None] % (k + 2))[0]


class Refused(Rows):
    def __getitem__(self, k):
        try:
            super().__getitem__(k)
        except se.SparseEmbedError as error:
            return str(error)
        return "looked up"


def loader(dataset, start):
    context = torch.multiprocessing.get_context(start)
    return torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=2, multiprocessing_context=context, timeout=120
    )


@pytest.fixture
def bag(tmp_path):
    module = EmbeddingBag(100, 4, mode="mean", path=tmp_path / "t", optimizer=se.SGD(0.5))
    module(torch.arange(100)[None]).sum().backward()
    module.table.commit()
    yield module
    module.table.close()


def test_spawned_workers_read(bag):
    for start in ("spawn", "forkserver"):
        found = torch.cat(list(loader(Rows(bag), start)))
        expected = torch.stack([Rows(bag)[k] for k in range(8)])
        assert torch.equal(found, expected)
    bag(torch.arange(100)[None]).sum().backward()  # the trainer goes on
    assert bag.table.step == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_workers_are_refused(bag):
    """The parent has run kernels, so its threads are up: the worst case of a fork."""
    bag.table.lookup(np.zeros(100_000, np.int64))
    for batch in loader(Refused(bag), "fork"):
        assert all("forked" in message for message in batch)
    bag(torch.arange(100)[None]).sum().backward()
    assert bag.table.step == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_workers_of_a_table_in_memory():
    """Memory is copied on write: a worker looks up in its copy (TBB), or is refused (OpenMP)."""
    module = EmbeddingBag(100, 4, mode="mean")
    module(torch.arange(100)[None]).sum().backward()
    for batch in loader(Refused(module), "fork"):
        assert all(m == "looked up" or "OpenMP" in m for m in batch)
