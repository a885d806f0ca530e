"""The journal: chaining, segments, superseded ends, torn tails and damage."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import files, frame_writer
from sparse_embed.storage import journal as journal_module
from sparse_embed.storage.frame import segment_number
from tests.crash.workload import Twin, create, open_store, picture, step, steps_done


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


def segments(path):
    return sorted(p for p in path.iterdir() if segment_number(p.name) is not None)


def commits(path, count, first=1):
    """A store with `count` commits, one step each, all in the journal."""
    store = create(path)
    for n in range(first, first + count):
        step(store, n)
        store.commit()
    store.close(checkpoint=False)


def test_one_segment_takes_many_commits(tmp_path, twin):
    commits(tmp_path / "m", 5)
    assert [p.name for p in segments(tmp_path / "m")] == ["journal-000001.wal"]
    for n in range(6):
        with open_store(tmp_path / "m", "r", at_commit=n) as store:
            assert picture(store) == twin.picture(n)


def test_full_segments_are_followed_by_new_ones(tmp_path, twin, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 20_000)
    commits(tmp_path / "m", 6)
    assert len(segments(tmp_path / "m")) > 2
    for n in range(7):
        with open_store(tmp_path / "m", "r", at_commit=n) as store:
            assert store.last_commit == n
            assert picture(store) == twin.picture(n)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(6)
        assert store.verify()["commits_in_journal"] == 6


def test_frames_larger_than_the_staging_buffer(tmp_path, monkeypatch):
    for module in (journal_module, frame_writer):
        monkeypatch.setattr(module, "CHUNK", 1 << 20)
    store = se.Store.create(tmp_path / "m")
    table = store.create_table("t", num_embeddings=50_000, embedding_dim=16)
    rng = np.random.default_rng(0)
    for n in (49_998, 30_000, 16_384, 16_383, 5):  # around whole MiB
        rows = rng.choice(50_000, n, replace=False)
        values = rng.standard_normal((n, 16)).astype(np.float32)
        table.assign(rows, values)
        store.arrays["a"] = rng.standard_normal(n % 7)
        store.commit(wait=n % 2 == 0)
    before = table.lookup(np.arange(50_000))
    store.close(checkpoint=False)
    with se.Store.open(tmp_path / "m") as store:
        assert np.array_equal(store.tables["t"].lookup(np.arange(50_000)), before)


@pytest.mark.parametrize("size", range(0, 70_000, 4096))
def test_frames_of_any_size_around_a_block(tmp_path, size):
    store = se.Store.create(tmp_path / "m")
    for extra in (0, 1, 63):
        store.arrays["a"] = np.arange(size + extra, dtype=np.uint8)
        store.commit()
    store.close(checkpoint=False)
    with se.Store.open(tmp_path / "m", "r") as store:
        assert np.array_equal(store.arrays["a"], np.arange(size + 63, dtype=np.uint8))


def test_a_torn_last_commit_is_ignored_and_said(tmp_path, twin):
    commits(tmp_path / "m", 3)
    (path,) = segments(tmp_path / "m")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    with open_store(tmp_path / "m") as store:
        assert store.last_commit == 2
        assert picture(store) == twin.picture(2)
        (note,) = store.info()["notes"]
        assert "unfinished commit 3" in note
        assert "journal-000001.wal" in note
        step(store, 3)
        assert store.commit() == 3
        store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)
        assert store.info()["notes"] == []


def test_damage_before_the_end_is_an_error_with_file_and_offset(tmp_path):
    commits(tmp_path / "m", 3)
    (path,) = segments(tmp_path / "m")
    data = bytearray(path.read_bytes())
    data[4096 + 300] ^= 1  # in the first commit
    path.write_bytes(data)
    with pytest.raises(se.CorruptStoreError, match=r"journal-000001\.wal.*offset 4096.*commit 1"):
        open_store(tmp_path / "m")


def test_a_lost_segment_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 1)
    commits(tmp_path / "m", 4)
    paths = segments(tmp_path / "m")
    assert len(paths) == 4
    data = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(se.CorruptStoreError, match="commit 2"):
        open_store(tmp_path / "m")
    paths[1].write_bytes(data)
    paths[0].rename(tmp_path / "away")
    with pytest.raises(se.CorruptStoreError, match="commit 1 is missing"):
        open_store(tmp_path / "m")


def test_a_segment_of_another_store_is_an_error(tmp_path):
    commits(tmp_path / "a", 2)
    commits(tmp_path / "b", 1)
    (a,), (b,) = segments(tmp_path / "a"), segments(tmp_path / "b")
    b.write_bytes(a.read_bytes())
    with pytest.raises(se.CorruptStoreError, match="foreign"):
        open_store(tmp_path / "b")


def test_an_earlier_commit_in_an_earlier_segment(tmp_path, twin, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 1)
    commits(tmp_path / "m", 5)
    for n in (4, 2, 0):
        with open_store(tmp_path / "m", "r", at_commit=n) as store:
            assert picture(store) == twin.picture(n)
    for n in (6, -1):
        with pytest.raises(se.ArgumentError, match="at_commit"):
            open_store(tmp_path / "m", at_commit=n)


def test_later_commits_stay_until_the_next_commit(tmp_path, twin, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 20_000)
    commits(tmp_path / "m", 6)
    with open_store(tmp_path / "m", at_commit=2) as store:
        assert picture(store) == twin.picture(2)
    # Closed, so folded up to commit 2; nothing was committed, so nothing was dropped.
    with open_store(tmp_path / "m", "r") as store:
        assert store.last_commit == 6
        assert picture(store) == twin.picture(6)
    with pytest.raises(se.ArgumentError, match="gone"), open_store(tmp_path / "m", at_commit=1):
        pass
    store = open_store(tmp_path / "m", at_commit=3)
    store.checkpoint()
    step(store, 100)
    store.rollback()
    assert picture(store) == twin.picture(3)
    step(store, 100)
    assert store.commit() == 4
    other = picture(store)
    step(store, 101)
    store.rollback()
    assert picture(store) == other
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert store.last_commit == 4
        assert picture(store) == other


def test_a_first_commit_cut_short_does_not_drop_later_ones(tmp_path, twin):
    commits(tmp_path / "m", 5)
    store = open_store(tmp_path / "m", at_commit=2)
    step(store, 100)
    store.commit()
    store.close(checkpoint=False)
    path = segments(tmp_path / "m")[-1]
    whole = path.read_bytes()
    for size in (0, 100, 4096, 4097, 9000, len(whole) - 4096):
        path.write_bytes(whole[:size])
        with open_store(tmp_path / "m", "r") as store:
            assert store.last_commit == 5
            assert picture(store) == twin.picture(5)
    path.write_bytes(whole[:9000])
    with open_store(tmp_path / "m") as store:  # and a writer goes on from there
        step(store, 6)
        assert store.commit() == 6
        assert picture(store) == twin.picture(6)
    assert segments(tmp_path / "m") == []


def test_the_end_that_was_replaced_never_comes_back(tmp_path, monkeypatch):
    """Segments are removed oldest first, each durably before the next."""
    commits(tmp_path / "m", 5)
    store = open_store(tmp_path / "m", at_commit=2)
    step(store, 100)
    store.commit()
    removed = []
    directory = store._core.directory
    unlink, sync = os.unlink, directory.sync

    def log_unlink(name, *, dir_fd):
        removed.append(name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", log_unlink)
    monkeypatch.setattr(directory, "sync", lambda: (removed.append("sync"), sync()))
    store.checkpoint()
    names = [n for n in removed if n == "sync" or segment_number(n)]
    at = names.index("journal-000001.wal")
    assert names[at : at + 4] == ["journal-000001.wal", "sync", "journal-000002.wal", "sync"]
    monkeypatch.undo()
    store.close()


def test_replaced_segments_are_removed_with_what_replaced_them(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 1)
    commits(tmp_path / "m", 6)  # six segments
    store = open_store(tmp_path / "m", at_commit=2)
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 1 << 20)
    for n in (100, 101):
        step(store, n)
        store.commit()
    done = picture(store)
    store.checkpoint()
    assert segments(tmp_path / "m") == []
    store.close()
    with open_store(tmp_path / "m") as store:
        assert store.last_commit == 4
        assert picture(store) == done


def test_arrays_of_every_kind_survive(tmp_path):
    arrays = {
        "empty": np.empty((0, 3)),
        "scalar": np.float64(3.5),
        "bool": np.array([True, False]),
        "i1": np.int8([[1], [-2]]),
        "big": np.arange(5, dtype=">i4"),
        "half": np.float16([1.5]),
        "complex": np.array([1 + 2j]),
        "bytes": np.array([b"ab", b"c"]),
        "text": np.array(["ä", "bcd"]),
        "time": np.array(["2020-01-01"], "M8[D]"),
        "delta": np.array([5], "m8[ns]"),
        "x": np.arange(3),
        "x.npy": np.arange(4),
        "file": np.arange(2.0),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    with se.Store.create(tmp_path / "m") as store:
        for name, array in arrays.items():
            store.arrays[name] = array
        store.commit()
        store.close(checkpoint=False)
    for _ in range(2):  # from the journal, then from the checkpoint's archive
        with se.Store.open(tmp_path / "m") as store:
            assert set(store.arrays) == set(arrays)
            for name, array in arrays.items():
                array = np.asarray(array)
                assert store.arrays[name].dtype == array.dtype
                assert store.arrays[name].shape == array.shape
                assert store.arrays[name].tobytes() == array.tobytes()


def test_steps_done_is_what_the_commit_says(tmp_path):
    commits(tmp_path / "m", 2)
    with open_store(tmp_path / "m", "r") as store:
        assert steps_done(store) == 2


@pytest.mark.parametrize("wait", [True, False])
def test_a_chunk_that_cannot_be_written_fails_the_commit(tmp_path, monkeypatch, wait):
    for module in (journal_module, frame_writer):
        monkeypatch.setattr(module, "CHUNK", 1 << 20)
    store = se.Store.create(tmp_path / "m")
    table = store.create_table("t", num_embeddings=50_000, embedding_dim=16)
    table.assign(np.arange(10), np.ones((10, 16), np.float32))
    store.commit()
    table.assign(np.arange(50_000), np.full((50_000, 16), 2, np.float32))
    plain, calls = files.CALLS.pwrite, []

    def broken(fd, data, offset):
        calls.append(offset)
        if len(calls) == 2:  # in the middle of the frame, and in the writing thread
            raise OSError(errno.EIO, "planted")
        return plain(fd, data, offset)

    monkeypatch.setattr(files.CALLS, "pwrite", broken)
    with pytest.raises(OSError, match=r"cannot write a commit to .*journal-000001"):
        store.commit() if wait else store.commit(wait=False).wait()
    assert len(calls) >= 2
    monkeypatch.setattr(files.CALLS, "pwrite", plain)
    assert store.last_commit == 1
    store.rollback()
    assert np.array_equal(table.lookup(np.arange(10)), np.ones((10, 16), np.float32))
    table.assign(np.arange(50_000), np.full((50_000, 16), 3, np.float32))
    store.commit()
    store.close(checkpoint=False)
    with se.Store.open(tmp_path / "m") as store:
        assert np.array_equal(store.tables["t"].lookup([0, 49_999]), np.full((2, 16), 3))
