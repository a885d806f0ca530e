"""`prefetch(wait=False)`: the same results, nothing moved, and the right records asked for."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import read_ahead, rows
from sparse_embed.storage.background import Background

ROWS, DIM, BATCH = 3000, 16, 200


def train(path, ahead: bool) -> np.ndarray:
    """Steps on a table with a cache smaller than it, rows in file, journal and scratch file."""
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, ROWS, BATCH) for _ in range(30)]
    table = se.EmbeddingTable.create(
        path, num_embeddings=ROWS, embedding_dim=DIM, optimizer=se.LazyAdam(), cache_bytes=1
    )
    for i, batch in enumerate(batches):
        if ahead:
            table.prefetch(batches[(i + 1) % 30], wait=False)
        table.update(table.lookup(batch), batch)
        if i % 10 == 4:
            table.commit()
        if i == 15:
            table.checkpoint()
    return table.lookup(np.arange(ROWS))


def test_results_are_the_same(tmp_path):
    np.testing.assert_array_equal(train(tmp_path / "a", True), train(tmp_path / "b", False))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="posix_fadvise")
def test_asks_for_what_is_on_disk_and_moves_nothing(tmp_path, monkeypatch):
    asked, threads = [], []

    def note(places, record_bytes):
        asked.extend(offsets for _, offsets in places)
        threads.append(read_ahead.read_ahead(places, record_bytes))

    monkeypatch.setattr(rows, "read_ahead", note)
    with se.EmbeddingTable.create(
        tmp_path / "t", num_embeddings=ROWS, embedding_dim=DIM, optimizer=se.SGD(0.1)
    ) as table:
        table.assign(np.arange(100), np.ones((100, DIM), np.float32))
    with se.EmbeddingTable.open(tmp_path / "t") as table:
        table.lookup(np.arange(10))
        before = table.info()
        table.prefetch(np.arange(60), wait=False)
        assert sorted(np.concatenate(asked).tolist()) == [4096 + 64 * r for r in range(10, 60)]
        assert table.info() == before
        asked.clear()
        table.prefetch(np.arange(2000, 2100), wait=False)  # never written: holes
        assert not asked
    for thread in threads:
        thread.wait()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="posix_fadvise")
def test_an_interrupted_start_leaves_no_descriptor(tmp_path, monkeypatch):
    """Whether the thread began or not, its descriptors are closed, once."""
    (tmp_path / "f").write_bytes(bytes(8192))
    start = Background.start
    with open(tmp_path / "f", "rb") as file:
        for begun in (False, True):

            def interrupted(thread, begun=begun):
                if begun:
                    start(thread)
                    thread.wait()
                raise KeyboardInterrupt

            monkeypatch.setattr(Background, "start", interrupted)
            open_before = sorted(os.listdir("/proc/self/fd"))
            with pytest.raises(KeyboardInterrupt):
                read_ahead.read_ahead([(file.fileno(), np.array([0, 4096]))], 64)
            assert sorted(os.listdir("/proc/self/fd")) == open_before


def test_in_memory_there_is_nothing_to_do():
    table = se.EmbeddingTable.create(None, num_embeddings=10, embedding_dim=DIM)
    table.prefetch([1, 2], wait=False)
