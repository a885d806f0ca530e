"""`sparse-embed demo`: the whole story on the reader's own Python."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from sparse_embed.cli._output import emit, json_option, progress_bar, table, waiting


@click.command()
@click.option(
    "--path", type=click.Path(path_type=Path), help="Where the store goes; a new directory."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--epochs", type=click.IntRange(1), default=None, help="Visits of every file-identifier pair."
)
@click.option(
    "--keep/--temp", default=True, show_default=True, help="Keep the store, or delete it."
)
@json_option
def demo(path: Path | None, seed: int, epochs: int | None, keep: bool, as_json: bool) -> None:
    """Train a recommender on your Python's standard library.

    Source files are the users and the names in them the items: which names belong into a file? The
    tables are on disk; nothing is downloaded.
    """
    say = _Voice(silent=as_json)
    with tempfile.TemporaryDirectory(prefix="sparse-embed-") as temporary:
        if path is None:
            # Kept stores need a directory that outlives this block.
            parent = Path(tempfile.mkdtemp(prefix="sparse-embed-") if keep else temporary)
            path = parent / "stdlib-names"
        result = _run(path, seed, epochs, keep, as_json, say)
        if not keep:
            import shutil

            shutil.rmtree(path, ignore_errors=True)
    if as_json:
        emit(result, True)


class _Voice:
    """Lines for people; nothing at all with `--json`."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent

    def __call__(self, line: str = "") -> None:
        if not self.silent:
            click.echo(line)


def _run(
    path: Path, seed: int, epochs: int | None, keep: bool, as_json: bool, say: _Voice
) -> dict[str, Any]:
    import time

    started = time.perf_counter()
    with waiting("starting", as_json):
        from sparse_embed import demo as story

    with progress_bar("reading source files", 1, as_json) as advance:
        library = story.read_library(lambda done, total: advance(done / total))
    say(
        f"{len(library.files):,} files of the standard library of Python {library.version} as"
        f" users, {len(library.names):,} names as items, {library.pairs.nnz:,} pairs;"
    )
    say(f"names are hashed to the rows of a table of {story.NUM_ROWS:,} rows")

    with waiting("compiling", as_json):
        compile_seconds = story.compile_kernels(seed)
    say(
        f"waited {compile_seconds:.1f} s for the compiler (it keeps its work: next time is shorter)"
    )
    train, test = story.hold_out(library, seed)
    model = story.make_model(path, seed, epochs)
    total = train.nnz * model.epochs
    with progress_bar("training", total, as_json) as advance:

        def progress(at: Any) -> None:
            advance(at.done, f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.3f}")

        fit_seconds = story.fit(model, train, progress)
    commit = story.close(model)
    say(
        f"trained {model.epochs} epochs in {fit_seconds:.1f} s, {commit} commits;"
        " closed the store and opened it again"
    )
    say()
    with progress_bar("ranking held-out names", test.nnz, as_json) as advance:
        quality = story.compare(path, train, test, lambda done, total: advance(done))
    say(f"one name of each of {test.nnz:,} files was held out: is it among the best guesses?")
    if not as_json:
        table(
            ["", *story.METRICS],
            [[name, *values.values()] for name, values in quality.items()],
        )
    neighbours = story.neighbours(path, library, train)
    say()
    say("names used in the same places (nearest by cosine):")
    for name, nearest in neighbours.items():
        say(f"  {name:<12} {', '.join(nearest)}")
    seconds = time.perf_counter() - started
    say()
    size = story.disk_usage(path)
    if keep:
        say(f"the model: {path}")
        say(
            f"  {size['allocated_bytes'] / 1e6:.1f} MB on disk for tables of"
            f" {size['apparent_bytes'] / 1e9:.1f} GB: rows never trained cost nothing"
        )
        say(f"  sparse-embed info {path}")
        say(f'  np.load("{path}/items.npy", mmap_mode="r")["weight"]')
    say(f"done in {seconds:.0f} s")
    return {
        "files": len(library.files),
        "names": len(library.names),
        "pairs": library.pairs.nnz,
        "python": library.version,
        "seed": seed,
        "epochs": model.epochs,
        "compile_seconds": compile_seconds,
        "fit_seconds": fit_seconds,
        "seconds": seconds,
        "quality": quality,
        "neighbours": neighbours,
        "path": str(path) if keep else None,
        **size,
    }
