"""Threads: the same bits for any number of them, and clear refusals."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels import _jit

ROOT = Path(__file__).parents[1]

DIGEST_OF_EVERYTHING = """
import sys
from tests.test_threads import digest_of_everything
from sparse_embed.kernels._jit import set_num_threads
for count in (4, 3, 2, 1):
    set_num_threads(count)
    print(digest_of_everything())
"""


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = str(ROOT)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        text=True,
        capture_output=True,
        timeout=300,
    )


def digest_of_everything() -> str:
    """A training step over hot rows, long bags and many chunks; all results in one digest."""
    from sparse_embed import ops
    from sparse_embed.optim import LazyAdam
    from tests.cases import hot_batch, records, zipf

    sha = hashlib.sha256()
    rng = np.random.default_rng(0)
    optimizer = LazyAdam(clip_norm=1.0)
    for indices in (zipf(rng, 5000, 40_000), hot_batch().indices):
        rec = records(5000, 7, optimizer)
        offsets = np.unique(np.append(rng.integers(0, len(indices), 900), [0, len(indices)]))
        grad = rng.standard_normal((len(offsets) - 1, 7)).astype(np.float32)
        padding = int(indices[5])
        args = (rec, indices, indices, offsets)
        sha.update(ops.lookup_bags(*args, None, "mean", padding).tobytes())
        sha.update(ops.max_positions(*args, padding).tobytes())
        merged = ops.merge(indices, padding)
        sha.update(merged.positions.tobytes())
        coefficients = ops.bag_coefficients(indices, offsets, None, "mean", padding)
        sha.update(ops.backward(merged, coefficients, grad, None).tobytes())
        rest = (coefficients, grad, None, optimizer, 1, 0.1)
        ops.update(rec, merged.indices, merged, 0, len(merged), *rest)
        sha.update(rec.records.tobytes())
        dots = ops.dots(rec, indices, indices, grad, coefficients.bag_ids, padding)
        sha.update(dots.tobytes())
        sha.update(ops.scores(rec.records[:, :7].copy(), grad[:9], "cosine").tobytes())
    return sha.hexdigest()


def test_same_bits_for_1_2_3_and_4_threads_and_any_layer():
    expected = digest_of_everything()
    for layer in ("default", "workqueue"):
        run = _python(DIGEST_OF_EVERYTHING, NUMBA_NUM_THREADS="4", NUMBA_THREADING_LAYER=layer)
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == [expected] * 4


@pytest.mark.parametrize("count", [0, -1, 10**6, 1.0, "2", None, True])
def test_bad_thread_counts_are_refused(count):
    with pytest.raises(ArgumentError, match="num_threads"):
        _jit.set_num_threads(count)


def test_too_many_threads_names_the_remedy():
    with pytest.raises(ArgumentError, match="NUMBA_NUM_THREADS"):
        _jit.set_num_threads(10**6)


def test_set_num_threads_holds_for_other_python_threads():
    code = """
import threading, numba
from sparse_embed.kernels import _jit
_jit.set_num_threads(2)
seen = []
def work():
    _jit.guard_fork()
    seen.append(numba.get_num_threads())
thread = threading.Thread(target=work); thread.start(); thread.join()
print(seen, _jit.get_num_threads(), _jit.threading_layer() != "")
"""
    run = _python(code, NUMBA_NUM_THREADS="3")
    assert run.stdout.split() == ["[2]", "2", "True"], run.stderr


FORK = """
import os, sys
import numpy as np
from sparse_embed import ops
from sparse_embed.errors import SparseEmbedError
from sparse_embed.kernels import _jit
if sys.argv[1] == "started":
    ops.dropout_scale(0, 1, 100, 0.5)
pid = os.fork()
if pid == 0:
    try:
        ops.dropout_scale(0, 1, 100, 0.5)
    except SparseEmbedError as error:
        assert "OpenMP" in str(error)
        os._exit(3)
    os._exit(0)
_, status = os.waitpid(pid, 0)
print(_jit.threading_layer(), os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("when", ["started", "fresh"])
@pytest.mark.parametrize("layer", ["omp", "default"])
def test_a_forked_child_is_told_and_not_killed(layer, when):
    """GNU OpenMP would kill it; the other layers survive a fork, and then it simply works."""
    code = FORK.replace("sys.argv[1]", repr(when))
    run = _python(code, NUMBA_THREADING_LAYER=layer, PYTHONWARNINGS="ignore")
    if "No threading layer could be loaded" in run.stderr:
        pytest.skip("Numba was built without OpenMP")
    assert run.returncode == 0, run.stderr
    used, code_of_child = run.stdout.split()
    assert int(code_of_child) == (3 if when == "started" and used == "omp" else 0)
