"""`sparse-embed train recommender FILE` and `sparse-embed recommend MODEL USER`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_embed.cli._output import emit, json_option, progress_bar, table, waiting

if TYPE_CHECKING:
    from sparse_embed.recommend import FitProgress
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
@click.option(
    "--objective",
    type=click.Choice(["bpr", "logistic", "softmax", "ccl"]),
    default="bpr",
    show_default=True,
    help="What is learned: order, yes or no, choice, direction.",
)
@click.option("--embedding-dim", type=click.IntRange(1), default=64, show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="The objective's own by default.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate.")
@click.option("--batch-size", type=click.IntRange(1), help="Interactions a step.")
@click.option("--regularization", type=click.FloatRange(0), help="Weight of the L2 term.")
@click.option("--negative-power", type=click.FloatRange(0), help="Of popularity, for negatives.")
@click.option(
    "--hash-users",
    type=click.IntRange(1),
    metavar="ROWS",
    help="Hash users to this many rows instead of keeping their names.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same command.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help='"cpu", "cuda" or "cuda:N".')
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
    objective: str,
    embedding_dim: int,
    epochs: int | None,
    lr: float | None,
    batch_size: int | None,
    regularization: float | None,
    negative_power: float | None,
    hash_users: int | None,
    resume: bool,
    seed: int,
    device: str,
    held_out: bool,
    as_json: bool,
) -> None:
    """Learn from FILE who took what, and write a model that `recommend` reads.

    FILE has lines user,item[,weight[,timestamp]] with ids of any kind; gzip is fine. A weight of 0
    is no interaction, other weights and timestamps are not used.
    """
    if output.exists() and not resume:
        raise click.ClickException(f"{output} exists already; choose another --output")
    with waiting("starting", as_json):
        import numpy as np

        from sparse_embed.making import check_device
        from sparse_embed.recommend import Popularity, Recommender, evaluate, leave_one_out
        from sparse_embed.recommend.interactions_file import read_interactions, save_names
        from sparse_embed.recommend.loading import OBJECTIVES

        check_device(device)
    with progress_bar("reading", 1, as_json) as advance:
        data = read_interactions(
            file, delimiter=delimiter, header=header, hash_users=hash_users, progress=advance
        )
    users, items = int(np.count_nonzero(np.diff(data.user_items.indptr))), len(data.items)
    if not as_json:
        click.echo(f"{users:,} users, {items:,} items, {data.user_items.nnz:,} interactions")
    taken, test = data.user_items, None
    if held_out:
        taken, test = leave_one_out(data.user_items, seed=seed)
    given: dict[str, Any] = {
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "regularization": regularization,
        "negative_power": negative_power,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    maker: Any = OBJECTIVES[objective]
    model = maker(embedding_dim=embedding_dim, seed=seed, path=output, device=device, **chosen)
    with progress_bar("training", taken.nnz * model.epochs, as_json) as advance:

        def report(at: FitProgress) -> None:
            speed = f"{at.speed / 1e6:.2f} M/s"
            advance(at.done, f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.3f}  {speed}")

        model.fit(taken, progress=report, show_progress=False, resume=resume)
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
        "objective": objective,
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
        from sparse_embed.recommend import load
        from sparse_embed.recommend.interactions_file import load_names

    with load(model) as loaded:
        data: NamedInteractions = load_names(loaded.store)
        place = data.user(user)
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
