"""Deterministic training of a small store: two tables, arrays, metadata.

Step n always does the same to the same state, so a store that was cut off and went on must equal,
bit for bit, a twin in memory that was never disturbed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import sparse_embed as se
from sparse_embed.storage import ahead, bulk, fold, frame, frame_writer, journal, resident, scratch

SHAPES = {"users": (700, 4), "items": (300, 8)}  # records of 48 bytes and of 64
CACHE = {"users": 1, "items": 1 << 20}  # users: the fewest slots there may be, so rows spill
FEW_SLOTS = 48


def part_is_due(window: ahead.Window) -> bool:
    """Far more parts than the rule would make: before every second change of rows, up to three."""
    due = window.steps % 2 == 1 and len(window.parts) < 3
    return due and all(part.pending.done for part in window.parts)


SMALL_MACHINE = (  # as (owner, attribute, value): all that large stores do happens in small ones
    (resident, "_SMALLEST", FEW_SLOTS),  # rows that leave memory
    (scratch, "_SEGMENT_BYTES", 256),  # to a file that is tidied, and often
    (scratch, "_FEW", -30),
    (fold, "_JOURNAL_BUDGET", 1 << 18),  # checkpoints in the background,
    (fold, "_LIMIT", float("inf")),  # beside commits
    (frame, "DIGEST_BLOCK", 4096),  # frames of several chunks, written by their thread
    (frame_writer, "DIGEST_BLOCK", 4096),
    (frame_writer, "CHUNK", 4096),
    (journal, "CHUNK", 4096),
    (bulk, "LEAST", 0),  # checkpoints that move many records at once
    (bulk, "WINDOW", 4 * 4096),
    (journal, "WORTH", 0),  # files of segments that are used again
    (ahead, "WORTH", 0),  # commits that are written ahead
    (ahead, "_GAIN", 0.0),
    (ahead, "_due", part_is_due),
)


def optimizers() -> dict[str, object]:
    return {"users": se.LazyAdam(0.1), "items": se.Adagrad(0.2)}


def add_table(store: se.Store, name: str) -> se.EmbeddingTable:
    rows, dim = SHAPES[name]
    return store.create_table(
        name,
        num_embeddings=rows,
        embedding_dim=dim,
        optimizer=optimizers()[name],
        seed=3,
        cache_bytes=CACHE[name] if store.path else None,
    )


def create(path: Path | str | None) -> se.Store:
    """A new store with its two tables; None: the twin."""
    store = se.Store.create(path)
    for name in SHAPES:
        add_table(store, name)
    return store


def open_store(path: Path | str, mode: str = "r+", at_commit: int | None = None) -> se.Store:
    return se.Store.open(path, mode, at_commit=at_commit, cache_bytes=CACHE)


def step(store: se.Store, n: int) -> None:
    """Step n: updates, now and then an assignment, a reset, a new learning rate."""
    rng = np.random.default_rng(n)
    for name, table in sorted(store.tables.items()):
        rows, dim = SHAPES[name]
        indices = (rng.zipf(1.3, 150) * 7919 + rng.integers(0, rows, 150)) % rows
        table.update(rng.standard_normal((150, dim)).astype(np.float32), indices)
        if n % 5 == 0:
            some = rng.choice(rows, 20, replace=False)
            table.assign(some, rng.standard_normal((20, dim)).astype(np.float32))
        if n % 7 == 0:
            table.reset(rng.choice(rows, 10, replace=False))
        if n % 11 == 0:
            table.lr = 0.05 + (n % 13) / 100
    store.arrays["head"] = rng.standard_normal((3, 1 + n % 4))
    store.arrays["n"] = np.int64(n)
    store.metadata["n"] = n


def picture(store: se.Store) -> str:
    """A digest of everything that a commit promises."""
    digest = hashlib.sha256()
    for name in sorted(store.tables):
        table = store.tables[name]
        rows = np.arange(table.num_embeddings)
        digest.update(f"{name} {table.step} {table.lr!r}".encode())
        digest.update(table.lookup(rows).tobytes())
        for field, values in sorted(table.state(rows).items()):
            digest.update(field.encode() + values.tobytes())
    for name in sorted(store.arrays):
        array = store.arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    digest.update(json.dumps(store.metadata, sort_keys=True).encode())
    return digest.hexdigest()


def twin(steps: Iterable[int], tables: Iterable[str] = SHAPES) -> se.Store:
    """A store in memory after these steps."""
    store = se.Store.create(None)
    for name in tables:
        add_table(store, name)
    for n in steps:
        step(store, n)
    return store


class Twin:
    """The undisturbed run: `picture(n)` is the state after steps 1 to n."""

    def __init__(self) -> None:
        self._store = create(None)
        self._pictures = [picture(self._store)]

    def picture(self, n: int) -> str:
        while len(self._pictures) <= n:
            step(self._store, len(self._pictures))
            self._pictures.append(picture(self._store))
        return self._pictures[n]


def steps_done(store: se.Store) -> int:
    return int(store.metadata.get("n", 0))
