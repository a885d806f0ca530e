"""A factor model as a store: its two tables, and the metadata that `load` reads back.

tables    users (num_users, D), items (num_items, D + 1): the last column is the item's bias
metadata  {"model": {"name", "embedding_dim", "epochs", "batch_size", "seed", ...}, "epochs_done"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_embed.errors import NotAStoreError
from sparse_embed.initializers import Initializer
from sparse_embed.optim import Optimizer
from sparse_embed.store import Store


def create_store(
    path: str | None,
    shape: tuple[int, int],
    description: Mapping[str, Any],
    *,
    init: Initializer,
    optimizer: Optimizer,
    cache_bytes: int | None,
    overwrite: bool,
) -> Store:
    """A new store for (users, items) of `shape`; `description` is the metadata's "model".

    Raises:
        StoreError: `path` exists (and is not to be overwritten) or cannot be written.
    """
    store = Store.create(path, overwrite=overwrite)
    dim, seed = description["embedding_dim"], description["seed"]
    # Different seeds: user r and item r must not start at the same place.
    tables = {"users": (shape[0], dim, 2 * seed), "items": (shape[1], dim + 1, 2 * seed + 1)}
    try:
        for name, (rows, columns, table_seed) in tables.items():
            store.create_table(
                name,
                num_embeddings=rows,
                embedding_dim=columns,
                init=init,
                optimizer=optimizer,
                seed=table_seed,
                cache_bytes=cache_bytes,
            )
    except BaseException:
        store.discard()
        raise
    store.metadata["model"] = dict(description)
    store.metadata["epochs_done"] = 0
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
    if not isinstance(dim, int) or widths != {"users": dim, "items": dim + 1}:
        raise NotAStoreError(
            f"{store.path}: expected tables users and items with {dim} columns, items with one more"
            f" for the bias, found {widths}"
        )
    return {**arguments, "optimizer": store.tables["users"].optimizer}
