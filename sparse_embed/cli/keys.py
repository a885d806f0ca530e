"""`sparse-embed keys`: what is in a file of keys, before a table is sized for it."""

from __future__ import annotations

import gzip
from pathlib import Path

import click

from sparse_embed.cli._output import emit, json_option, table, waiting


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--words", is_flag=True, help="Every word is a key, not every line.")
@click.option("--num-embeddings", type=click.IntRange(1), default=1 << 20, show_default=True)
@click.option("--num-hashes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
def keys(
    file: Path, words: bool, num_embeddings: int, num_hashes: int, seed: int, as_json: bool
) -> None:
    """Count the keys in FILE (one a line; gzip is fine) and what sharing rows would cost.

    A collision is a key without a row of its own in a table of that size.
    """
    with waiting("starting", as_json):
        from sparse_embed.keys import KeyHasher

        hasher = KeyHasher(num_embeddings, num_hashes, seed)
    with waiting("counting", as_json):
        census = hasher.collisions(_read(file, words))
    if as_json:
        emit(census.as_dict(), True)
        return
    emit(
        {
            "keys": census.keys,
            "distinct": census.distinct,
            "rows": census.num_embeddings,
            "rows used": f"{census.used_rows:,} (expected {census.expected_used_rows:,.0f})",
            "collisions": f"{census.collisions:,} (expected {census.expected_collisions:,.0f})",
            "their traffic": f"{census.clashing_traffic:.3%} of all keys",
        },
        False,
    )
    needed = [row for row in census.rows_needed if row.num_hashes == num_hashes]
    if census.distinct > 1 and needed:
        click.echo("rows for a clean share of the traffic")
        table(
            ["clean", "rows"], [[f"{row.clean_traffic:.1%}", row.num_embeddings] for row in needed]
        )
    if census.worst:
        click.echo("busiest keys that share a row")
        table(
            ["key", "times", "and", "times"],
            [
                [clash.keys[0], clash.counts[0], clash.keys[1], clash.counts[1]]
                for clash in census.worst
            ],
        )


def _read(file: Path, words: bool) -> list[str]:
    with file.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            text = (gzip.decompress(raw.read()) if zipped else raw.read()).decode("utf-8-sig")
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise click.ClickException(f"{file}: not UTF-8 text: {error}") from error
    found = text.split() if words else [line for line in text.splitlines() if line]
    if not found:
        raise click.ClickException(f"{file}: no keys found")
    return found
