"""Going on with a fit that another process began: `fit(resume=True)` of a new model of its path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sparse_embed.errors import ArgumentError
from sparse_embed.store import Store


def interrupted_store(path: str | os.PathLike[str], cache_bytes: int | None) -> Store | None:
    """The store at `path`, to be written to; None: there is nothing, or only what a fit leaves that
    was killed before its first commit."""
    if not os.path.exists(path):
        return None
    store = Store.open(path, mode="r+", cache_bytes=cache_bytes)
    if store.last_commit > 0:
        return store
    store.close(checkpoint=False)
    return None


def check_same(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to go on with other arguments.

    Raises:
        ArgumentError: one of them differs.
    """
    for name in sorted({*recorded, *given}):
        if recorded.get(name) != given.get(name):
            raise ArgumentError(
                f"{name}: the fit to be resumed had {recorded.get(name)!r}, got {given.get(name)!r}"
            )
