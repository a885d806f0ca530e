"""verify: what it compares, and that a changed bit in a compared row is found."""

from __future__ import annotations

import pytest

import sparse_embed as se
from sparse_embed.storage import fold
from sparse_embed.storage.journal import Journal
from tests.crash.workload import create, open_store, step


@pytest.fixture
def half_folded(tmp_path, monkeypatch):
    """Commits 1 to 6 in one segment, of which the first four are folded."""
    store = create(tmp_path / "m")
    for n in range(1, 7):
        step(store, n)
        store.commit()
    monkeypatch.setattr(fold, "_JOURNAL_BUDGET", 0)
    monkeypatch.setattr(Journal, "used", property(lambda self: 1 << 40))
    fold.fold_in_background(store._core)
    fold.finish_fold(store._core, wait=True)
    monkeypatch.undo()
    assert store.info()["folded_commit"] == 4
    store.close(checkpoint=False)
    return tmp_path / "m"


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_folded_rows_are_compared_with_the_journal(half_folded, mode):
    calls = []
    with open_store(half_folded, mode) as store:
        checked = store.verify(lambda done, total: calls.append((done, total)))
        store.close(checkpoint=False)
    assert checked["commits_in_journal"] == 2
    assert checked["rows_compared"]["users"] > 100
    assert calls == sorted(calls)
    assert calls[-1][0] <= calls[-1][1]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_changed_bit_of_a_folded_row_is_found(half_folded, mode):
    with open_store(half_folded, "r") as reader:
        core = reader._core
        later = {
            row
            for frame in core.frames
            for row in core.journal.indices(frame, frame.meta.tables["users"])
        }
        file = core.tables["users"].rows.file
        row = next(row for row in file.written().tolist() if row not in later)
        at = int(file.offsets(row)) + 5
    with (half_folded / "users.npy").open("r+b") as data:
        data.seek(at)
        byte = data.read(1)[0]
        data.seek(at)
        data.write(bytes([byte ^ 4]))
    with open_store(half_folded, mode) as store:
        with pytest.raises(se.CorruptStoreError, match=rf"users\.npy.*row {row} .*commit 4"):
            store.verify()
        store.close(checkpoint=False)


def test_info_says_what_a_recovery_would_do(half_folded):
    with open_store(half_folded, "r") as store:
        facts = store.info()
    assert list(facts["journal_segments"]) == ["journal-000001.wal"]
    assert facts["journal_segments"]["journal-000001.wal"] > 4096
    recovery = facts["recovery"]
    assert (recovery["opens_at_commit"], recovery["commits_to_index"]) == (6, 2)
    assert recovery["rows_to_index"] > 0
    assert recovery["interrupted_fold_to_commit"] is None
    assert recovery["ignores"] == []
