"""Memory of large results: used again once nobody holds it, and never before."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed import results

ROWS, DIM = 20_000, 64  # 5 MB


@pytest.fixture(autouse=True)
def none_kept():
    results._buffers.clear()
    yield
    results._buffers.clear()


def test_what_nobody_holds_is_used_again():
    first = results.empty(ROWS, DIM)
    assert first.shape == (ROWS, DIM) and first.dtype == np.float32 and first.flags.c_contiguous
    place = first.ctypes.data
    del first
    again = results.empty(ROWS - 1, DIM)
    assert again.ctypes.data == place


@pytest.mark.parametrize("hold", [
    lambda array: array,
    lambda array: array[5:7, ::2],
    lambda array: memoryview(array),
    lambda array: array.reshape(-1).view(np.int32),
])  # fmt: skip
def test_what_somebody_holds_is_not(hold):
    held = hold(results.empty(ROWS, DIM))
    for _ in range(4):
        assert not np.shares_memory(np.asarray(held), results.empty(ROWS, DIM))


def test_few_are_kept_and_none_that_is_small_or_huge():
    held = [results.empty(ROWS, DIM) for _ in range(5)]
    assert len(results._buffers) == 2
    del held
    results.empty(3, DIM)
    results.empty(results.MOST // 4, 2)
    assert sum(4 * buffer.size for buffer in results._buffers) == 2 * 4 * ROWS * DIM


def test_one_that_is_far_too_large_is_not_taken():
    results.empty(results.MOST // 4, 1)
    assert results.empty(results.LEAST // 4, 1).base.size == results.LEAST // 4
    assert results.empty(results.MOST // 8, 1).base.size == results.MOST // 4


def test_lookups_of_several_threads_keep_theirs():
    table = se.EmbeddingTable.create(
        None, num_embeddings=50, embedding_dim=DIM, optimizer=se.SGD(1.0)
    )
    table.update(np.repeat(np.arange(50.0, dtype=np.float32)[:, None], DIM, 1), np.arange(50))
    rows = table.lookup(np.arange(50))
    wrong = []

    def work(row: int) -> None:
        for _ in range(8):
            found = table.lookup(np.full(ROWS, row))
            wrong.extend([] if (found == rows[row]).all() else [row])

    threads = [threading.Thread(target=work, args=(row,)) for row in (3, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
