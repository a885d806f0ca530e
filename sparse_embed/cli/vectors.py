"""`sparse-embed train vectors FILE`, and `nearest MODEL WORD` for what it writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_embed.cli._output import emit, json_option, progress_bar, table, waiting
from sparse_embed.cli._resume import check_resumed

if TYPE_CHECKING:
    from sparse_embed.text.vectors import VectorProgress


@click.command("vectors")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of the model; must not exist, but with --resume.",
)
@click.option("--embedding-dim", type=click.IntRange(1), default=100, show_default=True)
@click.option("--cbow", is_flag=True, help="CBOW in place of skip-gram.")
@click.option("--window", type=click.IntRange(1), default=5, show_default=True)
@click.option("--min-count", type=click.IntRange(1), default=5, show_default=True)
@click.option("--negative", type=click.IntRange(1), default=5, show_default=True)
@click.option("--sample", type=click.FloatRange(0), default=1e-4, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--lr", type=click.FloatRange(0), help="At the start; 0.05 by default.")
@click.option("--minn", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--maxn", type=click.IntRange(0), default=6, show_default=True, help="0: whole words only."
)
@click.option("--num-buckets", type=click.IntRange(1), default=2_000_000, show_default=True)
@click.option(
    "--scheme", type=click.Choice(["fasttext", "floret"]), default="fasttext", show_default=True
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with an interrupted training in --output.")
@click.option("--word2vec", type=click.Path(path_type=Path), help="Also write .vec, .txt or .bin.")
@json_option
def vectors(
    file: Path,
    output: Path,
    cbow: bool,
    resume: bool,
    word2vec: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn word vectors from FILE, running text with words between white space.

    Words are taken as they stand: lower-case them and part them from punctuation first. A window
    never crosses a line. The file may be larger than memory, and packed (.gz, .bz2, .xz). The model
    is committed after every epoch; --resume goes on from the last commit.
    """
    if output.exists() and not resume:
        raise click.ClickException(f"{output} exists already; choose another --output, or --resume")
    with waiting("starting", as_json):
        from sparse_embed.text import WordVectors

    if resume:
        model = WordVectors.load(output, "r+")
        stored = {**model.options, "cbow": not model.options["sg"], "lr": model.optimizer.lr}
        check_resumed(model, output, stored)
    else:
        model = WordVectors(sg=not cbow, path=output, **options)
    losses: list[float] = []
    with model:
        with progress_bar("counting words", None, as_json) as advance:
            started: list[float] = []

            def show(at: VectorProgress) -> None:
                if at.total == 0:
                    advance(at.done, f"{at.done:,} words", total=None)
                    return
                if not started:
                    started.extend((time.monotonic(), at.done))
                losses[at.epoch - 1 :] = [at.loss]
                speed = (at.done - started[1]) / max(time.monotonic() - started[0], 1e-9)
                note = f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.3f}  {speed:,.0f} words/s"
                advance(at.done, note, total=at.total)

            model.fit(file, resume=resume, progress=show)
        facts: dict[str, Any] = {
            "model": output,
            "words": len(model),
            "tokens": int(model.vocabulary.tokens),
            "loss": losses[-1] if losses else None,
        }
        if word2vec is not None:
            model.save_word2vec(word2vec)
            facts["word2vec"] = word2vec
    emit(facts, as_json)


def nearest_words(path: Path, words: tuple[str, ...], k: int, as_json: bool) -> None:
    """The words nearest to each of `words`, known or made of sub-words."""
    with waiting("starting", as_json):
        from sparse_embed.text import WordVectors

    with WordVectors.load(path) as model:
        for word in words:
            model.vectors_of([word])  # all or nothing
        with waiting("searching", as_json):
            found = [model.most_similar(word, k=k) for word in words]
        known = [word in model for word in words]
    if as_json:
        emit(
            {
                "words": list(words),
                "in_vocabulary": known,
                "nearest": [[name for name, _ in best] for best in found],
                "scores": [[score for _, score in best] for best in found],
            },
            True,
        )
        return
    for word, best, is_known in zip(words, found, known, strict=True):
        click.echo(word if is_known else f"{word} (not in the vocabulary)")
        table(["word", "cosine"], [list(pair) for pair in best])
