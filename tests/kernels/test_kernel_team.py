"""Kernels whose call is made by every thread: chunks are drawn once each, errors come back."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from sparse_embed.kernels import _jit
from sparse_embed.kernels._intrinsics import next_chunk

CHUNKS = 1000


@functools.cache
def marking():
    digest = _jit.DIGEST

    @_jit.team_kernel
    def mark(counter, limit, times):
        _ = digest
        while True:
            chunk = next_chunk(counter, 0)
            if chunk >= times.shape[0]:
                break
            if chunk >= limit:
                raise ValueError("beyond the limit")
            times[chunk] += 1

    return mark


@pytest.fixture
def threads():
    before = _jit.get_num_threads()
    yield
    _jit.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
def test_each_chunk_is_drawn_once_whatever_the_threads(count, threads):
    _jit.set_num_threads(min(count, _jit.get_num_threads()))
    times, counter = np.zeros(CHUNKS, np.int64), _jit.new_counter()
    assert marking()(counter, CHUNKS, times) is None
    assert (times == 1).all()
    assert CHUNKS < counter[0] <= CHUNKS + _jit.get_num_threads()


def test_an_error_in_one_thread_is_raised():
    times = np.zeros(CHUNKS, np.int64)
    with pytest.raises(ValueError, match="beyond the limit"):
        marking()(_jit.new_counter(), 10, times)
    assert times.sum() == 10
    marking()(_jit.new_counter(), CHUNKS, times)  # and the next call is as good as any
    assert times.sum() == 10 + CHUNKS
