"""Ctrl-C at random instants of updates, lookups, commits and checkpoints.

    python tests/crash/interrupts.py --rounds 500 --seed 1

A timer's signal raises KeyboardInterrupt wherever Python happens to be.  After it, `rollback()`
(needed or not) must give the last commit, and so must a reopening; a commit that had returned is
never lost.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import sparse_embed as se
from sparse_embed.storage import journal
from tests.crash.workload import SMALL_MACHINE, Twin, create, open_store, picture, step, steps_done

_HUNG = 300  # seconds; a round takes 0.02
armed = False


def _interrupt(number: int, frame: Any) -> None:
    if armed:
        raise KeyboardInterrupt


def _train(store: se.Store, rng: np.random.Generator) -> None:
    while True:
        what = rng.random()
        if what < 0.5:
            step(store, steps_done(store) + 1)
        elif what < 0.6:
            store.tables["users"].lookup(rng.integers(0, 700, 200))
            store.tables["items"].lookup(rng.integers(0, 300, 200))
        elif what < 0.93:
            store.commit(wait=bool(rng.random() < 0.6))
        elif what < 0.97:
            store.checkpoint()
        else:
            store.rollback()


def _count_down(rng: np.random.Generator) -> None:
    """Interrupt in 0 to 100 ms, and each second after: Python drops one that falls in a __del__."""
    global armed
    armed = True
    seconds = float(rng.choice([0.002, 0.01, 0.03, 0.1]) * rng.random() + 1e-5)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)


def _interrupted(store: se.Store, rng: np.random.Generator) -> bool:
    global armed
    store._core.window.expected = 4  # steps: as if the last commit had had so many and been large
    try:
        _count_down(rng)
        _train(store, rng)
    except KeyboardInterrupt:
        return True
    except SystemError as error:  # a compiled function did not look whether it was interrupted
        return "exception set" in str(error)
    finally:
        armed = False


def run(path: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Interrupt a training loop `rounds` times."""
    logging.disable(logging.WARNING)
    for owner, attribute, value in SMALL_MACHINE:
        setattr(owner, attribute, value)
    journal.SEGMENT_BYTES = 60_000
    journal.Journal.used = property(lambda self: 1 << 40)  # type: ignore[assignment]
    rng = np.random.default_rng(seed)
    twin, store = Twin(), create(path)
    for n in range(1, 12):  # all kernels are loaded: Numba's own locks do not survive an interrupt
        step(store, n)
        store.commit(wait=n % 2 == 0)
        store.rollback()
    store.checkpoint()
    store.close()
    store = open_store(path)
    twin.picture(steps_done(store))
    store.commit(wait=False)
    store.checkpoint()
    signal.signal(signal.SIGALRM, _interrupt)
    mismatches: list[str] = []
    interrupted = failed = reopened = commits = parts = 0
    append = journal.Journal.append

    def counted(self: Any, *args: Any, **keywords: Any) -> Any:
        nonlocal parts
        pending = append(self, *args, **keywords)
        parts += pending in self.parts
        return pending

    journal.Journal.append = counted  # type: ignore[method-assign]
    began = time.monotonic()
    for n in range(rounds):
        faulthandler.dump_traceback_later(_HUNG, exit=True)  # a deadlock says where
        before = store.last_commit
        interrupted += _interrupted(store, rng)
        last = store.last_commit
        commits += last - before
        try:
            store.info()
        except se.StoreFailedError:
            failed += 1
        except se.StoreError as error:
            mismatches.append(f"round {n}: {error}")
        store.rollback()
        if store.last_commit < last:
            mismatches.append(f"round {n}: back at commit {store.last_commit} after {last}")
        if picture(store) != twin.picture(steps_done(store)):
            mismatches.append(f"round {n}: rolled back to something else")
        if rng.random() < 0.3:
            last = store.last_commit
            store.close(checkpoint=bool(rng.random() < 0.5))
            store = open_store(path)
            reopened += 1
            if store.last_commit != last or picture(store) != twin.picture(steps_done(store)):
                mismatches.append(f"round {n}: reopened at something else")
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)  # or it rings when Python has taken its handler back
    steps = steps_done(store)
    store.close()
    return {
        "rounds": rounds,
        "interrupted": interrupted,
        "failed_stores": failed,
        "commits": commits,
        "parts_written_ahead": parts,
        "steps": steps,
        "reopened": reopened,
        "mismatches": mismatches,
        "seconds": round(time.monotonic() - began, 1),
    }


def run_in_process(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """The same in a process of its own: an interrupt may fall into anything that runs."""
    code = [sys.executable, __file__, "--rounds", str(rounds), "--seed", str(seed)]
    done = subprocess.run([*code, "--folder", str(folder)], capture_output=True, text=True)
    if not done.stdout:
        raise AssertionError(done.stderr)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        facts = run(Path(folder) / "m", asked.rounds, asked.seed)
    print(json.dumps(facts, indent=1))
    return 1 if facts["mismatches"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
