"""What `sparse-embed demo` does, step by step and without a word: cli/demo.py does the talking.

Users are the source files of the running Python's standard library, items the names in them (of
functions, attributes, variables), so "user took item" is "file uses name".
"""

from __future__ import annotations

import keyword
import os
import re
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparse_embed.errors import SparseEmbedError
from sparse_embed.keys import KeyHasher
from sparse_embed.recommend import (
    BPR,
    FitProgress,
    Popularity,
    Recommender,
    evaluate,
    leave_one_out,
)

NUM_ROWS = 1 << 24
"""Rows of the item table.  Names are hashed into it; only rows that are used cost anything."""

METRICS = ("hr@10", "ndcg@10", "recall@20")
_EMBEDDING_DIM = 64
_EPOCHS = 50
_LEAST_FILES = 3  # a name is an item if this many files use it
_LEAST_NAMES = 5  # a file is a user if it uses this many items
_ASKED = ("socket", "threading", "encode", "mkdir", "sqrt", "lineno", "Widget", "assertEqual")
_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "_bundled"}
)

# Strings and comments are matched first, so that only names in code are left for the group.
_NAME = re.compile(
    r"""(?:\b[rRbBfFuU]{1,2})?
        (?: \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3}
          | "(?:\\.|[^"\\\n])*"       | '(?:\\.|[^'\\\n])*' )
      | \#[^\n]*
      | \b([A-Za-z_]\w*)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Library:
    """The standard library as interactions.

    names[i] is hashed to row rows[i]; pairs is (files, NUM_ROWS) CSR.
    """

    version: str
    files: list[str]
    names: list[str]
    rows: npt.NDArray[np.int64]
    pairs: scipy.sparse.csr_array


def names_in(source: str) -> set[str]:
    """The names that a Python source uses: no keywords, no dunder names, none shorter than 3."""
    return {
        name
        for name in _NAME.findall(source)
        if len(name) >= 3
        and not keyword.iskeyword(name)
        and not (name.startswith("__") and name.endswith("__"))
    }


def read_library(
    progress: Callable[[int, int], None] | None = None, root: str | None = None
) -> Library:
    """Read every source file of the standard library, its own tests left out.

    Args:
        progress: called with (files read, files to read).
        root: another directory of Python files; None: the running Python's standard library.

    Raises:
        SparseEmbedError: fewer than 20 files with names in common were found.
    """
    directory = sysconfig.get_path("stdlib") if root is None else root
    paths = _source_files(directory)
    found: list[tuple[str, set[str]]] = []
    for number, path in enumerate(paths):
        try:
            source = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:  # not readable by this user: the others will do
            continue
        found.append((os.path.relpath(path, directory), names_in(source)))
        if progress is not None:
            progress(number + 1, len(paths))
    uses = Counter(name for _, names in found for name in names)
    names = sorted(name for name, number in uses.items() if number >= _LEAST_FILES)
    kept = set(names)
    users = [(file, both) for file, used in found if len(both := used & kept) >= _LEAST_NAMES]
    if len(users) < 20:
        raise SparseEmbedError(
            f"{directory}: expected Python source files, found {len(users)} with names in common;"
            " is this Python installed without its sources?"
        )
    rows = KeyHasher(NUM_ROWS)(names)
    row_of = dict(zip(names, rows.tolist(), strict=True))
    indices = [sorted({row_of[name] for name in used}) for _, used in users]
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in indices])])
    columns = np.concatenate([np.array(part, np.int64) for part in indices])
    ones = np.ones(len(columns), np.float32)
    pairs = scipy.sparse.csr_array((ones, columns, indptr), shape=(len(users), NUM_ROWS))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Library(version, [file for file, _ in users], names, rows, pairs)


def _source_files(directory: str) -> list[str]:
    paths: list[str] = []
    for parent, children, files in os.walk(directory):
        children[:] = sorted(name for name in children if name not in _SKIPPED)
        paths += [os.path.join(parent, name) for name in sorted(files) if name.endswith(".py")]
    return paths


def hold_out(library: Library, seed: int) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Train and test: one random name of each file is held out."""
    return leave_one_out(library.pairs, seed=seed, min_interactions=_LEAST_NAMES)


def make_model(path: str | os.PathLike[str], seed: int, epochs: int | None = None) -> BPR:
    """A recommender on a new store at `path`."""
    return BPR(
        embedding_dim=_EMBEDDING_DIM,
        epochs=_EPOCHS if epochs is None else epochs,
        seed=seed,
        path=path,
        commit_interval=0,  # after every epoch: what a commit costs is part of the story
    )


def compile_kernels(seed: int) -> float:
    """Do everything once on eight users, so that compiling is over; the seconds it took."""
    started = time.perf_counter()
    taken = scipy.sparse.csr_array(np.kron(np.eye(2), np.ones((4, 4))) - np.eye(8))
    with tempfile.TemporaryDirectory(prefix="sparse-embed-") as directory:
        with make_model(os.path.join(directory, "warm-up"), seed, 1) as model:
            model.fit(taken, show_progress=False)
        with BPR.load(os.path.join(directory, "warm-up")) as model:
            model.recommend([0], taken[[0]], k=1)
            model.similar_items([0], k=1)
    return time.perf_counter() - started


def fit(
    model: BPR, train: scipy.sparse.csr_array, progress: Callable[[FitProgress], None] | None = None
) -> float:
    """Train; the seconds it took."""
    started = time.perf_counter()
    model.fit(train, progress=progress, show_progress=False)
    return time.perf_counter() - started


def close(model: BPR) -> int:
    """Fold the commits into the data files and close; the number of the last commit."""
    commit = int(model.store.last_commit)
    model.close()
    return commit


def compare(
    path: str | os.PathLike[str],
    train: scipy.sparse.csr_array,
    test: scipy.sparse.csr_array,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """The held-out quality of the most used names, and of the model reopened from disk."""
    with BPR.load(path) as model:
        candidates: dict[str, Recommender] = {
            "most used names": Popularity(train),
            "sparse_embed BPR": model,
        }
        quality = {}
        for name, candidate in candidates.items():
            found = evaluate(candidate, train, test, progress=progress)
            quality[name] = {metric: found[metric] for metric in METRICS}
    return quality


def neighbours(
    path: str | os.PathLike[str], library: Library, train: scipy.sparse.csr_array, k: int = 5
) -> dict[str, list[str]]:
    """The names nearest to a few that most readers know."""
    # Two names may share a row: the one that sorts last speaks for it.
    name_of = dict(zip(library.rows.tolist(), library.names, strict=True))
    trained = set(train.indices.tolist())
    row_of = {name: row for row, name in name_of.items() if row in trained}
    asked = [name for name in _ASKED if name in row_of]
    with BPR.load(path) as model:
        ids, _ = model.similar_items([row_of[name] for name in asked], k=k + 1)
    return {
        name: [name_of[int(row)] for row in found if row >= 0 and name_of[int(row)] != name][:k]
        for name, found in zip(asked, ids, strict=True)
    }


def disk_usage(path: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes that the files of a store claim, and bytes that the disk holds for them."""
    status = [entry.stat() for entry in os.scandir(path) if entry.is_file(follow_symlinks=False)]
    return {
        "apparent_bytes": sum(file.st_size for file in status),
        "allocated_bytes": sum(file.st_blocks * 512 for file in status),
    }
