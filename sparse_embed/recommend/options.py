"""The keyword arguments that every factor model takes."""

from __future__ import annotations

import os
from typing import TypedDict

from sparse_embed.initializers import Initializer
from sparse_embed.optim import Optimizer

__all__ = ["Common"]


class Common(TypedDict, total=False):
    """Keyword arguments that all models take.

    batch_size: interactions a step; None: as many as leave 200 steps to a fit (with an Adam that
        moves each number by lr a step it takes so many), between 256 and 8192 (of BPR: 2**18,
        and of more than 2**17 users half of it).
    optimizer: any of this package, instead of `lr`.
    init: first weights of all rows (default Uniform(0.05)).
    dropout: chance that a number of a user's vector is left out of a step (default 0).
    users_as: "own": a user is a row of their own.  "items": a user is the mean of rows of the items
        they took (without the one to be predicted), so that users never seen can be served.
    num_users, num_items: room for ids, when more are to come; rows cost nothing until trained.
    seed: the same seed and data give the same model, bit for bit, for any number of threads.
    path: directory of the store to train on; None: in memory.
    cache_bytes: memory for the rows of each table; None: what the process has.
    device: "cpu", "cuda" or "cuda:N": where rows are and training runs.  The model is the same, bit
        for bit, and opens on either.  On a GPU `cache_bytes` is of its memory; users_as="items" and
        features are trained on the CPU only.
    commit_interval: seconds between commits of a model with a path (default 10; there is always
        one at the end).  0: after every epoch.
    """

    batch_size: int | None
    optimizer: Optimizer | None
    init: Initializer
    dropout: float
    users_as: str
    num_users: int | None
    num_items: int | None
    seed: int
    path: str | os.PathLike[str] | None
    cache_bytes: int | None
    device: str
    commit_interval: float
