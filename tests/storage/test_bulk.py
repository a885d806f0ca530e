"""Checkpoints in large transfers: the bytes of moving records one by one."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import bulk, checkpoint, files
from sparse_embed.storage.bulk import Bulk
from tests.crash.workload import SMALL_MACHINE, create, open_store, picture, step, twin
from tests.storage.injected import FULL, always


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for owner, attribute, value in SMALL_MACHINE:
        monkeypatch.setattr(owner, attribute, value)


def a_file(tmp_path, dim, rows=3000):
    table = se.EmbeddingTable.create(tmp_path / "t", num_embeddings=rows, embedding_dim=dim)
    return table, table._core.tables["rows"].rows.file


def records(rng, n, file):
    return rng.standard_normal((n, file.layout.lanes)).astype(np.float32)


def putting(data):
    """What `Bulk.write` asks for the records."""

    def put(part, words, places):
        for record, at in zip(data[part], places, strict=True):
            words[at : at + record.size] = record

    return put


def read(mover, file, asked, out):
    size, lanes = file.layout.record_bytes, file.layout.lanes
    to = np.arange(asked.size) * lanes
    return mover.read(file.fd, file.offsets(asked), size, out.reshape(-1), to, "the file")


def whole(file):
    rows = np.arange(file.layout.num_embeddings)
    out = np.empty((rows.size, file.layout.lanes), np.float32)
    for at in range(rows.size):
        data = os.pread(file.fd, file.layout.record_bytes, int(file.offsets(rows[at : at + 1])[0]))
        out[at] = np.frombuffer(data, np.float32)
    return out


@pytest.mark.parametrize("dim", [4, 64, 100, 1500])  # records below and beyond a page
@pytest.mark.parametrize("share", [1.0, 0.7, 0.02])
def test_writing_and_reading_back(tmp_path, dim, share):
    table, file = a_file(tmp_path, dim)
    rng = np.random.default_rng(dim)
    expected = whole(file)
    done = 0
    for _ in range(3):
        rows = np.flatnonzero(rng.random(3000) < share)
        if share == 0.7:
            rows = rows[(rows < 700) | (rows > 1900)]  # and a hole
        data = records(rng, rows.size, file)
        with_bulk = Bulk()
        n = with_bulk.write(file, rows, putting(data))
        done += n
        files.CALLS.pwrite_records(file.fd, file.offsets(rows[n:]), data[n:].view(np.uint8))
        expected[rows] = data
        assert np.array_equal(whole(file), expected)
        asked = rng.permutation(rows)[: max(1, rows.size // 2)]
        out = np.empty((asked.size, file.layout.lanes), np.float32)
        if read(with_bulk, file, asked, out):
            assert np.array_equal(out, expected[asked])
            done += 1
        with_bulk.close()
    assert os.fstat(file.fd).st_size == file.layout.file_bytes
    if share == 1.0:
        assert done > 3 * 2700
    table.close(checkpoint=False)


def test_long_holes_stay_holes(tmp_path):
    table, file = a_file(tmp_path, 64, rows=4000)  # 256 bytes a record
    rows = np.concatenate([np.arange(1000), np.arange(1160, 2000)])  # 10 pages between
    data = np.ones((rows.size, 64), np.float32)
    plain = Bulk()
    assert plain.write(file, rows, putting(data)) == rows.size
    plain.close()
    assert files.allocated_bytes(file.fd) <= 4096 + rows.size * 256 + 4 * 4096
    assert np.array_equal(whole(file)[rows], data)
    assert not whole(file)[1000:1160].any()
    table.close(checkpoint=False)


def test_a_file_that_ends_early(tmp_path):
    table, file = a_file(tmp_path, 64)
    out = np.empty((3000, 64), np.float32)
    os.truncate(tmp_path / "t" / "rows.npy", 100_000)
    mover = Bulk()
    with pytest.raises(se.CorruptStoreError, match="ends early"):
        read(mover, file, np.arange(3000), out)
    mover.close()
    os.truncate(tmp_path / "t" / "rows.npy", file.layout.file_bytes)
    table.close(checkpoint=False)


@pytest.mark.parametrize("where", ["open", "pwrite", "preadv"])
def test_a_file_system_that_refuses(tmp_path, monkeypatch, where):
    """Records are moved one by one then."""
    plain, refused = getattr(os, where), []

    def refuse(target, *args, **kwargs):
        direct = (
            args[0] & os.O_DIRECT
            if where == "open"
            else os.readlink(f"/proc/self/fd/{target}").endswith((".npy", ".wal"))
        )
        if direct and (where != "open" or "/proc/self" in str(target)):
            refused.append(where)
            raise OSError(errno.EINVAL, "planted")
        return plain(target, *args, **kwargs)

    store = create(tmp_path / "m")
    for n in range(1, 5):
        step(store, n)
        store.commit()
    monkeypatch.setattr(os, where, refuse)
    store.checkpoint()
    monkeypatch.undo()
    assert refused
    assert picture(store) == picture(twin(range(1, 5)))
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == picture(twin(range(1, 5)))


def test_a_full_disk_in_the_middle(tmp_path, inject):
    store = create(tmp_path / "m")
    for n in range(1, 5):
        step(store, n)
        store.commit()
    calls = inject(always(FULL, "pwrite"))
    with pytest.raises(se.StoreError) as caught:
        store.checkpoint()
    assert caught.value.errno == errno.ENOSPC
    calls.stop()
    assert picture(store) == picture(twin(range(1, 5)))
    store.checkpoint()
    store.close()
    with open_store(tmp_path / "m") as store:
        assert store.last_commit == 4
        assert picture(store) == picture(twin(range(1, 5)))


def test_a_checkpoint_goes_this_way(tmp_path, monkeypatch):
    """And gives way to commits, but not for ever."""
    moved = []
    plain = bulk.Bulk.write
    monkeypatch.setattr(
        bulk.Bulk,
        "write",
        lambda self, *args: moved.append(plain(self, *args)) or moved[-1],
    )
    pauses = []
    waiting = checkpoint.Courtesy.pause
    monkeypatch.setattr(
        checkpoint.Courtesy, "pause", lambda self: (pauses.append(1), waiting(self))
    )
    store = create(tmp_path / "m")
    monkeypatch.setattr(type(store._core.journal), "used", property(lambda self: 1 << 40))
    for n in range(1, 12):
        step(store, n)
        store._core.journal.idle = False  # as if a commit never came to an end
        store.commit(wait=n % 2 == 0)
    store._core.finish_flight(wait=True)
    store.checkpoint()
    assert sum(moved) > 100
    assert pauses
    assert picture(store) == picture(twin(range(1, 12)))
    store.close()
