"""Rows written ahead of their commit: parts count with it, and without it for nothing."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import ahead, frame, journal
from sparse_embed.storage.frame import FrameHeader, SegmentHeader, segment_number
from tests.crash.workload import Twin, create, open_store, picture, step
from tests.storage.injected import BROKEN, FULL, NAMES, always, nth

STOP = KeyboardInterrupt("stop")


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """A part before each step but the first, up to three."""

    def due(window):
        for part in window.parts:
            part.pending.wait()
        return window.steps > 0 and len(window.parts) < 3

    monkeypatch.setattr(ahead, "WORTH", 0)
    monkeypatch.setattr(ahead, "_GAIN", 0.0)
    monkeypatch.setattr(ahead, "_due", due)


def opened_ahead(path, last=4):
    """A store at commit 2, and steps up to `last` after it, most of them written ahead."""
    store = two_commits(path)
    for n in range(3, last + 1):
        step(store, n)
    assert len(parts(store)) == 3
    return store


def two_commits(path):
    """None of them written ahead."""
    store = create(path)
    for n in (1, 2):
        store._core.window.expected = 0
        step(store, n)
        store.commit()
    return store


def parts(store):
    return store._core.window.parts


def segments(path):
    return sorted(p for p in path.iterdir() if segment_number(p.name) is not None)


def headers(path):
    """Every frame header of a segment, in order."""
    data, at, found = path.read_bytes(), frame.BLOCK, []
    while (header := FrameHeader.decode(data[at : at + 64])) is not None:
        found.append((at, header))
        at += frame.align(header.frame_bytes, frame.BLOCK)
    return found


def crash(store, to):
    """What a kill leaves now."""
    for part in parts(store):
        part.pending.wait()
    return shutil.copytree(store.path, to)


def test_commits_with_parts_read_as_those_without(tmp_path, twin):
    store = create(tmp_path / "m")
    for n in range(1, 13):
        step(store, n)
        if n % 3 == 0:
            had = len(parts(store))
            assert had == (3 if n in (6, 9) else 0)  # commit 9 is not waited for
            store.commit(wait=n != 9)
            assert parts(store) == []
            assert picture(store) == twin.picture(n)  # the commit may be in flight
            store._core.finish_flight(wait=True)
            assert len(store._core.frames[-1].parts) == had
            assert picture(store) == twin.picture(n)
            store.rollback()
            assert picture(store) == twin.picture(n)
    store.close(checkpoint=False)
    for commit in range(5):
        with open_store(tmp_path / "m", "r", at_commit=commit) as reader:
            assert picture(reader) == twin.picture(3 * commit)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(12)
        assert store.verify()["commits_in_journal"] == 4
        assert store.info()["recovery"]["commits_to_index"] == 4
        store.checkpoint()
        assert picture(store) == twin.picture(12)
    with open_store(tmp_path / "m") as store:
        assert store.info()["commits_in_journal"] == []
        assert picture(store) == twin.picture(12)


def test_only_segments_with_parts_have_version_2(tmp_path):
    with opened_ahead(tmp_path / "m") as store:
        store.commit()
        one, two = segments(store.path)
        assert [part for _, part in headers(one)] == [h for _, h in headers(one) if not h.part]
        assert [h.part for _, h in headers(two)] == [True, True, True, False]
        assert {h.commit for _, h in headers(two)} == {3}
        for path, version, said in ((one, 1, False), (two, 2, True)):
            header = SegmentHeader.decode(path.read_bytes()[: frame.BLOCK])
            assert header.parts is said
            assert path.read_bytes()[8] == version


def test_rows_that_the_last_frame_had_are_left_to_the_commit(tmp_path):
    table = se.EmbeddingTable.create(tmp_path / "t", num_embeddings=100, embedding_dim=4)

    def assign(*rows):
        table.assign(list(rows), np.full((len(rows), 4), table.last_commit + 1, np.float32))

    assign(*range(10))
    table.commit()
    assign(*range(5, 15))
    assign(7, 12)
    (part,) = table._core.window.parts
    assert part.taken["rows"].rows.tolist() == [10, 11, 12, 13, 14]
    table.commit()
    frame = table._core.frames[-1]
    assert frame.meta.tables["rows"].rows == 6  # 5 to 9, and 12, which changed again
    assign(1, 14)
    assign(2)
    (part,) = table._core.window.parts
    assert part.taken["rows"].rows.tolist() == [1, 14]  # the last frame had 12, not 14
    table.commit()
    values = table.lookup(np.arange(100))
    table.close(checkpoint=False)
    with se.EmbeddingTable.open(tmp_path / "t") as table:
        assert np.array_equal(table.lookup(np.arange(100)), values)


def test_parts_without_their_commit_are_ignored_and_said(tmp_path, twin):
    with opened_ahead(tmp_path / "m") as store:
        left = crash(store, tmp_path / "left")
    with open_store(left, "r") as store:
        assert store.last_commit == 2
        assert picture(store) == twin.picture(2)
    with open_store(left) as store:
        assert store.info()["notes"] == [
            "journal-000002.wal: an unfinished commit 3 at offset 4096 was ignored"
        ]
        assert picture(store) == twin.picture(2)
        step(store, 3)
        assert store.commit() == 3
        store.close(checkpoint=False)
    with open_store(left) as store:
        assert picture(store) == twin.picture(3)


def test_parts_behind_a_commit_in_the_same_segment_are_ignored_and_said(tmp_path, twin):
    with opened_ahead(tmp_path / "m") as store:
        store.commit()
        step(store, 5)
        step(store, 6)
        assert len(segments(store.path)) == 2
        left = crash(store, tmp_path / "left")
    with open_store(left) as store:
        (note,) = store.info()["notes"]
        assert "unfinished commit 4" in note
        assert picture(store) == twin.picture(4)


def test_a_frame_that_skips_a_part_is_not_believed(tmp_path, twin):
    with opened_ahead(tmp_path / "m") as store:
        store.commit()
        left = shutil.copytree(store.path, tmp_path / "left")
    path = segments(left)[-1]
    _, (two, _), (three, _), (at, _) = headers(path)
    data = path.read_bytes()
    for without in (slice(two, three), slice(three, at), slice(frame.BLOCK, two)):
        path.write_bytes(data[: without.start] + data[without.stop :])
        with open_store(left, "r") as store:
            assert picture(store) == twin.picture(2)
    path.write_bytes(data)
    with open_store(left, "r") as store:
        assert picture(store) == twin.picture(4)


def test_parts_in_a_segment_of_version_1_are_not_believed(tmp_path, twin):
    with opened_ahead(tmp_path / "m") as store:
        store.commit()
        left = shutil.copytree(store.path, tmp_path / "left")
    path = segments(left)[-1]
    data = path.read_bytes()
    header = SegmentHeader.decode(data[: frame.BLOCK])
    other = SegmentHeader(**vars(header) | {"parts": False}).encode()
    path.write_bytes(other + data[frame.BLOCK :])
    with open_store(left, "r") as store:
        assert picture(store) == twin.picture(2)


def test_damage_in_a_part(tmp_path, twin):
    """Of the last commit: it may never have been whole.  Of an earlier one: an error."""
    with opened_ahead(tmp_path / "m") as store:
        store.commit()
        left = shutil.copytree(store.path, tmp_path / "left")
        for n in (5, 6):
            step(store, n)
        store.commit()
        longer = shutil.copytree(store.path, tmp_path / "longer")
    for folder in (left, longer):
        path = segments(folder)[-1]
        data = path.read_bytes()
        pieces = headers(path)[:4]
        rng = np.random.default_rng(1)
        for at, header in pieces:
            every = [*range(64), *(header.frame_bytes - 1 - np.arange(40))]
            inside = rng.integers(64, header.frame_bytes - 64, 40)
            for offset in (*every, *inside):
                damaged = bytearray(data)
                damaged[at + offset] ^= 1 << int(rng.integers(0, 8))
                path.write_bytes(damaged)
                if folder == left:
                    with open_store(folder, "r") as store:
                        assert store.last_commit == 2
                else:
                    with pytest.raises(se.CorruptStoreError, match=r"journal-000002\.wal"):
                        open_store(folder, "r")
        for size in range(frame.BLOCK, headers(path)[3][0] + 64, 64):
            path.write_bytes(data[:size])
            with open_store(folder, "r") as store:
                assert store.last_commit == 2
        path.write_bytes(data)
        with open_store(folder, "r") as store:
            assert picture(store) == twin.picture(4 if folder == left else 6)


def _no_change(store):
    store.verify()
    store.info()


@pytest.mark.parametrize(
    "between",
    [
        lambda store: store.checkpoint(),
        lambda store: store.snapshot(store.path.parent / "copy"),
        _no_change,
    ],
    ids=["checkpoint", "snapshot", "look"],
)
def test_what_comes_between_loses_nothing(tmp_path, twin, between):
    store = opened_ahead(tmp_path / "m")
    changed = store.info()["tables"]["items"]["changed_rows"]
    between(store)
    assert store.info()["tables"]["items"]["changed_rows"] == changed > 0
    assert store.last_commit == 2
    assert picture(store) == twin.picture(4)
    step(store, 5)
    store.commit()
    assert picture(store) == twin.picture(5)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(5)
        store.verify()


def test_rollback_forgets_what_was_written_ahead(tmp_path, twin):
    store = opened_ahead(tmp_path / "m")
    said = [part.pending.frame.frame_bytes for part in parts(store)]
    assert store.info()["written_ahead_bytes"] == sum(said) > 0
    store.rollback()
    assert store.info()["written_ahead_bytes"] == 0
    assert picture(store) == twin.picture(2)
    assert segments(store.path)[-1].stat().st_size == frame.BLOCK
    step(store, 3)
    assert store.commit() == 3
    store.rollback()
    assert picture(store) == twin.picture(3)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(3)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_close_forgets_what_was_written_ahead(tmp_path, twin, checkpoint, caplog):
    store = opened_ahead(tmp_path / "m")
    store.close(checkpoint=checkpoint)
    assert ("closed with changes after commit 2" in caplog.text) is checkpoint
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(2)
        assert store.info()["recovery"]["commits_to_index"] == (0 if checkpoint else 2)


def test_a_with_block_commits_what_was_written_ahead(tmp_path, twin):
    with opened_ahead(tmp_path / "m") as store:
        assert store._core.has_changes()
    with open_store(tmp_path / "m") as store:
        assert store.last_commit == 3
        assert picture(store) == twin.picture(4)


def test_a_table_made_between_parts(tmp_path):
    store = opened_ahead(tmp_path / "m")
    new = store.create_table("new", num_embeddings=50, embedding_dim=4)
    new.assign([1, 2], np.ones((2, 4), np.float32))
    before = picture(store)
    store.commit()
    assert picture(store) == before
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == before


@pytest.mark.parametrize("name", [name for name in NAMES if name != "close"])
@pytest.mark.parametrize("number", range(1, 6))
def test_parts_that_cannot_be_written_cost_nothing(tmp_path, twin, inject, name, number):
    """Whatever fails, full disk or broken: the step goes on, and the commit has all rows."""
    store = two_commits(tmp_path / "m")
    step(store, 3)  # what it spills has its own tests
    calls = inject(nth(number, FULL if number % 2 else BROKEN, name))
    reached = 0
    for n in (4, 5):
        try:
            step(store, n)
        except se.StoreError as error:  # by the scratch file, before or after
            assert "scratch" in str(error)  # noqa: PT017
            store.rollback()
            step(store, 3)
            step(store, 4)
            if n == 5:
                step(store, 5)
        reached += name in calls.log
    calls.stop()
    assert store._core.failed is None
    assert picture(store) == twin.picture(5)
    assert store.commit() == 3
    store.rollback()
    assert picture(store) == twin.picture(5)
    store.verify()
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(5)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("error", "name"), [(FULL, "allocate"), (BROKEN, "pwrite"), (BROKEN, "fdatasync")]
)
def test_a_commit_that_fails_leaves_the_rows_of_its_parts_changed(
    tmp_path, twin, inject, error, name, wait
):
    store = opened_ahead(tmp_path / "m")
    calls = inject(always(error, name))
    with pytest.raises(se.StoreError):  # noqa: PT012
        store.commit(wait=wait)
        store._core.flight.pending.wait()
        store.tables["users"].lookup([1])
    calls.stop()
    assert store.last_commit == 2
    assert picture(store) == twin.picture(4)
    step(store, 5)
    assert store.commit() == 3
    store.rollback()
    assert picture(store) == twin.picture(5)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(5)
        assert store.verify()["commits_in_journal"] == 3


@pytest.mark.parametrize("number", range(1, 40))
def test_an_interrupt_at_any_call(tmp_path, twin, inject, number):
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    calls = inject(nth(number, STOP))
    last, launched = 1, False
    try:
        for n in (2, 3, 4):
            step(store, n)
        launched = True
        store.commit()
        last = 4
        step(store, 5)
        step(store, 6)
    except KeyboardInterrupt:
        pass
    calls.stop()
    store.rollback()
    now = 4 if store.last_commit == 2 else 1
    assert now >= last
    assert now == 1 or launched
    assert picture(store) == twin.picture(now)
    step(store, now + 1)
    step(store, now + 2)
    store.commit()
    assert picture(store) == twin.picture(now + 2)
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(now + 2)


def test_a_commit_interrupted_before_it_is_taken_over(tmp_path, twin, monkeypatch):
    """The journal drops it with its parts: all their rows go into the next one."""
    store = opened_ahead(tmp_path / "m")
    plain = journal.Journal.append

    def interrupted(self, *args, **keywords):
        plain(self, *args, **keywords)
        raise STOP

    monkeypatch.setattr(journal.Journal, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.commit()
    monkeypatch.setattr(journal.Journal, "append", plain)
    assert picture(store) == twin.picture(4)
    assert store.commit() == 3
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(4)


def test_a_part_interrupted_before_it_is_taken_over(tmp_path, twin, monkeypatch):
    store = create(tmp_path / "m")
    step(store, 1)
    store.commit()
    step(store, 2)
    plain = journal.Journal.append

    def interrupted(self, *args, **keywords):
        pending = plain(self, *args, **keywords)
        if len(self.parts) == 3:
            raise STOP
        return pending

    monkeypatch.setattr(journal.Journal, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        store.tables["users"].update(np.ones((1, 4), np.float32), [3])
        store.tables["users"].update(np.ones((1, 4), np.float32), [3])
    assert store._core.failed is None
    monkeypatch.setattr(journal.Journal, "append", plain)
    before = picture(store)
    store.commit()
    store.rollback()
    assert picture(store) == before
    store.close(checkpoint=False)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == before


def test_readers_stand_at_the_commit_before(tmp_path, twin):
    store = opened_ahead(tmp_path / "m")
    with open_store(tmp_path / "m", "r") as reader:
        assert reader.last_commit == 2
        store.commit()
        assert picture(reader) == twin.picture(2)
        assert reader.refresh() == 3
        assert picture(reader) == twin.picture(4)
        step(store, 5)
        step(store, 6)
        assert reader.refresh() == 3
        assert picture(reader) == twin.picture(4)
    store.close()


def test_a_return_to_an_earlier_commit_and_parts_after_it(tmp_path, twin):
    store = opened_ahead(tmp_path / "m")
    store.commit()
    store.close(checkpoint=False)
    store = open_store(tmp_path / "m", at_commit=2)
    store._core.window.expected = 4  # as if a commit had been here
    for n in (3, 4, 5):
        step(store, n)
    assert len(parts(store)) == 3
    left = crash(store, tmp_path / "left")
    assert store.commit() == 3
    store.close(checkpoint=False)
    with open_store(left) as store:  # the end that would have been replaced is still there
        assert store.last_commit == 3
        assert picture(store) == twin.picture(4)
    with open_store(tmp_path / "m") as store:
        assert picture(store) == twin.picture(5)


class TestWhen:
    """By the rule as it is."""

    @pytest.fixture(autouse=True)
    def _as_it_is(self, monkeypatch, request):
        monkeypatch.undo()

    def steps_with_parts(self, expected, seconds_to_write, a_step, most, monkeypatch):
        window = ahead.Window(expected, 0.0, 0, seconds_to_write, left=expected * 2 / 3, began=0.0)
        at = []
        for n in range(1, most + 1):
            window.steps = n
            monkeypatch.setattr(ahead.time, "perf_counter", lambda n=n: n * a_step)
            if ahead._due(window):
                at.append(n)
                pending = SimpleNamespace(done=True)
                window.parts.append(ahead.Part(pending, {}))
                window.left = (window.expected - window.steps) * 2 / 5
        return at

    def test_steps(self, monkeypatch):
        steps = self.steps_with_parts
        assert steps(10, 9.0, 0.1, 10, monkeypatch) == [4, 8]
        assert steps(100, 9.0, 0.1, 100, monkeypatch) == [34, 74]
        assert steps(1000, 10.0, 0.1, 1000, monkeypatch) == [900, 960]
        assert steps(1000, 0.0, 0.1, 1000, monkeypatch)[0] == 999
        assert steps(1, 9.0, 0.1, 9, monkeypatch) == [1, 2]  # longer than expected

    def test_small_commits_write_nothing_ahead(self, tmp_path):
        with create(tmp_path / "m") as store:
            for n in range(1, 9):
                step(store, n)
                assert parts(store) == []
                if n % 4 == 0:
                    store.commit()
            assert [p.read_bytes()[8] for p in segments(store.path)] == [1]
