"""What the figures depend on: the machine, versions, pages, threads, and which peers are there."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

PEERS = (
    "torch", "fbgemm-gpu-cpu", "implicit", "thinc", "spacy", "fasttext-wheel", "mmh3",
    "rectools-lightfm", "pyarrow", "scikit-learn", "lightfm", "tensorflow", "numba-cuda",
)  # fmt: skip


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _chosen(text: str) -> str:
    """The word in brackets of `always [madvise] never`."""
    return text.split("[", 1)[1].split("]", 1)[0] if "[" in text else text or "unknown"


def _cpu() -> tuple[str, str]:
    """Model, and the vector instructions that matter here."""
    model, flags = platform.processor() or platform.machine(), ""
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = value
    family = _read_field("/proc/cpuinfo", "cpu family"), _read_field("/proc/cpuinfo", "model")
    if all(family):
        model += f" (family {family[0]}, model {family[1]})"
    vectors = [name for name in ("avx2", "avx512f") if name in flags.split()]
    return model, " ".join(vectors) or "unknown"


def _read_field(path: str, name: str) -> str:
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The checked-out commit, with a + where files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "--short", "HEAD") or "unknown"
    return found + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def environment() -> dict[str, Any]:
    import numba

    import sparse_embed as se
    from benchmarks.ceilings import language
    from sparse_embed.kernels._jit import get_num_threads, threading_layer

    # The threading layer is chosen when the first kernel runs.
    se.EmbeddingTable.create(None, num_embeddings=1, embedding_dim=64).lookup([0], [0, 1])

    model, vectors = _cpu()
    memory = _read_field("/proc/meminfo", "MemTotal")
    return {
        "cpu": model,
        "vectors": vectors,
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "page_bytes": os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None,
        "huge_pages": _chosen(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "threads": get_num_threads(),
        "threading_layer": threading_layer(),
        "ceilings_in": language(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "sparse_embed": se.__version__,
        "commit": commit(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d"),
        "peers": {package: _version(package) or "absent" for package in PEERS},
    }
