"""The only place that knows Numba's decorators, its threads and its cache.

Every kernel is a closure made by a factory (`functools.cache`d) whose compile-time constants are
closure cells, and one of these cells is `digest = DIGEST`:

    @functools.cache
    def gather_cpu(dim: int):
        digest = DIGEST

        @team_kernel
        def kernel(records, slots, out):
            _ = digest
            ...
        return kernel

Why: Numba's on-disk cache watches the file that holds a kernel and the values of its closure cells.
It does not see an edit in another file, so a kernel would go on with yesterday's formula.  DIGEST
changes with any byte of any `kernels/*.py`, so such an edit misses the cache (a test holds it).
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import os
import sys
import threading

import numba
import numba.extending
import numpy as np

from sparse_embed.errors import ArgumentError, SparseEmbedError
from sparse_embed.kernels._team import TeamCompiler


def device_function(function):
    """A formula: stays plain Python (a test may call it), and inlines into every kernel.

    Inlining is forced, so that a compile-time `dim` handed down is compile-time inside as well.
    """
    return _inner(function, forceinline=True)


def cold_function(function):
    """As `device_function`, but LLVM decides on inlining: for what runs rarely or once a chunk."""
    return _inner(function)


def _inner(function, **options):
    """As Numba's `register_jitable`, which would try a compile-time int as any int first: with
    functions inside of functions the vain tries double at each level."""
    options |= {"error_model": "numpy", "no_cfunc_wrapper": True}

    @numba.extending.overload(function, jit_options=options, strict=False, prefer_literal=True)
    def implementation(*args):
        return function

    return function


def compiled_as(implementation):
    """Of a formula in plain Python that Numba cannot read: kernels compile `implementation`, of the
    same arguments, in its place."""

    def decorate(function):
        options = {"forceinline": True, "error_model": "numpy", "no_cfunc_wrapper": True}

        @numba.extending.overload(function, jit_options=options, strict=False)
        def chosen(*args):
            return implementation

        return function

    return decorate


def _source_digest() -> int:
    """A 63-bit digest of the sources of this folder (about 0.5 ms)."""
    digest = hashlib.blake2b(digest_size=8)
    folder = os.path.dirname(__file__)
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.py"), recursive=True)):
        with open(path, "rb") as file:
            source = file.read()
        digest.update(f"{os.path.relpath(path, folder)}:{len(source)}:".encode())
        digest.update(source)
    return int.from_bytes(digest.digest(), "little") >> 1


DIGEST: int = _source_digest()


def _compile(function, **options):
    if "digest" not in function.__code__.co_freevars:
        raise TypeError(f"{function.__qualname__} must close over `digest`: see kernels/_jit.py")
    options |= {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable directory for the cache: compile in every process
        return numba.njit(**options)(function)


def team_kernel(function):
    """A kernel that all threads run at once, each with the same arguments.

    It returns nothing.  Threads share the work out by drawing numbers of chunks until none is left
    (`next_chunk`); how long a chunk takes does not matter, nor how many threads there are.  Runs
    without the GIL, divides as NumPy, is kept on disk.  No argument may be reached through another
    one where either is written.
    """
    return _compile(function, pipeline_class=TeamCompiler)


def new_counter(chunks: int = 1 << 30) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """What the threads of one call draw their chunks from: (3,) int64, two zeros and `chunks`.

    Where there is only one chunk, the calling thread takes it and wakes nobody.
    """
    return np.array([0, 0, chunks], np.int64)


def counter_of_items(count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """`new_counter` of a kernel that cuts its `count` short items as it likes: what takes less time
    than waking a thread is not shared."""
    return new_counter(count // 1024)


def serial_kernel(function):
    """As `team_kernel`, on the calling thread only: no threads are started."""
    return _compile(function)


# ---- threads ------------------------------------------------------------------------------------


def _preload_tbb() -> None:
    """Make the TBB of a virtual environment visible: pip puts it where the linker does not look.

    TBB is Numba's first choice already; it survives fork and calls from several Python threads.
    """
    if os.environ.get("NUMBA_THREADING_LAYER", "default") not in ("default", "tbb", "safe"):
        return
    path = os.path.join(sys.prefix, "lib", "libtbb.so.12")
    if os.path.exists(path):
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError:  # another architecture's library: Numba goes on to OpenMP
            return


_preload_tbb()


class _Threads:
    """What the process asked for, and whether it is a child that must not touch its threads."""

    requested: int | None = None
    broken_by_fork: bool = False
    local = threading.local()


def threading_layer() -> str:
    """The threading layer in use: "tbb", "omp" or "workqueue"; "none" before the first kernel."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return "none"


def set_num_threads(num_threads: int) -> None:
    """Let kernels use this many threads, from whichever Python thread they are called.

    Args:
        num_threads: at least 1, at most the number Numba launched (`NUMBA_NUM_THREADS`, by default
            the number of cores).  Results never depend on it.

    Raises:
        ArgumentError: not an integer, or out of this range.
    """
    launched = int(numba.config.NUMBA_NUM_THREADS)
    if isinstance(num_threads, bool) or not hasattr(num_threads, "__index__"):
        raise ArgumentError(f"num_threads: expected an integer, got {num_threads!r}")
    count = num_threads.__index__()
    if not 1 <= count <= launched:
        raise ArgumentError(
            f"num_threads: expected 1 to {launched}, got {count}; Numba launched {launched} threads"
            " in this process (set NUMBA_NUM_THREADS before it starts to launch more)"
        )
    _Threads.requested = count
    guard_fork()


def get_num_threads() -> int:
    """The number of threads that kernels use."""
    return _Threads.requested or int(numba.config.NUMBA_NUM_THREADS)


def guard_fork() -> None:
    """Called by every door to the kernels: refuse in a child whose threads died with the fork.

    GNU OpenMP kills such a child with SIGTERM at its first parallel loop.  TBB and workqueue
    survive.  Also carries `set_num_threads` to the calling thread (Numba keeps it by thread).

    Raises:
        SparseEmbedError: this process was forked after its parent's OpenMP threads had started.
    """
    if _Threads.broken_by_fork:
        raise SparseEmbedError(
            "this process was forked after OpenMP threads had started, and OpenMP does not survive"
            ' that: start it with multiprocessing\'s "spawn" or "forkserver" method, or'
            " `pip install tbb`"
        )
    requested = _Threads.requested
    if requested is not None and getattr(_Threads.local, "applied", None) != requested:
        numba.set_num_threads(requested)
        _Threads.local.applied = requested


def _after_fork_in_child() -> None:
    if threading_layer() == "omp":
        _Threads.broken_by_fork = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
