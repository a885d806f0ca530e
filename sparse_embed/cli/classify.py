"""`sparse-embed train classifier FILE`, and `test MODEL FILE` and `predict MODEL [FILE]`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from sparse_embed.cli._output import emit, json_option, progress_bar, waiting
from sparse_embed.cli._resume import check_resumed
from sparse_embed.cli.models import train

_BLOCK = 1 << 12


def _check_columns(
    text_column: str | None, delimiter: str | None, label_prefix: str | None
) -> None:
    if text_column is not None and label_prefix is not None:
        raise click.UsageError("--label-prefix is for files without columns, --text-column not")
    if delimiter is not None and text_column is None:
        raise click.UsageError("--delimiter is for files with columns: give --text-column too")


def _check_labelled(
    text_column: str | None,
    label_column: str | None,
    delimiter: str | None,
    label_prefix: str | None,
) -> None:
    if (text_column is None) != (label_column is None):
        raise click.UsageError("--text-column and --label-column belong together")
    _check_columns(text_column, delimiter, label_prefix)


def _read_labelled(
    path: Path,
    text_column: str | None,
    label_column: str | None,
    delimiter: str | None,
    label_prefix: str | None,
) -> tuple[list[str], list[list[str]]]:
    """Texts, and the labels of each."""
    from sparse_embed.text.columns_file import read_columns
    from sparse_embed.text.label_file import read_labelled

    if text_column is None or label_column is None:
        return read_labelled(path, prefix=_prefix(label_prefix))
    rows = list(read_columns(path, (text_column, label_column), delimiter=delimiter))
    return [text for text, _ in rows], [[label] for _, label in rows]


_text_column = click.option(
    "--text-column",
    help="FILE is CSV (or .tsv): the column of the texts, a name of its first line, or a number.",
)
_label_column = click.option(
    "--label-column", help="With --text-column: that of the labels, one a text."
)
_delimiter = click.option(
    "--delimiter", help="Between columns; a comma, in .tsv a tab, by default."
)
_label_prefix = click.option(
    "--label-prefix", help="Of labels among the words; __label__ by default."
)


def _prefix(given: str | None) -> str:
    from sparse_embed.text.label_file import PREFIX

    return PREFIX if given is None else given


@train.command("classifier")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of the model; must not exist, but with --resume.",
)
@click.option(
    "--validation",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another such file: measure P@1 and R@1 on it.",
)
@_text_column
@_label_column
@_delimiter
@_label_prefix
@click.option("--embedding-dim", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--epochs", type=click.IntRange(1), help="Visits of every text: 20, fewer of very many texts."
)
@click.option("--lr", type=float, default=0.05, show_default=True, help="At the start; falls to 0.")
@click.option("--word-ngrams", type=click.IntRange(1), default=2, show_default=True)
@click.option("--minn", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--maxn", type=click.IntRange(0), default=0, show_default=True, help="Character n-grams; 0: no."
)
@click.option("--binary", is_flag=True, help="A text has each word and n-gram once.")
@click.option(
    "--loss",
    type=click.Choice(["softmax", "ova"]),
    default="softmax",
    show_default=True,
    help="ova: each label by itself, for texts with any number of them.",
)
@click.option(
    "--label-sampling",
    is_flag=True,
    help="Of a text's labels softmax sees one by chance at every visit, as in fastText.",
)
@click.option(
    "--early-stopping",
    is_flag=True,
    help="Keep the best epoch by --validation, or by a tenth of FILE held out.",
)
@click.option(
    "--pretrained",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Word vectors to start from (.vec, .txt, .bin); wants --embedding-dim to be theirs.",
)
@click.option("--static", is_flag=True, help="Leave the pretrained vectors as they are.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--raw", is_flag=True, help="Take words as they stand: no lower case, signs stay on.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted training of --output.")
@json_option
def classifier(
    file: Path,
    output: Path,
    validation: Path | None,
    text_column: str | None,
    label_column: str | None,
    delimiter: str | None,
    label_prefix: str | None,
    embedding_dim: int,
    raw: bool,
    pretrained: Path | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn the labels of the texts in FILE; write a model that `test` and `predict` read.

    FILE is fastText's: one text a line, its labels among its words as __label__name. Or it is CSV:
    give --text-column and --label-column. gzip is fine.
    """
    _check_labelled(text_column, label_column, delimiter, label_prefix)
    if output.exists() != resume:
        state = "exists already; choose another --output" if not resume else "is not there"
        raise click.ClickException(f"{output} {state}")
    with waiting("starting", as_json):
        from sparse_embed.text import TextClassifier
        from sparse_embed.text.label_file import single

        layout = (text_column, label_column, delimiter, label_prefix)
        texts, labels = _read_labelled(file, *layout)
        one = single(labels)
        held_out: tuple[Any, Any] | None = None
        if validation is not None:
            held_texts, held_labels = _read_labelled(validation, *layout)
            held_out = (held_texts, held_labels if one is None else single(held_labels))
            if held_out[1] is None:
                raise click.ClickException(f"{validation}: expected one label a text, as in {file}")
    names = {name for own in labels for name in own}
    if not as_json:
        click.echo(f"{len(texts):,} texts, {len(names):,} labels")
    if resume:
        model = TextClassifier.load(output, "r+")
        stored = {name: getattr(model, name) for name in (*options, "embedding_dim")}
        check_resumed(model, output, {**stored, "raw": not model.normalize})
    else:
        model = TextClassifier(
            embedding_dim, normalize=not raw, pretrained=pretrained, path=output, **options
        )
    with progress_bar("training", None, as_json) as advance, model:
        model.fit(
            texts,
            one or labels,
            eval_set=held_out if model.early_stopping else None,
            resume=resume,
            progress=lambda at: advance(
                at.done, f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.3f}", total=at.total
            ),
        )
        quality: dict[str, Any] = {}
        if held_out is not None:
            precision, recall = model.precision_recall_at(*held_out)
            quality = {"P@1": precision, "R@1": recall}
    emit({"model": output, "texts": len(texts), "labels": len(names), **quality}, as_json)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_text_column
@_label_column
@_delimiter
@_label_prefix
@click.option("-k", type=click.IntRange(1), default=1, show_default=True, help="Best labels asked.")
@json_option
def test(
    model: Path,
    file: Path,
    text_column: str | None,
    label_column: str | None,
    delimiter: str | None,
    label_prefix: str | None,
    k: int,
    as_json: bool,
) -> None:
    """Measure MODEL on the labelled texts of FILE, a file as `train classifier` reads.

    P@k: of k labels guessed a text, the share that is right. R@k: of the texts' labels, the share
    that is guessed. Texts without a label are not counted.
    """
    _check_labelled(text_column, label_column, delimiter, label_prefix)
    with waiting("starting", as_json):
        from sparse_embed.text import TextClassifier

        texts, labels = _read_labelled(file, text_column, label_column, delimiter, label_prefix)
    with waiting("measuring", as_json), TextClassifier.load(model) as loaded:
        k = min(k, len(loaded.classes_))
        named = {str(value): value for value in loaded.classes_.tolist()}
        if not any(name in named for own in labels for name in own):
            raise click.ClickException(f"{file}: none of its labels is one that {model} knows")
        truth = [[named.get(name, name) for name in own] for own in labels]
        precision, recall = loaded.precision_recall_at(texts, truth, k)
    measured = sum(map(bool, labels))
    emit({"texts": measured, f"P@{k}": precision, f"R@{k}": recall}, as_json)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--text-column", help="FILE is CSV (or .tsv), and this the column of the texts.")
@_delimiter
@_label_prefix
@click.option("-k", type=click.IntRange(1), default=1, show_default=True, help="How many labels.")
@click.option("--probabilities", is_flag=True, help="Behind each label its probability.")
@json_option
def predict(
    model: Path,
    file: Any,
    text_column: str | None,
    delimiter: str | None,
    label_prefix: str | None,
    k: int,
    probabilities: bool,
    as_json: bool,
) -> None:
    """Label each line of FILE (or of the standard input) with MODEL, one line of output for each.

    Labels among the words, as in a training file, are ignored. With --json each line is an object.
    """
    name = getattr(file, "name", "-")
    _check_columns(text_column, delimiter, label_prefix)
    if text_column is not None and not Path(name).is_file():
        raise click.UsageError("--text-column reads a FILE, not the standard input")
    with waiting("starting", as_json):
        from sparse_embed.text import TextClassifier
        from sparse_embed.text.columns_file import read_columns
        from sparse_embed.text.label_file import decoded, parted

    with TextClassifier.load(model) as loaded:
        k = min(k, len(loaded.classes_))
        lines: Iterator[str] = (
            (parted(line, _prefix(label_prefix))[0] for line in decoded(file, name))
            if text_column is None
            else (text for (text,) in read_columns(name, (text_column,), delimiter=delimiter))
        )
        while block := list(islice(lines, _BLOCK)):
            labels, chances = loaded.predict_top(block, k)
            for own, chance in zip(labels.tolist(), chances.tolist(), strict=True):
                if as_json:
                    text = {"labels": own, "probabilities": chance}
                    click.echo(json.dumps(text, ensure_ascii=False))
                elif probabilities:
                    pairs = zip(own, chance, strict=True)
                    click.echo(" ".join(f"{name} {share:.6g}" for name, share in pairs))
                else:
                    click.echo(" ".join(map(str, own)))
