"""Fixtures of the storage tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sparse_embed.storage import files, fold, resident
from sparse_embed.storage.journal import Journal
from tests.crash import workload
from tests.storage.injected import InjectedCalls


@pytest.fixture(autouse=True)
def _few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_SMALLEST", workload.FEW_SLOTS)


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], InjectedCalls]:
    """inject(when) replaces the system calls of the package for this test."""

    def put(when: Any) -> InjectedCalls:
        calls = InjectedCalls(when)
        monkeypatch.setattr(files, "CALLS", calls)
        return calls

    return put


@pytest.fixture
def fold_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints in the background begin with the fourth commit."""
    monkeypatch.setattr(fold, "_JOURNAL_BUDGET", 1 << 20)
    monkeypatch.setattr(fold, "_LIMIT", float("inf"))
    monkeypatch.setattr(Journal, "used", property(lambda self: 1 << 40))
