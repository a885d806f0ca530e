"""A factor model as a store: its two tables, and the metadata that `load` reads back.

tables    users, items (rows, D + 1): the last column is the bias; see `side.py` for the rows
arrays    users.features.*, items.features.*: CSR (`side.py`); names: `interactions_file.py`
metadata  model        {"name", "embedding_dim", "epochs", "batch_size", "seed", ...}
          shape        [users, items]
          epochs_done, position [epoch, interactions of it]: where the last commit stands
          data         {"interactions", "crc32"}: what a resumed fit must be given again
          regularization, temperature, negative_weight: where the data chose it (`kept`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparse_embed.errors import ArgumentError, NotAStoreError
from sparse_embed.initializers import Initializer
from sparse_embed.optim import Optimizer
from sparse_embed.store import Store


def create_store(
    path: str | None,
    rows: tuple[int, int],
    description: Mapping[str, Any],
    *,
    init: Initializer,
    optimizer: Optimizer,
    cache_bytes: int | None,
    device: str,
    overwrite: bool,
) -> Store:
    """A new store with `rows` of users and of items; `description` is the metadata's "model".

    Raises:
        StoreError: `path` exists (and is not to be overwritten) or cannot be written.
    """
    store = Store.create(path, overwrite=overwrite)
    dim, seed = description["embedding_dim"], description["seed"]
    try:
        for place, name in enumerate(("users", "items")):
            store.create_table(
                name,
                num_embeddings=rows[place],
                embedding_dim=dim + 1,
                init=init,
                optimizer=optimizer,
                # Different seeds: user r and item r must not start at the same place.
                seed=2 * seed + place,
                cache_bytes=cache_bytes,
                device=device,
            )
    except BaseException:
        store.discard()
        raise
    store.metadata["model"] = dict(description)
    store.metadata["epochs_done"] = 0
    store.metadata["position"] = [0, 0]
    return store


def read_description(store: Store, name: str) -> dict[str, Any]:
    """The constructor's arguments, optimizer included, of the model called `name` in a store.

    Raises:
        NotAStoreError: the store holds something else.
    """
    recorded = store.metadata.get("model")
    found = recorded.get("name") if isinstance(recorded, dict) else None
    if not isinstance(recorded, dict) or found != name:
        raise NotAStoreError(
            f"{store.path}: expected a {name} model, found a store of"
            f" {'something else' if found is None else found}"
        )
    arguments = {key: value for key, value in recorded.items() if key != "name"}
    dim = arguments.get("embedding_dim")
    widths = {name: table.embedding_dim for name, table in store.tables.items()}
    if not isinstance(dim, int) or widths != {"users": dim + 1, "items": dim + 1}:
        raise NotAStoreError(
            f"{store.path}: expected tables users and items with {dim} columns and one more for the"
            f" bias, found {widths}"
        )
    shape = store.metadata.get("shape")
    rows = [store.tables[table].num_embeddings for table in ("users", "items")]
    if not isinstance(shape, list) or [type(size) for size in shape] != [int, int]:
        raise NotAStoreError(f"{store.path}: expected a shape of users and items, found {shape}")
    if rows[1] < shape[1] or (rows[0] < shape[0] and arguments.get("users_as") != "items"):
        raise NotAStoreError(f"{store.path}: expected rows for shape {shape}, found {rows}")
    return {**arguments, "optimizer": store.tables["users"].optimizer}


def check_same(store: Store, description: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuse to resume a fit with other arguments.

    Raises:
        NotAStoreError: no such model.
        ArgumentError: one of the arguments differs.
    """
    recorded = {**read_description(store, str(description["name"]))}
    found = {**recorded, "name": description["name"]}
    for name, wanted in {**description, "optimizer": optimizer}.items():
        if found.get(name) != wanted:
            raise ArgumentError(
                f"{name}: the fit to be resumed had {found.get(name)!r}, got {wanted!r}"
            )


def kept(store: Store, name: str, given: float | None, choose: Callable[[], float]) -> float:
    """What was given; or what the data of `fit` chose, since new interactions alone would tell
    something else."""
    if given is not None:
        return given
    if name not in store.metadata:
        store.metadata[name] = choose()
    return float(store.metadata[name])
