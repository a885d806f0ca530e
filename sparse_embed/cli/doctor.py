"""`sparse-embed doctor`: what this machine gives to the engine."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import click

from sparse_embed.cli._output import emit, json_option, waiting


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, threads, caches, memory and CUDA, and what stands in the way of speed."""
    with waiting("starting threads", as_json):
        report = _report()
    emit(report, as_json)


def _report() -> dict[str, Any]:
    from importlib.metadata import version

    from sparse_embed import __version__, device
    from sparse_embed.kernels import _jit

    advice: list[str] = []
    layer = _start_threads()
    if layer == "workqueue":
        advice.append("pip install tbb: workqueue cannot serve two Python threads at once")
    if layer == "omp":
        advice.append("pip install tbb: OpenMP threads do not survive fork")
    packages = {name: version(name) for name in ("numba", "llvmlite", "numpy", "scipy", "mmh3")}
    cache = _cache_directory(_jit.__file__)
    if cache is None:
        advice.append("set NUMBA_CACHE_DIR to a writable directory, or each process compiles anew")
    pages = _huge_pages()
    if pages == "never":
        advice.append("transparent huge pages are off: lookups in large tables will be slower")
    return {
        "sparse-embed": __version__,
        "python": f"{platform.python_version()} ({sys.implementation.name}, {platform.machine()})",
        "system": f"{platform.system()} {platform.release()}",
        "packages": packages,
        "threads": {
            "cores": os.cpu_count(),
            "usable": _usable_cores(),
            "used by kernels": _jit.get_num_threads(),
            "layer": layer,
        },
        "kernel cache": cache or "none",
        "memory": {**_memory(), "huge pages": pages},
        "cuda": device.cuda_status(),
        "advice": advice or "nothing stands in the way",
    }


def _start_threads() -> str:
    """Run a parallel loop, since Numba chooses its threading layer only then."""
    import numba
    import numpy as np

    from sparse_embed.kernels import _jit

    @numba.njit(parallel=True)
    def total(values: Any) -> Any:
        result = 0.0
        for k in numba.prange(len(values)):
            result += values[k]
        return result

    total(np.ones(64))
    return _jit.threading_layer()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cache_directory(kernel_file: str) -> str | None:
    """Where Numba keeps compiled kernels: NUMBA_CACHE_DIR, else beside the sources, else none."""
    configured = os.environ.get("NUMBA_CACHE_DIR")
    path = Path(configured) if configured else Path(kernel_file).parent / "__pycache__"
    parent = next(place for place in (path, *path.parents) if place.exists())
    return str(path) if os.access(parent, os.W_OK) else None


def _huge_pages() -> str:
    """The kernel's setting for transparent huge pages: always, madvise or never."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else "unknown"


def _memory() -> dict[str, Any]:
    from sparse_embed.storage import budget

    return {
        "limit": f"{budget.memory_limit() / 2**30:.1f} GiB",
        "for resident rows": f"{budget.process_budget().total / 2**30:.1f} GiB",
    }
