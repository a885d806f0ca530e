"""Journal segments that take the files of folded ones."""

from __future__ import annotations

import errno
import threading

import pytest

import sparse_embed as se
from sparse_embed.storage import files, fold, journal
from tests.crash.workload import Twin, create, open_store, picture, step
from tests.storage.injected import FULL


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


@pytest.fixture(autouse=True)
def _used_again(monkeypatch, fold_early):
    """A segment a commit, checkpoints in the background, and files of any size are kept."""
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(journal, "WORTH", 0)


def train(store, first, last):
    for n in range(first, last + 1):
        step(store, n)
        store.commit(wait=n % 3 != 0)
        if store._core.running_fold is not None:
            store._core.running_fold.wait()


def reused(store):
    return sum(segment.header.reused for segment in store._core.journal.walk())


def names(path):
    return sorted(p.name for p in path.iterdir())


def spares(path):
    return [name for name in names(path) if name.startswith("spare-")]


def allocated(path, some):
    return sum((path / name).stat().st_size for name in some)


def test_segments_take_folded_files(tmp_path, twin):
    store = create(tmp_path / "m")
    seen = most = 0
    for n in range(1, 31):
        train(store, n, n)
        assert picture(store) == twin.picture(n)
        seen += reused(store)
        most = max(most, len(spares(tmp_path / "m")))
    assert seen > 10
    assert most >= 1
    store.close(checkpoint=False)
    assert spares(tmp_path / "m") == []
    for n in (28, 29, 30):
        with open_store(tmp_path / "m", "r", at_commit=n) as reader:
            assert picture(reader) == twin.picture(n)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(30)
        store.verify()
    assert [name for name in names(tmp_path / "m") if name.endswith(".wal")] == []


def test_a_checkpoint_keeps_the_files_for_commits_to_come(tmp_path, twin):
    with create(tmp_path / "m") as store:
        train(store, 1, 3)
        store.checkpoint()
        assert [name for name in names(tmp_path / "m") if name.startswith("journal-")] == []
        kept = spares(tmp_path / "m")
        assert store.info()["spare_bytes"] == allocated(tmp_path / "m", kept) > 0
        train(store, 4, 4)
        assert reused(store) == 1
        assert len(spares(tmp_path / "m")) == len(kept) - 1
        assert picture(store) == twin.picture(4)
        store.checkpoint()
        assert spares(tmp_path / "m") != []
    assert [name for name in names(tmp_path / "m") if name.endswith(".wal")] == []


def test_what_an_older_segment_left_is_no_unfinished_commit(tmp_path, twin):
    store = create(tmp_path / "m")
    train(store, 1, 9)
    store._core.finish_flight(wait=True)
    number = store._core.journal._number
    newest = store._core.journal.segments[number]
    at, size = newest.end, newest.size
    assert newest.header.reused
    store._core.release()  # as a killed process leaves it
    path = tmp_path / "m" / f"journal-{number:06d}.wal"
    with path.open("r+b") as file:  # an older, longer frame behind the last one
        file.truncate(max(size, at))
        old = (tmp_path / "m" / f"journal-{number - 1:06d}.wal").read_bytes()[4096:]
        file.seek(at)
        file.write(old)
    for mode in ("r", "r+"):
        with open_store(tmp_path / "m", mode) as store:
            assert store.info()["notes"] == []
            assert picture(store) == twin.picture(9)
            store.verify()


@pytest.mark.parametrize("sound", [True, False], ids=["", "planted bug"])
def test_nothing_is_written_to_what_a_reader_needs(tmp_path, twin, sound):
    store = create(tmp_path / "m")
    train(store, 1, 3)
    store._core.finish_flight(wait=True)  # the reader finds commit 3
    reader = open_store(tmp_path / "m", "r")
    if not sound:
        store._core.journal.may_reuse = lambda: True
    good = True
    for n in range(4, 20):
        train(store, n, n)
        good &= picture(reader) == twin.picture(3)
        if sound:
            assert reused(store) == 0
    assert good == sound
    reader.close()
    train(store, 20, 32)
    assert reused(store) > 0
    assert picture(store) == twin.picture(32)
    store.close()


def test_a_file_used_again_while_a_reader_opens(tmp_path, twin, monkeypatch):
    """Between the list of names and the opening of a segment it becomes another one."""
    store = create(tmp_path / "m")
    train(store, 1, 8)
    plain, done = files.Directory.open_regular, []

    def open_regular(self, name, writable, create=False):
        if self is not store._core.directory and name.endswith(".wal") and len(done) < 3:
            done.append(store.last_commit)
            train(store, done[-1] + 1, done[-1] + 3)
        return plain(self, name, writable, create)

    monkeypatch.setattr(files.Directory, "open_regular", open_regular)
    with open_store(tmp_path / "m", "r") as reader:
        assert len(done) == 3
        assert picture(reader) == twin.picture(reader.last_commit)
    assert reused(store) > 0
    store.close()


def test_spare_files_make_room_on_a_full_disk(tmp_path, twin, inject):
    store = create(tmp_path / "m")
    train(store, 1, 12)
    train(store, 13, 14)
    while not spares(tmp_path / "m"):
        train(store, store.last_commit + 1, store.last_commit + 1)
    store._core.finish_flight(wait=True)
    last = store.last_commit
    refused = []

    def when(name, args):
        if name == "allocate" and spares(tmp_path / "m"):
            refused.append(name)
            return FULL
        return None

    store._core.journal._spares.admit("spare-999999.wal", 0)
    (tmp_path / "m" / "spare-999999.wal").write_bytes(b"")
    inject(when)
    step(store, last + 1)
    assert store.commit() == last + 1
    assert refused == ["allocate"]
    assert spares(tmp_path / "m") == []
    assert picture(store) == twin.picture(last + 1)
    store.close()


def test_files_that_are_too_many_are_removed_by_a_thread(tmp_path, twin, monkeypatch, inject):
    monkeypatch.setattr(fold, "_budget", lambda core: 1)
    removed, failing = [], [True]

    def when(name, args):
        if name == "unlink" and str(args[1]).startswith("spare-"):
            removed.append(threading.get_ident())
            if failing:
                failing.clear()
                return OSError(errno.EIO, "planted")
        return None

    inject(when)
    store = create(tmp_path / "m")
    for n in range(1, 13):
        train(store, n, n)
        assert picture(store) == twin.picture(n)
    assert set(removed) - {threading.get_ident()}
    store.close(checkpoint=False)
    assert len(spares(tmp_path / "m")) == 1  # the one that could not be removed
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(12)
        assert spares(tmp_path / "m") == []


def test_spare_files_that_a_crash_left_are_removed(tmp_path, twin):
    store = create(tmp_path / "m")
    train(store, 1, 5)
    store.close(checkpoint=False)
    (tmp_path / "m" / "spare-000002.wal").write_bytes(b"x" * 8192)
    with open_store(tmp_path / "m", "r") as reader:
        assert picture(reader) == twin.picture(5)
    assert spares(tmp_path / "m") == ["spare-000002.wal"]
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(5)
        assert spares(tmp_path / "m") == []
    (tmp_path / "m" / "spare-000002.wal").write_bytes(b"x" * 8192)
    se.Store.create(tmp_path / "m", overwrite=True).close()
    assert spares(tmp_path / "m") == []


def test_a_spare_file_that_cannot_be_taken(tmp_path, twin, inject):
    """The commit fails and says why; the next one finds another file."""
    store = create(tmp_path / "m")
    train(store, 1, 8)
    failing, said = [True], []

    def when(name, args):
        if name == "rename" and str(args[1]).startswith("spare-") and failing:
            failing.clear()
            return OSError(errno.EIO, "planted")
        return None

    inject(when)
    n = 8
    while failing:
        n += 1
        assert n < 20
        step(store, n)
        try:
            store.commit()
        except se.StoreError as error:
            said.append(str(error))
            store.rollback()
            step(store, n)
            store.commit()
        assert picture(store) == twin.picture(n)
    store.close()
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(n)
    assert len(said) == 1
    assert "cannot create" in said[0]
    assert spares(tmp_path / "m") == []
