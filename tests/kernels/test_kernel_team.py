"""Kernels whose call is made by every thread: chunks are drawn once each, errors come back."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

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


@pytest.mark.parametrize("chunks", [0, 1, 2, 10**6])
def test_the_counter_says_how_many_threads_there_is_work_for(chunks):
    times, counter = np.zeros(CHUNKS, np.int64), _jit.new_counter(chunks)
    marking()(counter, CHUNKS, times)
    assert (times == 1).all()
    drawn_in_vain = counter[0] - CHUNKS  # once by each thread
    assert 1 <= drawn_in_vain <= max(chunks, 1)


def test_an_error_in_one_thread_is_raised():
    times = np.zeros(CHUNKS, np.int64)
    with pytest.raises(ValueError, match="beyond the limit"):
        marking()(_jit.new_counter(), 10, times)
    assert times.sum() == 10
    marking()(_jit.new_counter(), CHUNKS, times)  # and the next call is as good as any
    assert times.sum() == 10 + CHUNKS


PLACES = """
import os, sys
from tests.kernels.test_kernel_team import marking, places, CHUNKS, _jit, np
if sys.argv[1:] == ["one"]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from sparse_embed.kernels import _team
times = np.zeros(CHUNKS, np.int64)
marking()(_jit.new_counter(), CHUNKS, times)
before = places()
for _ in range(300):
    marking()(_jit.new_counter(), CHUNKS, times)
assert (times == 301).all()
assert {thread: places()[thread] for thread in before} == before
assert len(before) > 1
print(_team._caller_works.value)
"""


def places() -> dict[str, set[int]]:
    """The processors that each thread of this process may use."""
    return {thread: os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")}


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux do threads part")
@pytest.mark.parametrize(("layer", "where"), [("tbb", ""), ("workqueue", ""), ("omp", "one")])
def test_threads_that_part_may_use_the_processors_of_before(layer, where):
    if layer != "workqueue":
        pytest.importorskip(f"numba.np.ufunc.{layer}pool", exc_type=ImportError)
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLACES, *([where] if where else [])],
        env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("0" if layer == "workqueue" else "1")
