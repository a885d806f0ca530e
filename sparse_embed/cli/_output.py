"""What commands print: a table for people, one JSON object for machines, progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")

Advance = Callable[..., None]
"""Called with the units done so far, and optionally `note=` a few words and `total=`."""


def plain(value: Any) -> Any:
    """The same value in JSON's types: NumPy scalars, arrays, paths and dataclasses too."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy scalar or array
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN and no infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def emit(data: Mapping[str, Any], as_json: bool, title: str = "") -> None:
    """Print a (nested) mapping."""
    data = plain(data)
    if as_json:
        click.echo(json.dumps(data, ensure_ascii=False))
        return
    if title:
        click.echo(title)
    _lines(data, 1 if title else 0)


def _lines(data: Mapping[str, Any], depth: int) -> None:
    flat = {key: _text(value) for key, value in data.items() if not isinstance(value, dict)}
    width = max((len(key) for key in flat), default=0)
    for key, value in data.items():
        if isinstance(value, dict):
            click.echo(f"{'  ' * depth}{key}{'' if value else ': none'}")
            _lines(value, depth + 1)
        else:
            click.echo(f"{'  ' * depth}{key:<{width}}  {flat[key]}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) or "none"
    return str(value)


def table(columns: list[str], rows: list[list[Any]], *, indent: int = 2) -> None:
    """Print rows under their headings; numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate(columns):
        numbers = all(isinstance(row[place], int | float) for row in rows)
        grid.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*[_cell(value) for value in row])
    Console(highlight=False).print(Padding(grid, (0, 0, 0, indent), expand=False))


def _cell(value: Any) -> str:
    from rich.markup import escape

    return f"{value:.3f}" if isinstance(value, float) else escape(_text(value))


@contextmanager
def progress_bar(
    description: str, total: float | None, as_json: bool = False, *, transient: bool = False
) -> Iterator[Advance]:
    """A bar on stderr while the block runs; silent with `--json`.  `transient` bars vanish.

    Yields:
        advance(done, note="", total=...): how far it is, and of how much if that is known late.
    """
    if as_json:
        yield lambda done, note="", total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("  {task.description:<22}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=transient) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(done: float, note: str = "", total: float | None = total) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield advance


@contextmanager
def waiting(description: str, as_json: bool = False) -> Iterator[None]:
    """A moving bar for a step of unknown length; on a terminal only, and gone afterwards."""
    with progress_bar(description, None, as_json or not sys.stderr.isatty(), transient=True):
        yield
