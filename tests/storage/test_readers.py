"""Readers beside a writer: each stands at one commit, whatever the writer does."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest

import sparse_embed as se
from sparse_embed.storage import manifest, opening
from tests.crash import readers
from tests.crash.workload import Twin, create, open_store, picture, step, steps_done


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


def test_readers_at_different_commits_through_checkpoints(tmp_path, twin):
    store = create(tmp_path / "m")
    standing = {}
    for n in range(1, 13):
        step(store, n)
        store.commit()
        if n % 3 == 0:
            standing[n] = open_store(tmp_path / "m", "r")
        store.checkpoint()
        for at, reader in standing.items():
            assert picture(reader) == twin.picture(at)
            assert reader.last_commit == at
    assert store.info()["folded_commit"] == 3
    standing.pop(3).close()
    store.checkpoint()
    assert store.info()["folded_commit"] == 6
    assert standing[6].refresh() == 12
    assert picture(standing[6]) == twin.picture(12)
    for at in (9, 12):
        assert picture(standing[at]) == twin.picture(at)
    for reader in standing.values():
        reader.close()
    store.close()


def test_a_reader_at_an_earlier_commit(tmp_path, twin):
    store = create(tmp_path / "m")
    for n in range(1, 5):
        step(store, n)
        store.commit()
    reader = open_store(tmp_path / "m", "r", at_commit=2)
    store.checkpoint()
    assert store.info()["folded_commit"] == 2
    assert picture(reader) == twin.picture(2)
    assert reader.refresh() == 4
    assert picture(reader) == twin.picture(4)
    reader.close()
    store.checkpoint()
    with pytest.raises(se.ArgumentError, match="gone"):
        open_store(tmp_path / "m", "r", at_commit=2)
    store.close()


def test_two_readers_at_one_commit(tmp_path, twin):
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    a, b = open_store(tmp_path / "m", "r"), open_store(tmp_path / "m", "r")
    step(store, 2)
    store.commit()
    a.close()  # must not free what b stands at
    store.checkpoint()
    assert store.info()["folded_commit"] == 1
    assert picture(b) == twin.picture(1)
    b.close()
    store.close()


def test_readers_change_nothing(tmp_path):
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    store.close(checkpoint=False)
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    reader = open_store(tmp_path / "m", "r")
    for call in (
        lambda: step(reader, 2),
        reader.commit,
        reader.checkpoint,
        lambda: reader.create_table("x", num_embeddings=1, embedding_dim=1),
        lambda: reader.tables["users"].reset([1]),
    ):
        with pytest.raises(se.ReadOnlyError, match=r'mode="r"'):
            call()
    assert reader.verify()["commits_in_journal"] == 1
    reader.rollback()
    reader.close()
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before


def test_a_reader_of_a_folded_store_verifies_while_the_writer_goes_on(tmp_path):
    store = create(tmp_path / "m")
    for n in (1, 2):
        step(store, n)
        store.commit()
    reader = open_store(tmp_path / "m", "r")
    store.checkpoint()  # commits 1 and 2: the reader's view of the journal is gone from the disk
    assert reader.verify()["rows_in_data_files"]["users"] > 0
    step(store, 3)
    store.commit()
    reader.verify()
    reader.close()
    store.close()


def test_a_checkpoint_between_reading_and_locking_makes_a_reader_start_again(
    tmp_path, twin, monkeypatch
):
    """The writer folds exactly when the reader has read the journal and not yet locked."""
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    plain, rounds = opening.lock.lock_reader, []

    def late(fd, commit):
        if len(rounds) < 3:
            step(store, 2 + len(rounds))
            store.commit()
            store.checkpoint()
        rounds.append(commit)
        plain(fd, commit)

    monkeypatch.setattr(opening.lock, "lock_reader", late)
    reader = open_store(tmp_path / "m", "r")
    assert rounds == [1, 2, 3, 4]
    assert picture(reader) == twin.picture(4)
    step(store, 5)
    store.commit()
    store.checkpoint()
    assert store.info()["folded_commit"] == 4
    assert picture(reader) == twin.picture(4)
    reader.close()
    store.close()


def test_files_replaced_while_a_reader_opens(tmp_path, twin, monkeypatch):
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    plain, count = manifest.read, []

    def late(directory):
        found = plain(directory)
        count.append(1)
        if len(count) == 2:  # the one whose journal is scanned next
            step(store, 2)
            store.commit()
            store.checkpoint()
        return found

    monkeypatch.setattr(manifest, "read", late)
    with open_store(tmp_path / "m", "r") as reader:
        assert picture(reader) == twin.picture(2)
    store.close()


def test_readers_in_threads_while_training(tmp_path, twin, fold_early):
    """Each opens, compares a whole commit, closes; the writer folds in the background."""
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    for n in range(41):
        twin.picture(n)
    seen, wrong, stop = [], [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                with open_store(tmp_path / "m", "r") as reader:
                    n = steps_done(reader)
                    seen.append(n)
                    if picture(reader) != twin.picture(n):
                        wrong.append(n)
            except Exception as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(2, 41):
        step(store, n)
        store.commit(wait=n % 2 == 0)
    store.checkpoint()
    stop.set()
    for thread in threads:
        thread.join()
    store.close()
    assert wrong == []
    assert len(set(seen)) > 3


def test_a_reader_process_sees_only_commits(tmp_path):
    facts = readers.run(tmp_path / "m", row_reads=300_000, seed=1)
    assert facts["mismatches"] == []
    assert facts["row_reads"] >= 300_000
    assert facts["states"] > 3
    assert facts["checkpoints"] > 1


def test_read_only_media_without_a_lock_file(tmp_path, twin, monkeypatch):
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    store.close(checkpoint=False)
    (tmp_path / "m" / "lock").unlink()
    from sparse_embed.storage import files

    plain = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            raise OSError(30, "Read-only file system")
        return plain(path, flags, *args, **kwargs)

    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(se.ReadOnlyError):
        open_store(tmp_path / "m")
    reader = open_store(tmp_path / "m", "r")
    monkeypatch.undo()
    monkeypatch.setattr("sparse_embed.storage.resident._SMALLEST", 48)
    assert picture(reader) == twin.picture(1)
    reader.close()


def test_spawned_processes_may_read(tmp_path):
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(readers.picture_of, (str(tmp_path / "m"),)) == picture(store)
    store.close()
