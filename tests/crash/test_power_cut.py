"""The power-cut harness in small, and the bugs it must catch; power_cut.py runs it large."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest

from sparse_embed.storage import files
from tests.crash import planted
from tests.crash.disk import Event, Recording, RecordingCalls
from tests.crash.power_cut import MIX, Counts, Run, cut_at, explore, reuses, small_machine


def test_a_few_dozen_cuts():
    counts = explore(60, seed=7)
    assert counts.failures == []
    assert counts.cuts == 60
    assert counts.second_cuts >= 15
    assert counts.commits >= 20
    assert counts.commits_written_ahead >= 5
    assert counts.checkpoints + counts.background_checkpoints >= 3
    assert counts.spilling_steps >= 10
    assert len(counts.states) >= 10


@pytest.mark.slow
def test_five_hundred_cuts():
    counts = explore(500, seed=11)
    assert counts.failures == []
    assert counts.background_checkpoints >= 20
    assert counts.checkpoints >= 20
    assert counts.commits_written_ahead >= 50
    assert counts.parts_given_up >= 20
    assert len(counts.states) >= 100
    assert sum(counts.kills.values()) >= 20


def _syncs(event: Event) -> bool:
    return event.kind == "sync"


def _manifests(event: Event) -> bool:
    return event.kind == "rename" and event.new == "store.json"


def _removals(event: Event) -> bool:
    return event.kind == "unlink"


def _marks(event: Event) -> bool:
    return event.kind in ("make", "sync", "mark")


AHEAD = {"step": 0.6, "checkpoint": 0.15}
LONG_LIVED = {"commit": 2.0, "checkpoint": 0.0, "reopen": 0.0, "rewind": 0.0}


@pytest.mark.parametrize(
    ("bug", "calls", "aim", "mix"),
    [
        (nullcontext, planted.NoSync, None, {}),
        (planted.segments_deleted_before_the_fold_is_synced, RecordingCalls, None, {}),
        (nullcontext, planted.FoldSyncedTooLate, None, {}),
        (nullcontext, planted.RenameNotSynced, None, {}),
        (nullcontext, planted.SpareHeaderNotSynced, reuses, LONG_LIVED),
        (nullcontext, planted.SpareUsedTooEarly, reuses, LONG_LIVED),
        (planted.checksum_without_the_records, RecordingCalls, _syncs, {"commit": 2.0}),
        (planted.recovery_not_synced, RecordingCalls, None, {"kill": 1.0}),
        (planted.names_of_files_not_synced, RecordingCalls, _manifests, {"checkpoint": 0.5}),
        (planted.an_empty_segment_cuts_the_journal, RecordingCalls, _marks, {"rewind": 0.5}),
        (
            planted.a_replaced_segment_outlives_its_replacement,
            RecordingCalls,
            _removals,
            {"rewind": 0.3, "checkpoint": 0.2},
        ),
        (planted.parts_believed_without_their_frame, RecordingCalls, _marks, AHEAD),
        (planted.a_frame_whose_chain_skips_a_part, RecordingCalls, None, AHEAD),
        (planted.flags_cleared_with_parts_given_up, RecordingCalls, None, AHEAD),
        (planted.parts_in_segments_of_version_1, RecordingCalls, None, AHEAD),
        (planted.parts_left_behind_in_a_full_segment, RecordingCalls, None, AHEAD),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_planted_bugs_are_caught(bug, calls, aim, mix):
    """The same search, at the kind of call that the bug is about."""
    caught, cuts, seed = [], 0, 0
    while not caught and cuts < 2000:
        seed += 1
        with bug():
            found = explore(25, seed, make=calls, aim=aim, mix=mix)
        caught, cuts = found.failures, cuts + found.cuts
    print(f"caught after at most {cuts} cuts: {caught[:1]}")
    assert caught
    assert explore(25, seed, aim=aim, mix=mix).failures == []


def _rewound_and_folded(folder, seed: int) -> list[str]:
    """Five commits, back to an earlier one, another commit, a checkpoint; cut at every removal."""
    rng, counts = np.random.default_rng(seed), Counts()
    with small_machine():
        run = Run(folder, rng, counts, RecordingCalls, MIX)
        with mock.patch.object(files, "CALLS", run.calls):
            run._create()
            for _ in range(5):
                run._commit()
            run._rewind()
            run._commit()
            run._checkpoint()
            run._close(checkpoint=False)
        for at, event in enumerate(run.recording.events):
            for _ in range(8 if event.kind == "unlink" else 0):
                cut_at(run.recording, at + 1, folder, counts, rng, twice=False)
    return counts.failures


def test_a_planted_bug_after_a_return_to_an_earlier_commit(tmp_path):
    """Segments removed in any order: the end that a later segment had replaced comes back."""
    caught = []
    for seed in range(30):
        for sound in (True, False):
            folder = tmp_path / f"{seed}-{sound}"
            folder.mkdir()
            with nullcontext() if sound else planted.segments_deleted_in_any_order():
                failures = _rewound_and_folded(folder, seed)
            if sound:
                assert failures == []
            caught += failures
        if caught:
            break
    print(f"caught with seed {seed}: {caught[0] if caught else None}")
    assert caught


def test_the_recording_disk(tmp_path):
    """What is synced is sure; what is not may be there, in part, or not."""
    live = tmp_path / "live"
    live.mkdir()
    recording = Recording({"old": b"before"})
    (live / "old").write_bytes(b"before")
    calls = RecordingCalls(recording, live)
    import os

    folder = os.open(live, os.O_RDONLY)
    fd = calls.open(folder, "new", os.O_RDWR | os.O_CREAT)
    calls.pwrite(fd, memoryview(b"a" * 1024), 0)
    calls.fdatasync(fd)
    calls.pwrite(fd, memoryview(b"b" * 1024), 1024)
    calls.sync_dir(folder)
    calls.unlink(folder, "old")
    calls.close(fd)
    os.close(folder)
    seen = set()
    for seed in range(300):
        image = tmp_path / str(seed)
        image.mkdir()
        recording.image(len(recording.events), image, np.random.default_rng(seed))
        data = (image / "new").read_bytes()
        assert data[:1024] == b"a" * 1024
        seen.add((data[1024:1536], data[1536:], (image / "old").exists()))
    sector, hole = b"b" * 512, b"\0" * 512
    for kept in ((b"", b""), (sector, b""), (sector, sector), (hole, sector)):
        for exists in (True, False):
            assert (*kept, exists) in seen
    assert len(seen) == 8
