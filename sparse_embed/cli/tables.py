"""Commands on stores and tables: create, info, verify, lookup, nearest, export, import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_embed.cli._output import emit, json_option, progress_bar, table, waiting
from sparse_embed.cli.vectors import nearest_words

if TYPE_CHECKING:
    from sparse_embed.initializers import Initializer
    from sparse_embed.optim import Optimizer
    from sparse_embed.store import Store
    from sparse_embed.table import EmbeddingTable

_WORDS = "WordVectors"
_STORE = click.Path(path_type=Path)
_BLOCK_BYTES = 16 << 20
_SHOWN_COLUMNS = 8

_OPTIMIZERS = {
    "none": None,
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "row_wise_adagrad": "RowWiseAdagrad",
    "lazy_adam": "LazyAdam",
    "row_wise_adam": "RowWiseAdam",
}

_table_option = click.option("--table", "name", help="Which table, if the store has several.")


@click.command()
@click.argument("path", type=_STORE)
@click.option("--num-embeddings", type=int, required=True, help="Rows; 1_000_000 is fine too.")
@click.option("--embedding-dim", type=int, required=True, help="Columns.")
@click.option(
    "--init",
    default="uniform:0.05",
    show_default=True,
    help="First weights: uniform:SCALE, normal:STD or zeros.",
)
@click.option(
    "--optimizer", type=click.Choice(list(_OPTIMIZERS)), default="lazy_adam", show_default=True
)
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Learning rate.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the stored weights.",
)
@click.option(
    "--state-dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the optimizer's state.",
)
@click.option(
    "--rounding",
    type=click.Choice(["stochastic", "nearest"]),
    help="How updates round to a narrower dtype; stochastic by default.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a store that is at PATH.")
@json_option
def create(
    path: Path,
    num_embeddings: int,
    embedding_dim: int,
    init: str,
    optimizer: str,
    lr: float,
    dtype: str,
    state_dtype: str,
    rounding: str | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Create a table at PATH.  Rows cost nothing until they are trained."""
    initializer = _initializer(init)
    with waiting("starting", as_json):
        from sparse_embed.table import EmbeddingTable

    created = EmbeddingTable.create(
        path,
        num_embeddings=num_embeddings,
        embedding_dim=embedding_dim,
        dtype=dtype,
        state_dtype=state_dtype,
        rounding=rounding,
        init=initializer,
        optimizer=_optimizer(optimizer, lr),
        seed=seed,
        overwrite=overwrite,
    )
    with created:
        facts = created.info()
    emit(facts, as_json, f"created {path}")


@click.command()
@click.argument("path", type=_STORE)
@json_option
def info(path: Path, as_json: bool) -> None:
    """Show what the store at PATH holds: shapes, optimizers, commits, sizes."""
    store = _open(path, as_json)
    try:
        facts = store.info()
    finally:
        store.close(checkpoint=False)
    emit(facts, as_json)


@click.command()
@click.argument("path", type=_STORE)
@json_option
def verify(path: Path, as_json: bool) -> None:
    """Check every checksum, header and length of the store at PATH; exit code 1 on damage."""
    store = _open(path, as_json)
    try:
        with progress_bar("verifying", None, as_json or not sys.stderr.isatty()) as advance:
            checked = store.verify(lambda done, total: advance(done, total=total))
    finally:
        store.close(checkpoint=False)
    emit({"ok": True, **checked}, as_json, f"{path}: no damage found")


@click.command()
@click.argument("path", type=_STORE)
@click.argument("indices", type=int, nargs=-1, required=True)
@_table_option
@json_option
def lookup(path: Path, indices: tuple[int, ...], name: str | None, as_json: bool) -> None:
    """Show the vectors of rows INDICES."""
    store = _open(path, as_json)
    try:
        rows = _table(store, name).lookup(list(indices))
    finally:
        store.close(checkpoint=False)
    if as_json:
        emit({"indices": list(indices), "vectors": rows}, True)
        return
    for index, row in zip(indices, rows, strict=True):
        shown = " ".join(f"{value:9.6f}" for value in row[:_SHOWN_COLUMNS])
        left = len(row) - _SHOWN_COLUMNS
        click.echo(f"row {index}: {shown}" + (f" … {left} more" if left > 0 else ""))


@click.command()
@click.argument("path", type=_STORE)
@click.argument("rows", metavar="ROW_OR_WORD...", nargs=-1, required=True)
@_table_option
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "dot", "euclidean"]),
    default="cosine",
    show_default=True,
    help="Word vectors have cosine only.",
)
@json_option
def nearest(
    path: Path, rows: tuple[str, ...], name: str | None, k: int, metric: str, as_json: bool
) -> None:
    """Show the trained rows nearest to some (exact); of word vectors, the words nearest to words.

    A store that `train vectors` wrote is asked for words, unless --table says which of its tables
    to take rows of.
    """
    store = _open(path, as_json)
    try:
        words = _model(store) == _WORDS and name is None
        if not words:
            indices = [_row_number(row, store) for row in rows]
            with waiting("searching", as_json):
                source = _table(store, name)
                found, scores = source.nearest(source.lookup(indices), k=k, metric=metric)
    finally:
        store.close(checkpoint=False)
    if words:
        if metric != "cosine":
            raise click.UsageError("--metric: words are compared by cosine only")
        nearest_words(path, rows, k, as_json)
        return
    if as_json:
        emit({"indices": indices, "nearest": found, "scores": scores}, True)
        return
    for index, row, score in zip(indices, found, scores, strict=True):
        click.echo(f"row {index}")
        table(["row", metric], [[int(i), float(s)] for i, s in zip(row, score, strict=True)])


@click.command()
@click.argument("path", type=_STORE)
@click.argument("output", type=click.Path(path_type=Path))
@_table_option
@click.option("--rows", type=click.Choice(["trained", "all"]), default="trained", show_default=True)
@json_option
def export(path: Path, output: Path, name: str | None, rows: str, as_json: bool) -> None:
    """Write weights to OUTPUT: .npy, .safetensors, .txt/.vec or .bin (word2vec), by its suffix."""
    store = _open(path, as_json)
    try:
        with waiting("exporting", as_json):
            number = _table(store, name).export(output, rows=rows)
    finally:
        store.close(checkpoint=False)
    emit({"rows": number, "output": output}, as_json)


@click.command()
@click.argument("path", type=_STORE)
@click.argument("output", type=_STORE)
@_table_option
@click.option(
    "--dtype",
    type=click.Choice(["int8", "float16", "bfloat16"]),
    default="int8",
    show_default=True,
    help="int8: a byte a weight, a scale and a bias a row.",
)
@click.option("--rows", type=click.Choice(["trained", "all"]), default="trained", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a store that is at OUTPUT.")
@json_option
def quantize(
    path: Path,
    output: Path,
    name: str | None,
    dtype: str,
    rows: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Copy a table's weights to a store at OUTPUT in a narrower dtype, for lookups."""
    store = _open(path, as_json)
    try:
        with waiting("quantizing", as_json):
            copied = _table(store, name).quantize(dtype, output, rows=rows, overwrite=overwrite)
            facts = copied.info()
            copied.close()
    finally:
        store.close(checkpoint=False)
    emit(facts, as_json, f"wrote {output}")


@click.command("import")
@click.argument("source", metavar="FILE.npy", type=click.Path(exists=True, path_type=Path))
@click.argument("path", type=_STORE)
@click.option("--num-embeddings", type=int, help="Rows; by default as many as FILE needs.")
@click.option(
    "--optimizer", type=click.Choice(list(_OPTIMIZERS)), default="none", show_default=True
)
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Learning rate.")
@click.option("--overwrite", is_flag=True, help="Replace a store that is at PATH.")
@json_option
def import_(
    source: Path,
    path: Path,
    num_embeddings: int | None,
    optimizer: str,
    lr: float,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a table at PATH from the vectors in FILE.npy, (n, D) numbers.

    Row numbers are read from FILE.indices.npy where `export` left one, and are 0 to n-1 otherwise.
    """
    with waiting("starting", as_json):
        import numpy as np

        from sparse_embed.initializers import Zeros
        from sparse_embed.table import EmbeddingTable

    vectors = _array(source)
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or 0 in vectors.shape:
        raise click.ClickException(
            f"{source}: expected an (n, D) array of floats, found {vectors.dtype} {vectors.shape}"
        )
    beside = source.with_suffix(".indices.npy")
    indices = _array(beside) if beside.exists() else np.arange(len(vectors))
    if indices.shape != vectors.shape[:1] or indices.dtype.kind not in "iu":
        raise click.ClickException(
            f"{beside}: expected {len(vectors)} row numbers, found {indices.dtype} {indices.shape}"
        )
    rows = int(indices.max()) + 1 if num_embeddings is None else num_embeddings
    # Before anything is made: a refused import leaves nothing behind.
    if int(indices.min()) < 0 or int(indices.max()) >= rows:
        raise click.ClickException(
            f"{beside}: row numbers from {indices.min()} to {indices.max()} for {rows} rows"
        )
    if len(np.unique(indices)) != len(indices):
        raise click.ClickException(f"{beside}: a row number stands there twice")
    created = EmbeddingTable.create(
        path,
        num_embeddings=rows,
        embedding_dim=vectors.shape[1],
        init=Zeros(),
        optimizer=_optimizer(optimizer, lr),
        overwrite=overwrite,
    )
    block = max(1, _BLOCK_BYTES // (4 * vectors.shape[1]))
    with created, progress_bar("importing", len(vectors), as_json) as advance:
        for begin in range(0, len(vectors), block):
            part = slice(begin, begin + block)
            created.assign(
                np.asarray(indices[part], np.int64), np.asarray(vectors[part], np.float32)
            )
            advance(min(begin + block, len(vectors)))
        facts = {"rows": len(vectors), "path": path, "num_embeddings": created.num_embeddings}
    emit(facts, as_json)


def _array(path: Path) -> Any:
    """A mapped `.npy` file; pickled objects are refused."""
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise click.ClickException(f"{path}: not a readable .npy file: {error}") from error


def _open(path: Path, as_json: bool) -> Store:
    """The store, for reading."""
    with waiting("starting", as_json):
        from sparse_embed.store import Store
    return Store.open(path, mode="r")


def _model(store: Store) -> str:
    """The kind of model that a store holds; "" for plain tables."""
    model = store.metadata.get("model")
    return str(model.get("name", "")) if isinstance(model, dict) else ""


def _row_number(text: str, store: Store) -> int:
    try:
        return int(text)
    except ValueError:
        model = _model(store)
        why = f": this store holds a {model}, and only word vectors are asked for words"
        raise click.UsageError(
            f"expected row numbers, got {text!r}{why if model not in ('', _WORDS) else ''}"
        ) from None


def _table(store: Store, name: str | None) -> EmbeddingTable:
    names = ", ".join(sorted(store.tables))
    if name is None and len(store.tables) == 1:
        return next(iter(store.tables.values()))
    if name is None:
        raise click.UsageError(f"the store has several tables, choose one with --table: {names}")
    if name not in store.tables:
        raise click.UsageError(f"the store has no table {name!r}; it has: {names}")
    return store.tables[name]


def _initializer(text: str) -> Initializer:
    from sparse_embed.initializers import Normal, Uniform, Zeros

    kind, _, number = text.partition(":")
    try:
        if text == "zeros":
            return Zeros()
        if kind in ("uniform", "normal"):
            return Uniform(float(number)) if kind == "uniform" else Normal(float(number))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--init") from error
    raise click.BadParameter(
        f"expected uniform:SCALE, normal:STD or zeros, got {text!r}", param_hint="--init"
    )


def _optimizer(name: str, lr: float) -> Optimizer | None:
    from sparse_embed import optim

    kind = _OPTIMIZERS[name]
    if kind is None:
        return None
    made: Optimizer = getattr(optim, kind)(lr=lr)
    return made
