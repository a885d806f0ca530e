"""Row numbers and rows x dim beyond 2^31, in every operation; cost follows the rows."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import rows as rows_module
from tests.cases import assert_same_bits
from tests.twin import TwinTable

HUGE = 6_000_000_000


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_beyond_2_31(tmp_path, on_disk):
    rows = np.array([0, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 5, HUGE - 1])
    table = se.EmbeddingTable.create(
        tmp_path / "t" if on_disk else None,
        num_embeddings=HUGE,
        embedding_dim=16,
        optimizer=se.LazyAdam(0.1),
        cache_bytes=4 << 20,
    )
    rng = np.random.default_rng(0)
    virgin = table.lookup(rows)
    assert len({row.tobytes() for row in virgin}) == len(rows)  # no two rows are one
    grads = rng.standard_normal((3, len(rows), 16)).astype(np.float32)
    for grad in grads:
        table.update(grad, rows)
    small = TwinTable(len(rows), 16, se.Zeros(), se.LazyAdam(0.1), 0)
    for grad in grads:
        small.update(grad, np.arange(len(rows)))
    # The same steps from other starting points: Adam's moments do not see the weights.
    for name, lane in (("exp_avg", 16), ("exp_avg_sq", 32)):
        assert_same_bits(table.state(rows)[name], small.rec.records[:, lane : lane + 16])
    assert np.array_equal(table.trained_indices(), rows)
    found, score = table.nearest(table.lookup(rows), 1)
    assert np.array_equal(found[:, 0], rows)
    assert score[:, 0] == pytest.approx(1.0, abs=1e-6)
    if on_disk:
        expected = table.lookup(rows)
        table.commit()
        table.close()
        data = np.load(tmp_path / "t" / "rows.npy", mmap_mode="r")
        assert data.shape == (HUGE,)
        assert_same_bits(np.asarray(data["weight"][rows]), expected)
        allocated = (tmp_path / "t" / "rows.npy").stat().st_blocks * 512
        assert allocated <= 4096 * (2 * len(rows) + 2)
    table.close()


def test_rows_times_dim_beyond_2_31_in_memory(monkeypatch):
    """A resident table whose float offsets pass 2^31: 2.3e9 floats, a few pages of them touched."""
    monkeypatch.setattr(rows_module, "_DENSE", 1e-8)  # lay it out by row number at the second call
    rows = 36_000_000
    table = se.EmbeddingTable.create(
        None, num_embeddings=rows, embedding_dim=64, optimizer=se.SGD(1.0), cache_bytes=10 << 30
    )
    some = np.array([0, 33_554_431, 33_554_432, rows - 1])
    before = table.lookup(some)
    assert table.info()["resident"] == "identity"
    table.update(np.ones((4, 64), np.float32), some)
    assert_same_bits(table.lookup(some), before - np.float32(1))
    bags = table.lookup(some, [0, 2, 4], mode="mean")
    assert_same_bits(bags[1], (before[2] - 1 + (before[3] - 1)) / np.float32(2))
    table.close()


def test_disk_use_follows_the_rows(tmp_path):
    """The same rows in tables a thousand times apart in size take the same space."""
    used = []
    rows = np.arange(0, 900_000, 450)
    for size in (10**6, 10**9):
        table = se.EmbeddingTable.create(
            tmp_path / str(size),
            num_embeddings=size,
            embedding_dim=64,
            optimizer=se.LazyAdam(0.1),
            cache_bytes=32 << 20,
        )
        table.update(np.ones((len(rows), 64), np.float32), rows)
        table.commit()
        table.close()
        files = (tmp_path / str(size)).iterdir()
        used.append(sum(f.stat().st_blocks * 512 for f in files))
    assert used[1] <= used[0] * 1.01 + 65536


def test_as_many_rows_as_an_int64_can_name():
    rows = np.array([0, 2**62, 2**63 - 2])
    table = se.EmbeddingTable.create(
        None, num_embeddings=2**63 - 1, embedding_dim=3, optimizer=se.RowWiseAdam(0.1)
    )
    before = table.lookup(rows)
    table.update(np.ones((3, 3), np.float32), rows)
    assert (table.lookup(rows) < before).all()
    assert np.array_equal(table.trained_indices(), rows)
    table.close()
