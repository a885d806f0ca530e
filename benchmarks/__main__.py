"""python -m benchmarks list | run SUITE... | compare OLD.json NEW.json | report RESULT.json..."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import click

from benchmarks import comparison, environment, harness, machine, report

SUITES = (
    "lookup", "update", "train_step", "multi_table", "dtypes", "storage", "durability", "keys",
    "recommend", "text", "startup", "scaling", "size", "torch_step", "cuda",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Benchmarks that check every result before they time it."""


@cli.command("list")
def list_() -> None:
    """The suites."""
    for name in SUITES:
        click.echo(f"{name:12} {importlib.import_module(f'benchmarks.suites.{name}').ABOUT}")


@cli.command()
@click.argument("suites", nargs=-1, type=click.Choice(SUITES), metavar="[SUITE]...")
@click.option("--quick", is_flag=True, help="Small sizes and few rounds: the gates, for CI.")
@click.option("--long", is_flag=True, help="Also blocks of 10,000 steps: many minutes.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Keep all samples here.")
@click.option("--rounds", type=click.IntRange(1), help="Of every race, instead of each suite's.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="On the disk to measure; default: the temporary folder.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A corpus for `keys`: .tsv.xz, text in the third column.",
)
@click.option("--only", metavar="REGEX", help="Cases of `durability` with such names.")
@click.option("--threads", type=click.IntRange(1), help="Of everybody; default: all cores.")
@click.option("--num-embeddings", type=click.IntRange(1000), help="Rows, of the main workload.")
@click.option("--embedding-dim", type=click.IntRange(1))
@click.option("--batch-size", type=click.IntRange(1), help="Bags.")
@click.option("--bag-size", type=click.IntRange(1), help="Row numbers a bag.")
@click.option("--alpha", type=click.FloatRange(0), help="Zipf's exponent; 0: uniform.")
def run(suites: tuple[str, ...], target: Path | None, threads: int | None, **asked: Any) -> None:
    """Run suites (all of them when none is named).

    Exit codes: 0 done, 1 results disagree or a suite failed, 2 wrong usage.
    """
    import sparse_embed as se

    only = asked["only"]
    if only is not None and suites != ("durability",):
        raise click.UsageError("--only is for `run durability` alone: other suites run all cases")
    if threads is not None:
        se.set_num_threads(threads)
    settings = harness.Settings(**asked)
    data: dict[str, Any] = {
        # Files by their names alone: where they lie says nothing.
        "command": " ".join(
            ["python -m benchmarks", *(word.split("/")[-1] for word in sys.argv[1:])]
        ),
        "environment": environment.environment(),
        "machine": machine.ceilings(settings.quick),
        "quick": settings.quick,
        "suites": {},
        "failed": {},
    }
    click.echo(report.head(data))
    for name in suites or SUITES:
        _run(name, settings, data, target)
    if only is not None and not data["suites"]["durability"] and not data["failed"]:
        raise click.ClickException(f"--only {only!r}: no case has such a name")
    if data["failed"]:
        raise click.ClickException(f"failed: {', '.join(data['failed'])}")


def _run(name: str, settings: harness.Settings, data: dict[str, Any], target: Path | None) -> None:
    suite = importlib.import_module(f"benchmarks.suites.{name}")
    click.echo(f"\n{name}: {suite.ABOUT}", err=True)
    cases: list[dict[str, Any]] = []
    data["suites"][name] = cases
    begin = time.perf_counter()
    try:
        for case in suite.run(settings):
            cases.append(case.to_dict())
            if target is not None:  # after each case: what was measured stays, whatever comes
                harness.write(target, data)
            click.echo(f"  {time.perf_counter() - begin:6.1f} s  {case.name}", err=True)
    except harness.Disagreement as error:
        data["failed"][name] = f"results disagree, nothing was timed: {error}"
        click.echo(f"  {data['failed'][name]}", err=True)
    except Exception as error:  # the other suites go on; the exit code tells
        data["failed"][name] = f"{type(error).__name__}: {error}"
        click.echo(traceback.format_exc(), err=True)
    else:
        click.echo("  all results agree", err=True)
    if target is not None:
        harness.write(target, data)
    click.echo(report.suite(name, cases))


@cli.command("report")
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Markdown here, plots beside it.")
@click.option(
    "--remarks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Markdown whose sections go under the suites of the same name.",
)
@click.option("--json", "target", type=click.Path(path_type=Path), help="The files as one.")
def report_(
    results: tuple[Path, ...], output: Path | None, remarks: Path | None, target: Path | None
) -> None:
    """Result files as Markdown; with --output, and matplotlib installed, with plots."""
    data = report.merged([_read(path) for path in results])
    if target is not None:
        harness.write(target, data)
    said = report.sections(remarks.read_text(encoding="utf-8")) if remarks else {}
    if output is None:
        click.echo(report.markdown(data, {}, said))
        return
    try:
        from benchmarks import plots

        drawn = plots.draw(data, output.parent / "plots")
    except ImportError as error:
        drawn = {}
        click.echo(f"no plots: {error}; pip install -e '.[plot]'", err=True)
    output.write_text(report.markdown(data, drawn, said), encoding="utf-8")


@cli.command()
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path))
@click.option("--threshold", default=0.1, show_default=True, help="Smaller changes are no news.")
def compare(old: Path, new: Path, threshold: float) -> None:
    """Ratios of two result files.

    Exit codes: 0 nothing of ours is slower, 1 something is, beyond noise; 2 nothing to compare.
    """
    try:
        found = comparison.compare(_read(old), _read(new), threshold)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(comparison.text(found))
    if any(row.verdict == comparison.SLOWER and row.ours for row in found.rows):
        sys.exit(1)


def _read(path: Path) -> dict[str, Any]:
    try:
        return harness.read(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    cli()
