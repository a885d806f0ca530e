"""Rows beyond the cache: the scratch file, the row map, the page map, through commits."""

from __future__ import annotations

import errno

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.kernels.records import DIRTY, INFLIGHT
from sparse_embed.storage import files
from sparse_embed.storage import scratch as scratch_file
from sparse_embed.storage.budget import Budget
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.host_tier import HostTier
from sparse_embed.storage.layout import Layout
from sparse_embed.storage.places import Places
from sparse_embed.storage.rowmap import RowMap
from sparse_embed.storage.scratch import Scratch
from tests.crash.workload import FEW_SLOTS, Twin, create, open_store, picture, step
from tests.storage.injected import FULL, always


def test_row_map_against_a_dict():
    rng = np.random.default_rng(0)
    budget = Budget(0)
    table = RowMap(budget)
    expected: dict[int, int] = {}
    for _ in range(60):
        keys = rng.choice(4000, rng.integers(0, 300), replace=False).astype(np.int64)
        values = rng.integers(0, 2**62, keys.size)
        if rng.random() < 0.6:
            table.insert(keys, values)
            expected.update(zip(keys.tolist(), values.tolist(), strict=True))
        else:
            table.erase(keys)
            for key in keys.tolist():
                expected.pop(key, None)
        assert table.count == len(expected)
        assert budget.used == table.nbytes
        some = rng.integers(0, 4000, 500)
        assert table.find(some).tolist() == [expected.get(k, -1) for k in some.tolist()]
        found = dict(zip(*(a.tolist() for a in table.items()), strict=True))
        assert found == expected
    table.release()
    assert budget.used == 0


def test_places_against_a_dict():
    """A map while few rows are in it, an array while many are, and back."""
    rng = np.random.default_rng(0)
    budget = Budget(0)
    places = Places(4000, budget)
    expected: dict[int, int] = {}
    kinds = set()
    for n in range(40):
        rows = rng.choice(4000, rng.integers(0, 300), replace=False).astype(np.int64)
        values = rng.integers(n * 1000, (n + 1) * 1000, rows.size)
        places.insert(rows, values)
        expected.update(zip(rows.tolist(), values.tolist(), strict=True))
        if n % 8 in (6, 7):  # like segments that are folded: some of it, then all
            limit = 1000 * (n - 2 if n % 8 == 6 else n + 1)
            places.drop(lambda at, limit=limit: (at >= 0) & (at < limit))
            expected = {row: at for row, at in expected.items() if at >= limit}
        kinds.add(budget.used >= 8 * 4000)
        assert places.count == len(expected)
        some = rng.integers(0, 4000, 500)
        assert places.find(some).tolist() == [expected.get(k, -1) for k in some.tolist()]
        assert dict(zip(*(a.tolist() for a in places.items()), strict=True)) == expected
    assert kinds == {True, False}
    places.release()
    assert budget.used == 0


def test_row_map_counts_again_after_an_interrupt(monkeypatch):
    table = RowMap(Budget(0))
    table.insert(np.arange(10), np.arange(10))

    class Interrupting:
        def __radd__(self, other):
            raise KeyboardInterrupt

        def __int__(self):
            raise KeyboardInterrupt

    from sparse_embed.kernels import rowmap as kernels

    insert = kernels.insert_cpu()
    monkeypatch.setattr(kernels, "insert_cpu", lambda: lambda *a: (insert(*a), Interrupting())[1])
    with pytest.raises(KeyboardInterrupt):
        table.insert(np.arange(5, 20), np.arange(15))
    monkeypatch.undo()
    assert table.count == 20
    assert sorted(table.items()[0].tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("kind", "nbytes"), [(Scratch, 1 << 20), (HostTier, 1 << 20), (HostTier, 12_000)]
)
@pytest.mark.parametrize("segment", [1, 32 * 7, 1 << 20])
def test_scratch_holds_what_was_written_last(tmp_path, monkeypatch, kind, nbytes, segment):
    """A random life against a dictionary; the file is at most twice its rows and some segments."""
    monkeypatch.setattr(scratch_file, "_SEGMENT_BYTES", segment)
    budget = Budget(nbytes)
    scratch = kind(tmp_path, 32, budget)
    rng = np.random.default_rng(1)
    held: dict[int, tuple[np.ndarray, int]] = {}
    most = 0
    for n in range(120):
        rows = rng.choice(300, 60, replace=False).astype(np.int64)
        new = np.array([r for r in rows if r not in held], np.int64)
        data = rng.standard_normal((new.size, 8)).astype(np.float32)
        flags = rng.choice(np.array([DIRTY, INFLIGHT, DIRTY | INFLIGHT], np.uint8), new.size)
        scratch.admit(new, scratch.write(new, data, flags), flags)
        held.update(zip(new.tolist(), zip(data, flags.tolist(), strict=True), strict=True))
        most = max(most, len(held))
        back = np.array(sorted(held)[:: 3 if n % 2 else 2], np.int64)
        slots = scratch.find(back)
        assert (slots >= 0).all()
        out = np.empty((back.size, 8), np.float32)
        scratch.read(slots, out)
        assert all(np.array_equal(out[i], held[r][0]) for i, r in enumerate(back.tolist()))
        assert scratch.flags(slots).tolist() == [held[r][1] for r in back.tolist()]
        scratch.remove(back, slots)
        for row in back.tolist():
            del held[row]
        assert scratch.count == len(held)
        rows, slots = scratch.dirty()
        assert sorted(rows.tolist()) == sorted(r for r, (_, f) in held.items() if f & DIRTY)
        assert np.array_equal(scratch.find(rows), slots)
        assert not scratch.busy
    per = max(1, segment // 32)
    assert scratch.nbytes <= 32 * per * (3 + 2 * -(-(most + 60) // per) + 60 // per + 4)
    if kind is HostTier:
        assert (scratch.nbytes == 0) == (nbytes == 1 << 20)
    assert list(tmp_path.iterdir()) == []
    scratch.settle(True)  # what was in the frame leaves, unless it changed again
    assert scratch.count == sum(f & DIRTY > 0 for _, f in held.values())
    scratch.release()
    assert budget.used == 0


def test_a_stale_scratch_file_is_written_again(tmp_path, monkeypatch):
    """Rows that come and go at random leave holes: the log goes back to them by whole segments."""
    monkeypatch.setattr(scratch_file, "_SEGMENT_BYTES", 64 * 32)
    scratch = Scratch(tmp_path, 32, Budget(0))
    rng = np.random.default_rng(2)
    calls: list[int] = []

    def count(fd, offsets, data):
        calls.append(1 + int(np.count_nonzero(np.diff(offsets) != 32)))
        return plain(fd, offsets, data)

    plain = files.CALLS.pwrite_records
    out = np.arange(5000, dtype=np.int64)
    flags = np.full(5000, DIRTY)
    scratch.admit(out, scratch.write(out, np.zeros((5000, 8), np.float32), flags), flags)
    monkeypatch.setattr(files.CALLS, "pwrite_records", count)
    for _ in range(100):
        rows = rng.choice(5000, 500, replace=False)
        scratch.remove(rows, scratch.find(rows))
        new = np.zeros((500, 8), np.float32)
        scratch.admit(rows, scratch.write(rows, new, flags[:500]), flags[:500])
    assert scratch.nbytes <= 2 * 5500 * 32 + 24 * 64 * 32
    assert sum(calls) < 100 * 500 / 20  # runs: a write holds dozens of records


def test_rows_that_files_have_leave_the_host_for_those_they_have_not(tmp_path):
    tier = HostTier(tmp_path, 1024, Budget(160 * 1024))
    data = np.random.default_rng(0).random((60, 256), np.float32)
    rows = np.arange(60)
    assert tier.has_room(60)
    tier.admit(rows, tier.write(rows, data, np.zeros(60, np.uint8)), np.zeros(60, np.uint8))
    while tier.has_room(20) and tier.find(rows)[0] >= 0:
        new = rows[:20] + 100 * (1 + tier.count)
        flags = np.full(20, DIRTY)
        tier.admit(new, tier.write(new, data[:20], flags), flags)
    assert (tier.find(rows) == -1).all()
    assert (tier.find(new) >= 0).all()
    assert tier.nbytes == 0
    assert tier.dirty()[0].size == tier.count


def test_page_map_never_calls_data_a_hole(tmp_path):
    directory = files.Directory(tmp_path)
    layout = Layout(200_000, 5, (("weight", 5),))
    file = DataFile.create(directory, "t.npy", layout)
    rng = np.random.default_rng(2)
    rows = np.sort(rng.choice(200_000, 500, replace=False))
    data = rng.standard_normal((500, layout.lanes)).astype(np.float32)
    at, code = files.CALLS.pwrite_records(file.fd, file.offsets(rows), data.view(np.uint8))
    assert (at, code) == (-1, 0)
    file.pages.mark(file.offsets(rows), layout.record_bytes)
    again = DataFile.open(directory, "t.npy", layout, writable=False)
    for one in (file, again):
        assert one.maybe_stored(rows).all()
        assert not one.maybe_stored(np.arange(200_000)).all()
        out = np.empty((500, layout.lanes), np.float32)
        one.read(rows, out)
        assert np.array_equal(out, data)
        assert np.array_equal(one.written(), rows)
        one.close()
    directory.close()


def test_records_longer_than_a_page(tmp_path):
    with se.EmbeddingTable.create(
        tmp_path / "m", num_embeddings=500, embedding_dim=2500, cache_bytes=1
    ) as table:
        rng = np.random.default_rng(3)
        expected = table.lookup(np.arange(500))
        for _ in range(4):
            rows = rng.choice(500, 60, replace=False)
            expected[rows] = rng.standard_normal((60, 2500)).astype(np.float32)
            table.assign(rows, expected[rows])
            table.commit()
        table.checkpoint()
        table.assign([7], expected[[8]])
        expected[7] = expected[8]
    with se.EmbeddingTable.open(tmp_path / "m", cache_bytes=1) as table:
        assert np.array_equal(table.lookup(np.arange(500)), expected)


def test_spilled_rows_through_commits_rollbacks_and_checkpoints(tmp_path):
    """A long random life of a store whose table does not fit, against a twin that does."""
    twin, rng = Twin(), np.random.default_rng(4)
    store = create(tmp_path / "m")
    assert store.info()["tables"]["users"]["resident"] == "indexed"
    assert store.info()["tables"]["items"]["resident"] == "identity"
    now = committed = spilled = 0
    for _ in range(150):
        what = rng.integers(0, 10)
        if what < 4:
            now += 1
            step(store, now)
            spilled = max(spilled, store.info()["tables"]["users"]["spilled_bytes"])
        elif what < 7:
            store.commit(wait=bool(what % 2))
            committed = now
        elif what == 7:
            store.rollback()
            now = committed
        elif what == 8:
            store.checkpoint()
        else:
            store.close(checkpoint=bool(rng.integers(0, 2)))
            store = open_store(tmp_path / "m")
            now = committed
        assert picture(store) == twin.picture(now)
    assert spilled > 0
    store.close()


def test_a_full_disk_while_spilling_changes_nothing(tmp_path, inject):
    twin = Twin()
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    calls = inject(always(FULL, "pwrite_records"))
    rows = np.arange(700)
    with pytest.raises(se.SparseEmbedError) as caught:  # noqa: PT012
        for n in range(50):
            store.tables["users"].update(np.ones((40, 4), np.float32), rows[n * 13 : n * 13 + 40])
    assert isinstance(caught.value, OSError) and caught.value.errno == errno.ENOSPC
    assert "scratch" in str(caught.value)
    calls.stop()
    store.rollback()
    assert picture(store) == twin.picture(1)
    step(store, 2)
    store.commit()
    assert picture(store) == twin.picture(2)
    store.close()


def test_a_full_disk_in_a_lookup_fails_nothing(tmp_path, inject):
    store = create(tmp_path / "m")
    table = store.tables["users"]
    table.update(np.ones((40, 4), np.float32), np.arange(40))
    before = table.lookup(np.arange(40))
    calls = inject(always(FULL, "pwrite_records"))
    with pytest.raises(se.StoreError, match="scratch"):
        table.lookup(np.arange(100, 140))
    assert np.array_equal(table.lookup(np.arange(40)), before)  # and it is not failed
    store.commit()
    assert table.lookup(np.arange(100, 140)).shape == (40, 4)
    assert np.array_equal(table.lookup(np.arange(40)), before)
    calls.stop()
    store.close()


def test_rows_of_one_batch_leave_before_those_of_two(tmp_path):
    """However often a batch asks for them: a training step looks its rows up and then updates."""
    with se.EmbeddingTable.create(
        tmp_path / "m", num_embeddings=10_000, embedding_dim=4, optimizer=se.SGD(0.1), cache_bytes=1
    ) as table:
        resident = table._table.rows.resident
        wanted = np.arange(12)
        for n in range(7):
            new = np.arange(1000 + 8 * n, 1008 + 8 * n)
            rows = np.concatenate([wanted, new]) if n < 2 else new
            table.update(table.lookup(rows), rows)
        assert resident.count == resident.capacity == FEW_SLOTS
        assert (resident.find(wanted) >= 0).all()
