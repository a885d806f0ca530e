"""The compile cache on disk: hit by a second process, and never stale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_embed import ops
from sparse_embed.kernels import _jit, adam, lookup
from sparse_embed.optim import SGD
from tests.cases import records

PACKAGE = Path(_jit.__file__).parents[1]

STEP = """
import numpy as np
from sparse_embed import ops
from sparse_embed.initializers import Zeros
from sparse_embed.optim import SGD
rec = ops.Records(np.ones((2, 4), np.float32), np.zeros(2, np.uint8), 3, Zeros(), 0)
one = np.array([1])
ops.apply(rec, one, one, np.ones((1, 3), np.float32), SGD(0.5), 1, 0.5)
stats = ops._update_kernel(rec, SGD(0.5)).stats
print(rec.records[1, 0], sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def _run(folder: Path) -> tuple[float, int, int]:
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "NUMBA_CACHE_DIR": str(folder / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", STEP], env=environment, cwd=folder, text=True, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    weight, hits, misses = run.stdout.split()
    return float(weight), int(hits), int(misses)


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    target = tmp_path / "sparse_embed"
    (target / "kernels").mkdir(parents=True)
    for path in PACKAGE.glob("*.py"):
        shutil.copy(path, target)
    for path in (PACKAGE / "kernels").glob("*.py"):
        shutil.copy(path, target / "kernels")
    (target / "__init__.py").write_text("")  # the operations alone, whatever else the package has
    return tmp_path


def test_second_process_compiles_nothing_and_an_edited_formula_counts(copied_package):
    assert _run(copied_package) == (0.5, 0, 1)
    assert _run(copied_package) == (0.5, 1, 0)
    formula = copied_package / "sparse_embed" / "kernels" / "sgd.py"
    source = formula.read_text()
    edited = source.replace("return w - lr * (", "return w + lr * (")
    assert edited != source
    formula.write_text(edited)  # the kernel is in update.py, which stays as it is
    assert _run(copied_package) == (1.5, 0, 1)
    formula.write_text(source)
    assert _run(copied_package)[0] == 0.5


def test_digest_is_a_63_bit_integer():
    assert 0 < _jit.DIGEST < 2**63


def test_a_kernel_without_the_digest_is_refused():
    with pytest.raises(TypeError, match="digest"):
        _jit.team_kernel(lambda x: x)


def test_second_call_compiles_nothing():
    rec = records(20, 7, SGD(0.1))
    indices, offsets = np.arange(12), np.array([0, 4, 12])
    grad = np.ones((2, 7), np.float32)

    def step(weights):
        ops.lookup_bags(rec, indices, indices, offsets, weights, "mean", ops.NO_PADDING)
        merged = ops.merge(indices, ops.NO_PADDING)
        coefficients = ops.bag_coefficients(indices, offsets, weights, "mean", ops.NO_PADDING)
        rows = merged.indices
        ops.update(rec, rows, merged, 0, len(rows), coefficients, grad, None, SGD(0.1), 1, 0.1)
        ops.apply(rec, rows, rows, ops.backward(merged, coefficients, grad, None), SGD(0.1), 2, 0.1)

    for weights in (None, np.ones(12, np.float32)):
        step(weights)
    kernels = (
        lookup.pool_cpu(7, False, "float32"),
        lookup.pool_cpu(7, True, "float32"),
        ops._update_kernel(rec, SGD(0.1)),
    )
    before = [len(kernel.signatures) for kernel in kernels]
    for weights in (None, np.ones(12, np.float32)):
        step(weights)
    assert [len(kernel.signatures) for kernel in kernels] == before == [1, 1, 1]


def test_formulas_are_plain_python():
    """A formula can be called, and stepped through, without Numba."""
    moment = adam.adam_moment(np.float32(1.0), np.float32(3.0), np.float32(0.5))
    assert moment == np.float32(2.0)
    assert isinstance(moment, np.float32)
