"""python -m benchmarks list | run SUITE... | compare OLD.json NEW.json | report RESULT.json"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from benchmarks import harness, report

SUITES = ("lookup", "train_step", "size", "startup", "durability")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Benchmarks that check every result before they time it."""


@cli.command("list")
def list_() -> None:
    """The suites."""
    for name in SUITES:
        click.echo(f"{name:12} {importlib.import_module(f'benchmarks.suites.{name}').ABOUT}")


@cli.command()
@click.argument("suites", nargs=-1, type=click.Choice(SUITES))
@click.option("--quick", is_flag=True, help="Small sizes and few rounds: the gates, for CI.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Keep all samples here.")
def run(suites: tuple[str, ...], quick: bool, target: Path | None) -> None:
    """Run suites (all of them when none is named)."""
    done = {}
    for name in suites or SUITES:
        suite = importlib.import_module(f"benchmarks.suites.{name}")
        click.echo(f"{name}: {suite.ABOUT}", err=True)
        try:
            done[name] = suite.run(quick)
        except harness.Disagreement as error:
            raise click.ClickException(f"results disagree, nothing was timed: {error}") from None
        click.echo("  all results agree", err=True)
    command = "python -m benchmarks " + " ".join(sys.argv[1:])
    data = {
        "command": command,
        "environment": harness.environment(),
        "suites": {name: [case.to_dict() for case in cases] for name, cases in done.items()},
    }
    click.echo(report.markdown(data))
    if target is not None:
        harness.write(target, command, done)


@cli.command("report")
@click.argument("result", type=click.Path(exists=True, path_type=Path))
def report_(result: Path) -> None:
    """A result file as Markdown."""
    click.echo(report.markdown(harness.read(result)))


@cli.command()
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path))
def compare(old: Path, new: Path) -> None:
    """Ratios of two result files."""
    click.echo(report.compare(harness.read(old), harness.read(new)))


if __name__ == "__main__":
    cli()
