"""Going on with a fit that another process began: `fit(resume=True)` of a new model of its path."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from sparse_embed.errors import ArgumentError
from sparse_embed.store import Store


def take_up(
    path: str | os.PathLike[str], cache_bytes: int | None, adopt: Callable[[Store], None]
) -> bool:
    """Let `adopt` have the store at `path`, to be written to; it is closed if that raises.

    False: there is nothing, or only what a fit leaves that was killed before its first commit.
    """
    if not os.path.exists(path):
        return False
    store = Store.open(path, mode="r+", cache_bytes=cache_bytes)
    try:
        committed = store.last_commit > 0
        if committed:
            adopt(store)
    except BaseException:
        store.close(checkpoint=False)
        raise
    if not committed:
        store.close(checkpoint=False)
    return committed


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
