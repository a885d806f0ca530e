"""The command line.  Commands import what they need when they run, so `--help` starts no Numba.

Exit codes: 0 done; 1 the operation failed or `verify` found damage (one line on stderr);
2 the command line was wrong; 130 interrupted.
"""

from __future__ import annotations

import faulthandler
import os
import sys

import click

from sparse_embed.cli.classify import predict, test
from sparse_embed.cli.demo import demo
from sparse_embed.cli.doctor import doctor
from sparse_embed.cli.keys import keys
from sparse_embed.cli.models import recommend, train
from sparse_embed.cli.tables import create, export, import_, info, lookup, nearest, quantize, verify
from sparse_embed.cli.vectors import vectors

__all__ = ["main"]


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from sparse_embed import __version__

        click.echo(f"sparse-embed {__version__}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Version."
)
def cli() -> None:
    """Sparse embedding tables for huge vocabularies."""


for _command in (
    demo,
    create,
    info,
    verify,
    lookup,
    nearest,
    export,
    quantize,
    import_,
    train,
    recommend,
    test,
    predict,
    keys,
    doctor,
):
    cli.add_command(_command)
train.add_command(vectors)


def _is_ours(error: BaseException) -> bool:
    from sparse_embed.errors import SparseEmbedError

    return isinstance(error, SparseEmbedError)


def main() -> None:
    """Run the command line, and turn expected failures into one line and an exit code."""
    faulthandler.enable()
    try:
        code = cli.main(prog_name="sparse-embed", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:  # `sparse-embed ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (OSError, MemoryError, ImportError) as error:
        # Our own OSErrors say in words what the number stands for.
        named = getattr(error, "strerror", None) if _is_ours(error) else None
        click.echo(f"error: {named or error or type(error).__name__}", err=True)
        code = 1
    except Exception as error:
        from sparse_embed.errors import ArgumentError

        if not _is_ours(error):
            raise
        click.echo(f"error: {error}", err=True)
        code = 2 if isinstance(error, ArgumentError) else 1
    sys.exit(code)
