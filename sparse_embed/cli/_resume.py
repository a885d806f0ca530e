"""`--resume` beside other options: a training goes on with the settings it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource


def check_resumed(model: Any, output: Path, stored: dict[str, Any]) -> None:
    """Refuse an option of the command line that says other than the stored model, and close it.

    Args:
        model: loaded from `output`.
        stored: its settings, by the names of options; others are not compared.
    """
    context = click.get_current_context()
    for option in context.command.params:
        name = str(option.name)
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        given = context.params[name]
        if name in stored and given != stored[name]:
            model.close()
            raise click.ClickException(
                f"{option.opts[-1]}: the training in {output} was begun with {stored[name]},"
                f" got {given}; --resume goes on with what it was begun with"
            )
