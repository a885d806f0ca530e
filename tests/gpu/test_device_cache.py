"""Tables larger than their part of a GPU: index, clock, prefetch beside the work, scratch file."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.kernels.records import DIRTY, USED
from tests.cases import assert_same_bits

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("memory", "few_slots"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

ROWS, DIM, SLOTS = 70, 4, 16
ALL = np.arange(ROWS)


@pytest.fixture
def few_slots(monkeypatch):
    from sparse_embed.storage import device_index

    monkeypatch.setattr(device_index, "_SMALLEST", SLOTS)


def create(path, device, **more):
    given = {"optimizer": se.LazyAdam(0.01), "seed": 3, "num_embeddings": ROWS} | more
    cache = 1 if device == "cuda" else None
    return se.EmbeddingTable.create(
        path, embedding_dim=DIM, device=device, cache_bytes=cache, **given
    )


def check_index(table):
    """Slots, rows and index agree; whatever is not in use is free."""
    resident = table._table.rows.resident
    down = resident._memory.download
    owners, flags = down(resident._owners) - 1, down(resident.flags)
    used = np.flatnonzero(owners >= 0)
    assert len(set(owners[used])) == len(used)
    assert (flags[used] & USED).all()
    assert not flags[owners < 0].any()
    assert resident.find(owners[used]).tolist() == used.tolist()
    absent = np.setdiff1d(ALL, owners[used])
    assert (resident.find(absent) == -1).all()
    free = [*resident._spare.tolist(), *range(resident._high, SLOTS)]
    assert sorted([*free, *used.tolist()]) == list(range(SLOTS))
    assert resident.flagged(DIRTY).tolist() == np.flatnonzero(flags & DIRTY).tolist()


def batches(count, rng, size=9):
    """Row numbers, low ones often."""
    return [np.minimum(rng.zipf(1.3, size) - 1, ROWS - 1) for _ in range(count)]


@pytest.mark.parametrize("path", [None, "table"])
def test_the_bits_of_the_cpu_whatever_comes_and_goes(tmp_path, path, memory):
    rng = np.random.default_rng(2)
    where = {d: None if path is None else tmp_path / d for d in ("cpu", "cuda")}
    tables = {device: create(where[device], device) for device in where}
    ours, theirs = tables["cuda"], tables["cpu"]
    assert ours.info()["resident"] == "indexed"
    assert ours.info()["resident_capacity"] == SLOTS
    todo = [*batches(5, rng), rng.permutation(ROWS)[:30], *batches(1, rng)]
    for step, rows in enumerate(todo):
        coming = todo[(step + 1) % len(todo)]
        found = np.asarray(ours.lookup(rows))
        # Beside the batch in hand, which keeps its slots.
        ours.prefetch(coming if step % 2 else memory.upload(coming))
        if step != 5:
            assert (ours._table.rows.resident.find(rows) >= 0).all()
        assert_same_bits(found, theirs.lookup(rows))
        grad = rng.standard_normal((len(rows), DIM)).astype(np.float32)
        for table in tables.values():
            table.update(grad, rows)
            if step == 3 and path is not None:
                table.commit()
        check_index(ours)
    if path is not None:
        assert ours._table.rows._scratch.count > 0
        for table in tables.values():
            table.rollback()
        check_index(ours)
        assert ours._table.rows.resident.limit == 0
    for step, rows in enumerate(batches(2, rng)):
        for table in tables.values():
            table.reset(np.unique(rows[:2]))
            table.assign([5, 60 + step], np.eye(2, DIM, dtype=np.float32))
    check_index(ours)
    assert ours.trained_indices().tolist() == theirs.trained_indices().tolist()
    state = theirs.state(ALL)
    for name, values in ours.state(ALL).items():
        assert_same_bits(values, state[name])
    if path is None:
        assert_same_bits(np.asarray(ours.lookup(ALL)), theirs.lookup(ALL))
        return
    for table in tables.values():
        table.commit()
        table.close()
    with se.EmbeddingTable.open(tmp_path / "cuda") as a, se.EmbeddingTable.open(where["cpu"]) as b:
        assert_same_bits(a.lookup(ALL), b.lookup(ALL))


def test_second_chance(memory):
    """Rows used since the hand passed stay; the others go in the order of their slots."""
    table = create(None, "cuda")
    resident = table._table.rows.resident
    table.lookup(np.arange(SLOTS))
    first = resident.rows_of(np.arange(SLOTS)).tolist()
    assert sorted(first) == list(range(SLOTS))
    table.lookup([20, 21])  # everything was used: all are passed, then the first two leave
    assert (resident.find(np.array(first[:2])) == -1).all()
    table.lookup([first[3], first[4]])
    table.lookup([30, 31])
    assert resident.find(np.array([first[2], first[5]])).tolist() == [-1, -1]
    assert (resident.find(np.array([first[3], first[4], first[6], 20, 21])) >= 0).all()
    check_index(table)


def test_a_disk_that_cannot_be_read_changes_nothing(tmp_path, monkeypatch):
    with create(tmp_path / "table", "cpu") as table:
        table.assign(ALL, np.random.default_rng(0).random((ROWS, DIM), np.float32))
        expected = table.lookup(ALL)
    with se.EmbeddingTable.open(tmp_path / "table", device="cuda", cache_bytes=1) as table:
        resident = table._table.rows.resident
        table.lookup(np.arange(10))

        def broken(rows, out):
            raise OSError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(resident, "_fetch", broken)
            for _ in range(2):
                with pytest.raises(OSError, match="the disk is gone"):
                    table.lookup(np.arange(20, 32))
            with pytest.raises(OSError, match="the disk is gone"):
                table.prefetch(np.arange(40, 45))
        check_index(table)
        assert_same_bits(np.asarray(table.lookup(np.arange(20, 32))), expected[20:32])
        check_index(table)


def test_no_room_for_the_index_names_it(monkeypatch):
    from sparse_embed.device import DeviceMemory
    from sparse_embed.errors import DeviceMemoryError

    plain = DeviceMemory.empty

    def full(self, shape, dtype, what="a batch"):
        if "index" in what:
            raise DeviceMemoryError(f"{self.name}: 9 bytes for {what} do not fit; 1 of 8 are free")
        return plain(self, shape, dtype, what)

    monkeypatch.setattr(DeviceMemory, "empty", full)
    with pytest.raises(DeviceMemoryError, match="for the index of resident rows do not fit"):
        create(None, "cuda")


def test_stores_of_two_threads_share_the_staging(memory):
    """Each has its table; what one brings in is not the other's."""
    if memory.simulated:
        pytest.skip("the simulator takes one thread at a time")
    rng = np.random.default_rng(4)
    values = rng.random((2, ROWS, DIM), np.float32)
    found: list[bool] = []

    def work(which):
        table = create(None, "cuda", optimizer=se.SGD(0.1))
        for begin in range(0, ROWS, 10):
            table.assign(ALL[begin : begin + 10], values[which, begin : begin + 10])
        rows = np.random.default_rng(which).permutation(ROWS)[:12]
        table.prefetch(rows)
        found.append(np.array_equal(np.asarray(table.lookup(rows)), values[which, rows]))

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, True]
