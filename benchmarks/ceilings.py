"""The machine's ceilings, in C where a compiler is there; None where not."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SOURCE = Path(__file__).with_name("ceilings.c")


def compiler() -> str | None:
    """The C compiler in use, if any."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


@lru_cache(maxsize=8)
def _library(dim: int) -> ctypes.CDLL | None:
    found = compiler()
    if found is None:
        return None
    folder = tempfile.mkdtemp(prefix="ceilings-")
    target = Path(folder) / f"ceilings{dim}.so"
    flags = ["-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", f"-DDIM={dim}"]
    done = subprocess.run(
        [found, *flags, str(_SOURCE), "-o", str(target), "-lm"], capture_output=True, check=False
    )
    library = ctypes.CDLL(str(target)) if done.returncode == 0 else None
    shutil.rmtree(folder)
    return library


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Ceilings:
    """C kernels on `threads` threads for rows of `dim` floats.  Raises LookupError without cc."""

    def __init__(self, dim: int, threads: int) -> None:
        library = _library(dim)
        if library is None:
            raise LookupError("no C compiler")
        self._library = library
        self._dim = dim
        self._pool = ThreadPoolExecutor(threads)
        self._threads = threads

    def _split(self, count: int, work: Callable[[int, int], None]) -> None:
        cuts = [count * i // self._threads for i in range(self._threads + 1)]
        list(self._pool.map(work, cuts[:-1], cuts[1:]))

    def gather_sum(
        self,
        records: NDArray[np.float32],
        indices: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        out = np.empty((len(offsets) - 1, self._dim), np.float32)
        stride = ctypes.c_int64(records.strides[0] // 4)

        def work(first: int, last: int) -> None:
            self._library.gather_sum(
                _pointer(records),
                stride,
                _pointer(indices),
                _pointer(offsets),
                ctypes.c_int64(first),
                ctypes.c_int64(last),
                _pointer(out),
            )

        self._split(len(offsets) - 1, work)
        return out

    def adam_rows(
        self,
        records: NDArray[np.float32],
        rows: NDArray[np.int64],
        grad: NDArray[np.float32],
        rate: float,
    ) -> None:
        stride = ctypes.c_int64(records.strides[0] // 4)
        numbers = [ctypes.c_float(x) for x in (rate, 0.9, 0.999, 1e-8)]

        def work(first: int, last: int) -> None:
            self._library.adam_rows(
                _pointer(records),
                stride,
                _pointer(rows),
                _pointer(grad),
                ctypes.c_int64(first),
                ctypes.c_int64(last),
                *numbers,
            )

        self._split(len(rows), work)
