"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of oracle files; tests that need it are skipped by name where it is absent.

    SPARSE_EMBED_SHARED_DATA says where it is, else it lies beside the repository.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("SPARSE_EMBED_SHARED_DATA", beside))
    if not path.is_dir():
        pytest.skip(f"no oracle data at {path} (set SPARSE_EMBED_SHARED_DATA)")
    return path
