"""`sparse-embed train recommender FILE` and `sparse-embed recommend MODEL USER`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_embed.cli._output import emit, json_option, progress_bar, table, waiting

if TYPE_CHECKING:
    from sparse_embed.recommend.interactions_file import NamedInteractions


@click.group()
def train() -> None:
    """Train a model from a file."""


@train.command("recommender")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of the model; must not exist.",
)
@click.option("--delimiter", help="Between columns; found in the first line by default.")
@click.option("--header/--no-header", default=None, help="Skip the first line; guessed by default.")
@click.option("--embedding-dim", type=click.IntRange(1), default=64, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--evaluate",
    "held_out",
    is_flag=True,
    help="Hold out one item of each user with at least 5, and measure; the model never sees them.",
)
@json_option
def recommender(
    file: Path,
    output: Path,
    delimiter: str | None,
    header: bool | None,
    embedding_dim: int,
    epochs: int,
    seed: int,
    held_out: bool,
    as_json: bool,
) -> None:
    """Learn from FILE who took what, and write a model that `recommend` reads.

    FILE has lines user,item[,weight[,timestamp]] with ids of any kind; gzip is fine. A weight of 0
    is no interaction, other weights and timestamps are not used.
    """
    if output.exists():
        raise click.ClickException(f"{output} exists already; choose another --output")
    with waiting("starting", as_json):
        from sparse_embed.recommend import BPR
        from sparse_embed.recommend.evaluation import (
            Popularity,
            Recommender,
            evaluate,
            leave_one_out,
        )
        from sparse_embed.recommend.interactions_file import read_interactions, save_names

    with progress_bar("reading", 1, as_json) as advance:
        data = read_interactions(file, delimiter=delimiter, header=header, progress=advance)
    users, items = data.user_items.shape
    if not as_json:
        click.echo(f"{users:,} users, {items:,} items, {data.user_items.nnz:,} interactions")
    taken, test = data.user_items, None
    if held_out:
        taken, test = leave_one_out(data.user_items, seed=seed)
    model = BPR(embedding_dim=embedding_dim, epochs=epochs, seed=seed, path=output)
    with progress_bar("training", taken.nnz * epochs, as_json) as advance:
        model.fit(
            taken, lambda at: advance(at.done, f"epoch {at.epoch}/{epochs}  loss {at.loss:.3f}")
        )
    with model:
        save_names(model.store, data, taken)
        model.store.commit()
        quality: dict[str, Any] = {}
        if test is not None:
            with progress_bar("ranking", test.nnz, as_json) as advance:
                rankers: dict[str, Recommender] = {"popularity": Popularity(taken), "model": model}
                for name, ranker in rankers.items():
                    quality[name] = evaluate(
                        ranker, taken, test, progress=lambda done, total: advance(done)
                    )
    if quality and not as_json:
        metrics = [name for name in quality["model"] if name != "users"]
        rows = [[metric, *[found[metric] for found in quality.values()]] for metric in metrics]
        table(["", *quality], rows)
    facts = {
        "model": output,
        "users": users,
        "items": items,
        "interactions": data.user_items.nnz,
        **({"quality": quality} if as_json and quality else {}),
    }
    emit(facts, as_json)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("user")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option("--all", "everything", is_flag=True, help="Also what the user took already.")
@json_option
def recommend(model: Path, user: str, k: int, everything: bool, as_json: bool) -> None:
    """Recommend items to USER, an id of the file that MODEL was trained on."""
    with waiting("starting", as_json):
        from sparse_embed.recommend import BPR
        from sparse_embed.recommend.interactions_file import load_names

    with BPR.load(model) as loaded:
        data: NamedInteractions = load_names(loaded.store)
        place = data.users.get(user)
        if place is None:
            raise click.ClickException(f"{model}: user {user!r} was not in the training file")
        ids, scores = loaded.recommend(
            [place],
            data.user_items[[place]],
            k=min(k, len(data.items)),
            filter_already_liked=not everything,
        )
    names = list(data.items)
    found = [(names[i], float(s)) for i, s in zip(ids[0], scores[0], strict=True) if i >= 0]
    if as_json:
        emit({"user": user, "items": [n for n, _ in found], "scores": [s for _, s in found]}, True)
    else:
        table(["item", "score"], [list(pair) for pair in found])
