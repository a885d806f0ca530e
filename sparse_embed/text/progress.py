"""A progress bar on stderr for `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sparse_embed.text.training import FitProgress


@contextmanager
def bar(wanted: bool, total: int) -> Iterator[Callable[[FitProgress], None]]:
    """Yields a function to be called with every FitProgress; it does nothing if not wanted."""
    if not wanted:
        yield lambda at: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("  fit"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as shown:
        task, started = shown.add_task("fit", total=total, note=""), time.monotonic()

        def show(at: FitProgress) -> None:
            speed = at.done / max(time.monotonic() - started, 1e-9)
            held_out = "" if at.score != at.score else f"  held-out {at.score:.3f}"
            note = f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.3f}{held_out}  {speed:,.0f}/s"
            shown.update(task, completed=at.done, note=note)

        yield show
