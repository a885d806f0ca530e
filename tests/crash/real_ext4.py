"""Cut the power of a real ext4 at random instants, and open what its disk may hold.

    pip install mfusepy; sudo python tests/crash/real_ext4.py --cuts 500 --seed 1

power_cut.py models what a file system promises; here the kernel's own ext4 decides.  A recorded run
of power_cut.py trains on an ext4 whose disk writes everything down (logged_disk.py, through a loop
device).  For a cut the disk is built anew: all writes before the last flush, of later ones any
part, whole or torn at 512 bytes.  It is mounted, so ext4 replays its journal; then the store must
open at the last commit acknowledged before the cut, or one that was on its way, bit for bit.  Every
third recovery is recorded and cut again.

First the harness is tried on itself: a store that never syncs must be caught.  Needs Linux, root,
loop devices, FUSE and mfusepy.  Prints what was visited, and fails when that was too little.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from sparse_embed.storage import files, journal
from tests.crash.disk import SECTOR, Event, Recording, RecordingCalls
from tests.crash.logged_disk import FLUSH, MARK, WRITE, read_log
from tests.crash.power_cut import (
    MIX,
    Counts,
    Run,
    State,
    allowed,
    check,
    counted_folds,
    recover_recorded,
    small_machine,
    visited_enough,
)

_DISK_BYTES = 96 << 20
Make = Callable[[Recording, Path], RecordingCalls]


class MarkedRecording(Recording):
    """Marks also go to the logged disk; calls are not kept, the disk keeps what they led to."""

    def __init__(self, marks: Path) -> None:
        super().__init__()
        self._fd = os.open(marks, os.O_WRONLY)

    def mark(self, said: Any) -> None:
        os.pwrite(self._fd, pickle.dumps(said), 0)
        super().mark(said)

    def close(self) -> None:
        os.close(self._fd)


class RealCalls(RecordingCalls):
    """Real calls with real syncs, which die where they are told to."""

    def _log(self, kind: str, **what: Any) -> None:
        pass

    def fsync(self, fd: int) -> None:
        with self._lock:
            self._live()
        if self.syncs:
            files.SystemCalls.fsync(self, fd)

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            self._live()
        if self.syncs:
            files.SystemCalls.fdatasync(self, fd)

    def sync_dir(self, dir_fd: int) -> None:
        with self._lock:
            self._live()
        if self.syncs:
            files.SystemCalls.sync_dir(self, dir_fd)


class NeverSyncs(RealCalls):
    """The planted bug."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.syncs = False


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return done.stdout.strip()


@contextmanager
def mounted(disk: Path, at: Path) -> Iterator[Path]:
    """The ext4 in a file, mounted; mounting replays its journal."""
    at.mkdir()
    loop = _run("losetup", "--find", "--show", disk)
    try:
        _run("mount", "-t", "ext4", loop, at)
        try:
            yield at
        finally:
            _run("umount", at)
    finally:
        _run("losetup", "--detach", loop)
        at.rmdir()


@contextmanager
def logged(disk: Path, log: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """The same, with every write and flush of the disk in `log`: (mount point, file for marks)."""
    fuse = folder / "fuse"
    fuse.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("logged_disk.py"))]
    daemon = subprocess.Popen([*command, str(fuse), str(disk), str(log)])
    try:
        while not (fuse / "disk").exists():
            if daemon.poll() is not None:
                raise RuntimeError("the logged disk did not start: is FUSE there?")
            time.sleep(0.01)
        with mounted(fuse / "disk", folder / "mounted") as at:
            yield at, fuse / "marks"
    finally:
        _run("fusermount3", "-u", fuse)
        daemon.wait(10)
        fuse.rmdir()


def events_of(log: Path) -> list[Event]:
    kinds = {WRITE: "write", FLUSH: "sync", MARK: "mark"}
    return [
        Event("mark", said=pickle.loads(data))
        if kind == MARK
        else Event(kinds[kind], offset=offset, data=data)
        for kind, offset, data in read_log(log)
    ]


def build(base: Path, events: list[Event], cut: int, image: Path, rng: np.random.Generator) -> None:
    """What the disk may hold when `events[:cut]` had happened."""
    shutil.copyfile(base, image)
    flushes = [at for at, event in enumerate(events[:cut]) if event.kind == "sync"]
    sure = flushes[-1] if flushes else 0
    share = float(rng.choice([0.0, 0.1, 0.5, 0.9, 1.0]))
    with image.open("r+b") as disk:
        for at, event in enumerate(events[:cut]):
            if event.kind != "write" or (at >= sure and rng.random() >= share):
                continue
            parts = [(0, event.data)]
            if at >= sure and rng.random() < 0.3:
                whole = range(0, len(event.data), SECTOR)
                parts = [(i, event.data[i : i + SECTOR]) for i in whole if rng.random() < 0.5]
            for begin, data in parts:
                disk.seek(event.offset + begin)
                disk.write(data)


def record_run(
    base: Path, folder: Path, rng: np.random.Generator, counts: Counts, make: Make
) -> list[Event]:
    """One life of a store on a logged disk that begins as `base`."""
    disk, log = folder / "disk", folder / "log"
    shutil.copyfile(base, disk)
    with logged(disk, log, folder) as (at, marks):
        recording = MarkedRecording(marks)
        run = Run(at, rng, counts, lambda _recording, path: make(recording, path), MIX)
        run.recording = recording
        run.path.rmdir()  # the store makes it, and its name must be durable as well
        run.go(40)
        recording.close()
    return _taken(disk, log)


def record_recovery(
    image: Path, folder: Path, found: State, rng: np.random.Generator
) -> list[Event]:
    """The opening of what a cut left, a commit and perhaps a checkpoint."""
    log = folder / "log"
    with logged(image, log, folder) as (at, marks):
        recording = MarkedRecording(marks)
        recover_recorded(at / "m", found, rng, recording, RealCalls)
        recording.close()
    return _taken(image, log)


def _taken(disk: Path, log: Path) -> list[Event]:
    events = events_of(log)
    disk.unlink()
    log.unlink()
    return events


def cut_at(
    base: Path,
    events: list[Event],
    folder: Path,
    counts: Counts,
    rng: np.random.Generator,
    twice: bool,
) -> None:
    """One image, mounted, opened and compared; with `twice` its recovery is cut as well."""
    cut = int(rng.integers(1, len(events) + 1))
    image, keep = folder / "image", folder / "keep"
    build(base, events, cut, image, rng)
    if twice:
        shutil.copyfile(image, keep)
    try:
        found = _check(image, folder, allowed(Recording(events=events), cut), counts, rng)
        if twice and found is not None:
            shutil.copyfile(keep, folder / "again")
            second = record_recovery(folder / "again", folder, found, rng)
            at = int(rng.integers(1, len(second) + 1))
            build(keep, second, at, image, rng)
            states = allowed(Recording(events=second), at) or [found]
            _check(image, folder, states, counts, rng)
            counts.second_cuts += 1
    except Exception as error:
        counts.failures.append(f"cut {cut} of {len(events)}: {type(error).__name__}: {error}")
    finally:
        image.unlink(missing_ok=True)
        keep.unlink(missing_ok=True)


def _check(
    image: Path, folder: Path, states: list[State], counts: Counts, rng: np.random.Generator
) -> State | None:
    with mounted(image, folder / "image.mounted") as at:
        return check(at / "m", states, counts, rng)


def explore(cuts: int, seed: int, make: Make = RealCalls, cuts_a_run: int = 25) -> Counts:
    """Recorded runs, each cut `cuts_a_run` times."""
    rng = np.random.default_rng(seed)
    counts = Counts()
    with tempfile.TemporaryDirectory() as name, small_machine(), counted_folds(counts):
        folder = Path(name)
        base = folder / "base"
        with base.open("wb") as file:
            file.truncate(_DISK_BYTES)
        _run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", base)
        while counts.cuts < cuts:
            budget = 1 << 40 if rng.random() < 0.5 else 0  # with background checkpoints?
            with mock.patch.object(journal.Journal, "used", property(lambda self, b=budget: b)):
                events = record_run(base, folder, rng, counts, make)
            counts.runs += 1
            for _ in range(min(cuts_a_run, cuts - counts.cuts)):
                counts.cuts += 1
                cut_at(base, events, folder, counts, rng, twice=counts.cuts % 3 == 0)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    planted = explore(50, asked.seed, NeverSyncs)
    print(f"planted bug, nothing is ever synced: {len(planted.failures)} of 50 cuts caught it")
    began = time.monotonic()
    counts = explore(asked.cuts, asked.seed)
    print(json.dumps(counts.to_dict() | {"seconds": round(time.monotonic() - began, 1)}, indent=1))
    for failure in counts.failures[:10]:
        print(failure)
    good = planted.failures and not counts.failures and visited_enough(counts, asked.cuts)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
