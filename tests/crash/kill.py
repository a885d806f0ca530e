"""kill -9 a training process at random instants, reopen, compare, train on.

    python tests/crash/kill.py --kills 200 --seed 1

The child trains two tables and an array in one store with 1 or 2 threads: updates, evictions and
spills, commits waited for and not, checkpoints asked for and in the background, reopenings; now and
then it is a reader beside a writer.  It writes each acknowledged commit to a pipe.  After the kill
the store must open at that commit or a later one, with every row, the optimizer's state, steps,
arrays and metadata as a twin in memory has them that was never killed.

Children are forked where the kernels' threads survive that (TBB), else started anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numba
import numpy as np

import sparse_embed as se
from sparse_embed.storage import ahead, journal, resident
from tests.crash.workload import SMALL_MACHINE, Twin, create, open_store, picture, step, steps_done

PHASES = [
    "starting",
    "opening",
    "updating",
    "evicting",
    "committing",
    "writing ahead",
    "folding",
    "closing",
    "reading",
]
_ACK = struct.Struct("<qq")


def _small_machine(background: bool) -> None:
    for owner, attribute, value in SMALL_MACHINE:
        setattr(owner, attribute, value)
    journal.SEGMENT_BYTES = 60_000
    size = 1 << 40 if background else 0
    journal.Journal.used = property(lambda self: size)  # type: ignore[assignment]


class Child:
    """The process that is killed.  `phase` is shared with its parent."""

    def __init__(self, path: str, pipe: int, phase: mmap.mmap, seed: int) -> None:
        self.path = path
        self.pipe = pipe
        self.phase = phase
        self.rng = np.random.default_rng(seed)
        self.acknowledged = 0
        self.sent: dict[int, int] = {}

    def enter(self, name: str) -> None:
        self.phase[0] = PHASES.index(name)

    def run(self) -> None:
        se.set_num_threads(min(int(self.rng.integers(1, 3)), numba.config.NUMBA_NUM_THREADS))
        _small_machine(background=bool(self.rng.random() < 0.5))
        evict = resident.IndexedSlots._evict

        def watched(slots: Any, victims: Any) -> None:
            before = self.phase[0]
            self.enter("evicting")
            evict(slots, victims)
            self.phase[0] = before

        resident.IndexedSlots._evict = watched  # type: ignore[method-assign]
        write = ahead._write

        def watched_too(core: Any, window: Any) -> None:
            before = self.phase[0]
            self.enter("writing ahead")
            write(core, window)
            self.phase[0] = before

        ahead._write = watched_too
        if self.rng.random() < 0.15:
            self.read()
        else:
            self.train()

    def read(self) -> None:
        while True:
            self.enter("reading")
            with open_store(self.path, "r") as store:
                picture(store)

    def tell(self, store: se.Store) -> None:
        last = store.last_commit
        if last > self.acknowledged:
            self.acknowledged = last
            os.write(self.pipe, _ACK.pack(last, self.sent[last]))

    def train(self) -> None:
        self.enter("opening")
        store = open_store(self.path)
        self.acknowledged = store.last_commit
        while True:
            what = self.rng.random()
            if what < 0.55:
                self.enter("updating")
                step(store, steps_done(store) + 1)
            elif what < 0.9:
                self.enter("committing")
                store._core.finish_flight(wait=True)
                self.tell(store)
                self.sent[store.last_commit + 1] = steps_done(store)
                store.commit(wait=bool(self.rng.random() < 0.6))
            elif what < 0.94:
                self.enter("folding")
                store.checkpoint()
            elif what < 0.96:
                store.rollback()
            else:
                self.enter("closing")
                store._core.finish_flight(wait=True)
                self.tell(store)
                store.close(checkpoint=bool(self.rng.random() < 0.5))
                self.enter("opening")
                store = open_store(self.path)
            self.tell(store)


def _start(path: Path, pipe: int, phase: mmap.mmap, name: str, seed: int, forked: bool) -> int:
    if not forked:
        code = [sys.executable, __file__, "--child", str(path), str(pipe), name, str(seed)]
        return subprocess.Popen(code, pass_fds=(pipe,)).pid
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Child(str(path), pipe, phase, seed).run()
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
        finally:
            os._exit(status)
    return pid


def kill_once(
    path: Path, rng: np.random.Generator, phase: mmap.mmap, name: str, forked: bool
) -> tuple[str, tuple[int, int]]:
    """One child, killed; returns where it was, and its last acknowledgement (commit, steps)."""
    out, into = os.pipe()
    phase[0] = 0
    pid = _start(path, into, phase, name, int(rng.integers(0, 2**31)), forked)
    os.close(into)
    if not forked:
        while phase[0] == 0:
            time.sleep(0.001)
    wait = rng.choice([0.01, 0.05, 0.2]) * rng.random()
    time.sleep(float(wait))
    if rng.random() < 0.5:  # at a chosen kind of moment, if it comes
        want = int(rng.integers(1, len(PHASES)))
        until = time.monotonic() + 0.1
        while time.monotonic() < until and phase[0] != want:
            pass
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise AssertionError("the child died by itself")
    data = b""
    while part := os.read(out, 1 << 16):
        data += part
    os.close(out)
    whole = len(data) // _ACK.size * _ACK.size
    acknowledged = _ACK.unpack(data[whole - _ACK.size : whole]) if whole else (0, 0)
    return PHASES[phase[0]], acknowledged


def run(
    folder: Path, kills: int, seed: int, forked: bool | None = None, least_acknowledged: int = 0
) -> dict[str, Any]:
    """Kill `kills` children of one store after another; everything is checked after each.

    Goes on (up to 20 times as many) until children acknowledged `least_acknowledged` commits: on a
    machine that still compiles, the first ones are killed before they come to any.
    """
    rng = np.random.default_rng(seed)
    path = folder / "m"
    twin, counts, mismatches = Twin(), Counter[str](), []
    kept, newer, acknowledged_commits, states = (0, 0), 0, 0, set()
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder) as shared, contextlib.ExitStack() as undo:
        for owner, attribute, _ in (
            *SMALL_MACHINE,
            (journal, "SEGMENT_BYTES", None),
            (journal.Journal, "used", None),
        ):
            undo.callback(setattr, owner, attribute, vars(owner)[attribute])
        _small_machine(background=False)
        shared.write(bytes(4096))
        shared.flush()
        phase = mmap.mmap(shared.fileno(), 4096)
        create(path).close()
        for n in range(20 * kills):
            if n >= kills and acknowledged_commits >= least_acknowledged:
                break
            by_fork = _survive_a_fork() if forked is None else forked
            where, told = kill_once(path, rng, phase, shared.name, by_fork)
            counts[where] += 1
            if told[0] > kept[0]:
                acknowledged_commits += told[0] - kept[0]
                kept = told
            store = open_store(path)
            try:
                at, steps = store.last_commit, steps_done(store)
                states.add((at, steps))
                newer += at > kept[0]
                if at < kept[0]:
                    mismatches.append(f"kill {n}: commit {at}, acknowledged {kept[0]}")
                elif at == kept[0] and steps != kept[1]:
                    mismatches.append(f"kill {n}: commit {at} has {steps} steps, not {kept[1]}")
                elif picture(store) != twin.picture(steps):
                    mismatches.append(f"kill {n} while {where}: commit {at} reads wrongly")
                store.verify()
                step(store, steps + 1)
                kept = (store.commit(), steps + 1)
                if picture(store) != twin.picture(steps + 1):
                    mismatches.append(f"kill {n} while {where}: training on differs")
            finally:
                store.close(checkpoint=bool(rng.random() < 0.3))
        phase.close()
    return {
        "kills": sum(counts.values()),
        "kills_while": dict(counts),
        "mismatches": mismatches,
        "acknowledged_commits": acknowledged_commits,
        "recovered_states": len(states),
        "newer_than_acknowledged": newer,
        "steps": kept[1],
        "forked": by_fork,
        "seconds": round(time.monotonic() - began, 1),
    }


def _survive_a_fork() -> bool:
    """Do this process's kernel threads?  Asked anew each time: they start with the first kernel."""
    try:
        return numba.threading_layer() == "tbb"
    except ValueError:
        return True


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        path, pipe, name, seed = sys.argv[2:]
        with open(name, "r+b") as shared:
            Child(path, int(pipe), mmap.mmap(shared.fileno(), 4096), int(seed)).run()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where the store lives (default: the temporary folder)")
    parser.add_argument("--spawn", action="store_true", help="start children anew, not by fork")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        facts = run(Path(folder), asked.kills, asked.seed, False if asked.spawn else None)
    print(json.dumps(facts, indent=1))
    return 1 if facts["mismatches"] or facts["acknowledged_commits"] < asked.kills // 4 else 0


if __name__ == "__main__":
    raise SystemExit(main())
