"""The machine's ceilings: C where a compiler is there, else plain Numba; `language()` says which.

A ceiling does the memory traffic that nobody can avoid and nothing else: no checks, no sorting, no
first weights.  The prefetch distance is tried out on the caller's own batch, the best one is kept.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SOURCE = Path(__file__).with_name("ceilings.c")
_DISTANCES = (2, 4, 8, 16, 32)
_INT = ctypes.c_int64
EPS = {"lazy_adam": 1e-8, "adagrad": 1e-10, "row_wise_adagrad": 1e-10, "sgd": 0.0}

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@lru_cache(maxsize=1)
def compiler() -> str | None:
    """The C compiler in use, if any; SPARSE_EMBED_NO_CC=1 does without."""
    if os.environ.get("SPARSE_EMBED_NO_CC"):
        return None
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


def language() -> str:
    """ "C (gcc ...)" or "Numba"."""
    if compiler() is None or _library(16) is None:
        return "Numba"
    done = subprocess.run([str(compiler()), "--version"], capture_output=True, text=True)
    return f"C ({done.stdout.splitlines()[0]})" if done.stdout else "C"


def label(what: str) -> str:
    """A ceiling's name among the competitors: "C: ..." or "Numba: ..."."""
    return f"{language().split()[0]}: {what}"


@lru_cache(maxsize=32)
def _library(dim: int) -> ctypes.CDLL | None:
    found = compiler()
    if found is None:
        return None
    folder = tempfile.mkdtemp(prefix="ceilings-")
    target = Path(folder) / f"ceilings{dim}.so"
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
    done = subprocess.run(
        [found, *flags, f"-DDIM={dim}", str(_SOURCE), "-o", str(target), "-lm"],
        capture_output=True, check=False,
    )  # fmt: skip
    library = ctypes.CDLL(str(target)) if done.returncode == 0 else None
    shutil.rmtree(folder)
    return library


def _at(array: NDArray[Any] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def best_distance(run: Callable[[int], object], tries: int = 4) -> int:
    """The prefetch distance with the quickest run."""
    quickest = {distance: float("inf") for distance in _DISTANCES}
    for _ in range(tries):
        for distance in _DISTANCES:
            begin = time.perf_counter()
            run(distance)
            quickest[distance] = min(quickest[distance], time.perf_counter() - begin)
    return min(quickest, key=lambda distance: quickest[distance])


class Ceilings:
    """Kernels on `threads` threads for rows of `dim` floats."""

    def __init__(self, dim: int, threads: int) -> None:
        self._dim = dim
        self._threads = threads
        self._c = _library(dim)
        self._sums = np.empty((0, dim), np.float32)

    def _out(self, bags: int) -> Floats:
        """Where sums go: kept, as ours is, or every call would pay for pages that are new to it."""
        if len(self._sums) < bags:
            self._sums = np.empty((bags, self._dim), np.float32)
        return self._sums[:bags]

    def copy(self, to: Floats, source: Floats) -> None:
        if self._c is not None:
            self._c.stream_copy(_at(to), _at(source), _INT(source.size), self._threads)
        else:
            from benchmarks import ceilings_numba

            ceilings_numba.copy(to, source)

    def gather_sum(
        self,
        records: Floats,
        indices: Ints,
        offsets: Ints,
        weights: Floats | None = None,
        mean: bool = False,
        ahead: int = 16,
    ) -> Floats:
        """(B, D) sums of the rows of bags, valid until the next ones."""
        out = self._out(len(offsets) - 1)
        if self._c is None:
            from benchmarks import ceilings_numba

            ceilings_numba.gather_sum(records, indices, offsets, weights, mean, out)
            return out
        self._c.gather_sum(
            _at(records), _INT(records.strides[0] // 4), _at(indices), _at(offsets),
            _INT(len(offsets) - 1), _at(weights), int(mean), _at(out), _INT(ahead), self._threads,
        )  # fmt: skip
        return out

    def copy_records(self, records: Floats, rows: Ints, out: Floats, ahead: int = 4) -> None:
        """out[i] = records[rows[i]]"""
        if self._c is None:
            from benchmarks import ceilings_numba

            ceilings_numba.copy_records(records, rows, out)
            return
        self._c.copy_records(
            _at(records), _INT(records.strides[0] // 4), _at(rows), _INT(len(rows)), _at(out),
            _INT(ahead), self._threads,
        )  # fmt: skip

    def gather_narrow(
        self, dtype: str, records: Floats, indices: Ints, offsets: Ints, ahead: int = 16
    ) -> Floats | None:
        """(B, D) sums of bags of "float16", "bfloat16" or "int8" rows, valid until
        the next ones; None without a compiler."""
        if self._c is None:
            return None
        out = self._out(len(offsets) - 1)
        getattr(self._c, f"gather_{dtype}")(
            _at(records), _INT(records.strides[0]), _at(indices), _at(offsets),
            _INT(len(offsets) - 1), _at(out), _INT(ahead), self._threads,
        )  # fmt: skip
        return out

    def update_rows(
        self, name: str, records: Floats, rows: Ints, grad: Floats, rate: float, ahead: int = 4
    ) -> None:
        """One update of distinct rows by the optimizer `name` (of `EPS`), gradients given."""
        if self._c is None:
            from benchmarks import ceilings_numba

            ceilings_numba.UPDATES[name](
                records, rows, grad, np.float32(rate), np.float32(EPS[name])
            )
            return
        getattr(self._c, f"{name}_rows")(
            _at(records), _INT(records.strides[0] // 4), _at(rows), _INT(len(rows)), _at(grad),
            ctypes.c_float(rate), ctypes.c_float(EPS[name]), _INT(ahead), self._threads,
        )  # fmt: skip

    def merge(self, grad: Floats, rows: Ints, bags: NDArray[np.int32], room: Room) -> None:
        """Sort (row, bag) by row and sum the gradients of each row into room.sums."""
        if self._c is None:
            from benchmarks import ceilings_numba

            ceilings_numba.merge(grad, rows, bags, room.starts, room.unique, room.sums)
            return
        self._c.sort_pairs(
            _at(rows), _at(bags), _INT(len(rows)), room.bits, _at(room.rows[0]), _at(room.bags[0]),
            _at(room.rows[1]), _at(room.bags[1]), self._threads,
        )  # fmt: skip
        last = (room.bits - 1) // 12 & 1
        self._c.gather_grads(
            _at(grad), _at(room.bags[last]), _at(room.starts), _INT(room.unique), _at(room.sums),
            self._threads,
        )  # fmt: skip

    def random_reads(self, fd: int, at: Ints, size: int, threads: int) -> None:
        """Read `size` bytes at each place of a file.  Raises LookupError without a C compiler."""
        if self._c is None:
            raise LookupError("no C compiler")
        self._c.random_reads.restype = ctypes.c_int64
        failed = self._c.random_reads(fd, _at(at), _INT(len(at)), _INT(size), threads)
        if failed:
            raise OSError(f"{failed} of {len(at)} reads failed")


class Room:
    """Memory for `Ceilings.merge` of one batch; where each row's run begins is given to it."""

    def __init__(self, rows: Ints, dim: int) -> None:
        unique, counts = np.unique(rows, return_counts=True)
        self.unique = len(unique)
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.bits = max(int(rows.max(initial=1)).bit_length(), 1)
        self.rows = [np.empty(len(rows), np.int64) for _ in range(2)]
        self.bags = [np.empty(len(rows), np.int32) for _ in range(2)]
        self.sums = np.zeros((self.unique, dim), np.float32)
