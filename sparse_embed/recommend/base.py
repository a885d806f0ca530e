"""What every factor model shares: the epochs, commits, stopping, resuming, more data.

An objective (`bpr.py`, `contrast.py`) adds how a batch is drawn and what its gradients are.  Rows
are looked up and updated by the public table operations alone.
"""

from __future__ import annotations

import operator
import os
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from sparse_embed import ops
from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.errors import ArgumentError, StoreError
from sparse_embed.initializers import Initializer, Uniform
from sparse_embed.making import check_device
from sparse_embed.optim import Optimizer, check_lr
from sparse_embed.recommend.best_model import BestModel
from sparse_embed.recommend.devices import check_trainable
from sparse_embed.recommend.evaluation import as_lengths, evaluate
from sparse_embed.recommend.fitted import FittedModel, not_negative, positive
from sparse_embed.recommend.model_store import check_same, create_store, kept
from sparse_embed.recommend.neighbours import regularization_of
from sparse_embed.recommend.progress import Callback, EarlyStopping, FitProgress, ProgressBar
from sparse_embed.recommend.sampling import Interactions, as_interactions
from sparse_embed.recommend.side import Side, as_features
from sparse_embed.store import Store

__all__ = ["FactorModel"]

_INIT = 0.05
_RECYCLED = (32 << 20) - (64 << 10)


class FactorModel(FittedModel, ABC):
    """Users and items as vectors, trained in mini-batches over two tables of one store."""

    def __init__(
        self,
        embedding_dim: int,
        *,
        epochs: int,
        lr: float | None,
        default_optimizer: Callable[[float], Optimizer],
        default_lr: float,
        regularization: float | None,
        negative_power: float,
        batch_size: int | None = None,
        optimizer: Optimizer | None = None,
        init: Initializer | None = None,
        dropout: float = 0.0,
        users_as: str = "own",
        num_users: int | None = None,
        num_items: int | None = None,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        device: str = "cpu",
        commit_interval: float = 10.0,
    ) -> None:
        if optimizer is not None and lr is not None:
            raise ArgumentError(f"lr: give it here or in optimizer, got both {lr} and {optimizer}")
        if optimizer is None:
            optimizer = default_optimizer(default_lr if lr is None else check_lr(lr))
        self.embedding_dim = positive("embedding_dim", embedding_dim)
        self.epochs = positive("epochs", epochs)
        self.batch_size = None if batch_size is None else positive("batch_size", batch_size)
        if regularization is not None:
            regularization = not_negative("regularization", regularization)
        self.regularization = regularization
        self._l2 = regularization or 0.0  # what training uses; an objective may choose it for None
        self.negative_power = not_negative("negative_power", negative_power)
        self.optimizer = optimizer
        self.init = Uniform(_INIT) if init is None else init
        self.dropout = not_negative("dropout", dropout, below=1)
        if users_as not in ("own", "items"):
            raise ArgumentError(f'users_as: expected "own" or "items", got {users_as!r}')
        self.users_as = users_as
        self.num_users = None if num_users is None else positive("num_users", num_users)
        self.num_items = None if num_items is None else positive("num_items", num_items)
        self.seed = positive("seed", seed, 0)
        self.path = None if path is None else os.fspath(path)
        self.cache_bytes = cache_bytes
        self.device = device
        self._memory = check_device(device)
        self._on_device: Any = None  # what trains there, once it is prepared
        self.commit_interval = not_negative("commit_interval", commit_interval)
        self._wrote_path = False

    # ---- what an objective brings ---------------------------------------------------------------

    @abstractmethod
    def _hyperparameters(self) -> dict[str, Any]:
        """The objective's own keyword arguments, as `load` passes them to the constructor."""

    @abstractmethod
    def _prepare(self, interactions: Interactions) -> None:
        """Called once before the first batch."""

    @abstractmethod
    def _train_on_host(self, epoch: int, start: int, stop: int) -> float:
        """`_train_batch` on the CPU."""

    def _train_batch(self, epoch: int, start: int, stop: int) -> float:
        """Update both tables by interactions start..stop-1 of the epoch; their summed loss."""
        if self._on_device is None:
            return self._train_on_host(epoch, start, stop)
        return float(self._on_device.train(epoch, self._dropout_seed(epoch), start, stop))

    def _dropout_seed(self, epoch: int) -> int:
        return (self.seed << 32) ^ epoch

    @abstractmethod
    def _batch_step(self, number: int) -> int:
        """Interactions of a batch, where an epoch has `number`."""

    def _drop(self, epoch: int, start: int, users: FloatArray) -> FloatArray | None:
        """Drop numbers of the users' vectors (B, D+1), in place; the mask for their gradient."""
        if self.dropout == 0:
            return None
        shape = (len(users), self.embedding_dim)
        seed = self._dropout_seed(epoch)
        mask = ops.dropout_scale(seed, start, shape[0] * shape[1], self.dropout).reshape(shape)
        users[:, :-1] *= mask
        return mask

    def _without(self, items: IndexArray) -> IndexArray | None:
        """With users as the mean of their items: the one to be predicted is not among them."""
        return items if self.users_as == "items" else None

    # ---- training -------------------------------------------------------------------------------

    def fit(
        self,
        user_items: Any,
        eval_set: Any = None,
        *,
        eval_every: int = 1,
        eval_k: int | Sequence[int] = (10, 20),
        callbacks: Sequence[Callback] = (),
        progress: Callable[[FitProgress], None] | None = None,
        show_progress: bool | None = None,
        user_features: Any = None,
        item_features: Any = None,
        resume: bool = False,
    ) -> Self:
        """Learn from scratch who took what.

        Args:
            user_items: (users, items) SciPy CSR (other sparse formats are converted); a value
                above zero is an interaction, and its size is not used.
            eval_set: held-out interactions, CSR of the same shape; after every `eval_every` epochs
                the model is evaluated on them (`evaluate` with lengths `eval_k`) for callbacks.
            callbacks: called with a FitProgress after each epoch; training stops when one returns
                True.  `EarlyStopping` is one.
            progress: called after every batch.
            show_progress: a bar on stderr with loss and speed; None: where stderr is a terminal.
            user_features, item_features: CSR (users, features), (items, features).  A user or item
                is then its own row plus the sum of its features' rows, times their values, so that
                one that nobody knows yet has a vector too.
            resume: go on where an interrupted fit with the same arguments and data made its last
                commit, at `path` or in this loaded model (mode "r+"): the result is the same, bit
                for bit.  Without such a commit: from scratch.

        Returns:
            The model.

        Raises:
            ArgumentError: not a sparse matrix; negative, infinite or NaN values; no interactions;
                an EarlyStopping without `eval_set`; other data or arguments than those of the fit
                to be resumed; training diverged (the loss is no longer finite).
            StoreError: `path` exists already or cannot be written.

        Notes:
            A model with a `path` commits every `commit_interval` seconds and at the end.  If `fit`
            is interrupted the model goes back to the last of these commits and stays usable there.
            With an EarlyStopping that restores, commits are made at each best measurement instead.
            A user without interactions is fine, and learns nothing.
        """
        matrix = as_interactions(user_items)
        interactions = Interactions.from_csr(matrix)
        shape = self._room(matrix.shape)
        data = {
            "interactions": len(interactions),
            "crc32": zlib.crc32(interactions.columns.data, zlib.crc32(interactions.rows.data)),
        }
        evaluation = None
        if eval_set is not None:
            evaluation = (matrix, as_interactions(eval_set, "eval_set"), as_lengths(eval_k))
            if any(map(operator.gt, evaluation[1].shape, shape)):
                raise ArgumentError(
                    f"eval_set: expected at most shape {shape}, got {evaluation[1].shape}"
                )
        stopping = [call for call in callbacks if isinstance(call, EarlyStopping)]
        if stopping and evaluation is None:
            raise ArgumentError(
                f"eval_set: expected held-out interactions, by which EarlyStopping measures"
                f" {stopping[0].metric}, got None"
            )
        positive("eval_every", eval_every)
        features = {"users": user_features, "items": item_features}
        check_trainable(self._memory, self.users_as, features)
        start = self._resumed(data) if resume else None
        if start is None:
            start = 0, 0
            self._create(matrix, shape, features)
            self.store.metadata["data"] = data
        self._prepare(interactions)
        for call in stopping:
            call.reset()
        restoring = any(call.restore_best for call in stopping)
        best = BestModel(self.store, stopping[0]) if restoring else None
        with ProgressBar(show_progress, self.epochs * len(interactions)) as bar:
            try:
                self._epochs(
                    interactions, start, [bar] if progress is None else [bar, progress],
                    callbacks, evaluation, eval_every, best,
                )  # fmt: skip
            except BaseException:
                self._abandon()
                raise
        return self

    def _epochs(
        self,
        interactions: Interactions,
        start: tuple[int, int],
        listeners: Sequence[Callable[[FitProgress], None]],
        callbacks: Sequence[Callback],
        evaluation: tuple[Any, Any, list[int]] | None,
        eval_every: int,
        best: BestModel | None,
    ) -> None:
        # glibc gives the pages of an array above its threshold back at once, and fresh pages cost
        # more than a batch.  Freeing one large array raises the threshold, to 32 MB at the most.
        np.empty(_RECYCLED, np.uint8)
        number = len(interactions)
        step = self._batch_step(number)
        began, done_before = time.monotonic(), start[0] * number + start[1]
        committed = began
        for epoch in range(start[0], self.epochs):
            self._set_lr(self.optimizer.lr * (1 - epoch / self.epochs))
            loss, counted = 0.0, 0
            for at in range(start[1] if epoch == start[0] else 0, number, step):
                stop = min(at + step, number)
                loss += self._train_batch(epoch, at, stop)
                counted += stop - at
                self._forget()  # listeners may ask the model, and then train on
                done = epoch * number + stop
                now = time.monotonic()
                speed = (done - done_before) / max(now - began, 1e-9)
                state = FitProgress(
                    epoch + 1, self.epochs, done, self.epochs * number, loss / counted, speed
                )
                for listener in listeners:
                    listener(state)
                due = self.commit_interval > 0 and now - committed >= self.commit_interval
                if due and self.path is not None and best is None and np.isfinite(loss):
                    self.store.metadata["position"] = [epoch, stop]
                    self.store.commit(wait=False)
                    committed = now
            if not np.isfinite(loss):
                raise ArgumentError(
                    f"training diverged in epoch {epoch + 1} (loss {loss / counted}): try a"
                    f" smaller learning rate than {self.optimizer.lr}"
                )
            self.store.metadata["epochs_done"] = epoch + 1
            self.store.metadata["position"] = [epoch + 1, 0]
            if evaluation is not None and (epoch + 1) % eval_every == 0:
                train, test, lengths = evaluation
                measured = evaluate(self, self._padded(train), self._padded(test), lengths)
                state = replace(state, metrics=measured)
                self.store.metadata["metrics"] = measured
                listeners[0](state)
            stopped = [callback(state) for callback in callbacks]
            if best is not None:
                best.consider(epoch + 1)
            elif self.path is not None and self.commit_interval == 0:
                self.store.commit()
            if any(answer is True for answer in stopped):
                break
        if best is not None and best.restore():
            self._forget()
        elif self.path is not None:
            self.store.commit()

    def partial_fit(
        self, user_items: Any, *, epochs: int = 1, lr: float | None = None, seed: int | None = None
    ) -> Self:
        """Learn from new interactions, on top of what is known; a model not fitted is fitted.

        Args:
            user_items: (users, items) CSR of new interactions, at most of the model's shape (give
                `num_users` and `num_items` at the start when ids will come).  Rows may repeat older
                interactions, which are then no negatives; no others are remembered.
            epochs: visits of each of them.
            lr: learning rate; None: a tenth of the optimizer's.
            seed: of order and negatives; None: counted on from the last call.

        Raises:
            ArgumentError: as `fit`; the matrix is larger than the model.
            ReadOnlyError: the model was loaded with mode "r".

        Notes:
            A model with a `path` commits at the end.  Items that only older interactions know stay
            in the catalogue, and are drawn as if taken once.  Models with `users_as="items"` or
            features take new interactions of the users and items they know.
        """
        if self._store is None:
            return self.fit(user_items)
        positive("epochs", epochs)
        rate = self.optimizer.lr / 10 if lr is None else check_lr(lr)
        matrix = as_interactions(user_items)
        users, items = self._side("users"), self._side("items")
        found = {"users": users.features, "items": items.features}
        check_trainable(self._memory, self.users_as, found)
        if matrix.shape[0] > users.number or matrix.shape[1] > items.number:
            raise ArgumentError(
                f"user_items: expected at most shape {(users.number, items.number)}, got"
                f" {matrix.shape}; num_users and num_items make room"
            )
        interactions = Interactions.from_csr(matrix, items.known())
        calls = int(self.store.metadata.get("partial_fits", 0)) + 1
        kept = self.seed
        self.seed = kept + calls if seed is None else positive("seed", seed, 0)
        try:
            self._prepare(interactions)
            self._set_lr(rate)
            number = len(interactions)
            step = self._batch_step(number)
            for epoch in range(epochs):
                loss = 0.0
                for at in range(0, number, step):
                    loss += self._train_batch(epoch, at, min(at + step, number))
                if not np.isfinite(loss):
                    raise ArgumentError(f"training diverged (loss {loss / number}): lower lr")
            self.store.metadata["partial_fits"] = calls
            if self.path is not None:
                self.store.commit()
        except BaseException:
            if self.path is not None:
                self.store.rollback()
            raise
        finally:
            self.seed = kept
            self._forget()
        return self

    def _set_lr(self, lr: float) -> None:
        """`fit` goes in a straight line from the optimizer's lr to lr / epochs in the last one."""
        for table in (self.users, self.items):
            table.lr = lr

    # ---- the store ------------------------------------------------------------------------------

    def _room(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(users, items) of a model that begins with data of this shape."""
        room = (self.num_users or shape[0], self.num_items or shape[1])
        for name, found, most in zip(("num_users", "num_items"), shape, room, strict=True):
            if found > most:
                raise ArgumentError(f"user_items: shape {shape} exceeds {name}={most}")
        return room

    def _padded(self, matrix: Any) -> Any:
        """The same interactions in the model's shape."""
        shape = (self._side("users").number, self._side("items").number)
        if matrix.shape != shape:
            matrix = matrix.copy()
            matrix.resize(shape)
        return matrix

    def _description(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "embedding_dim": self.embedding_dim,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "regularization": self.regularization,
            "negative_power": self.negative_power,
            "dropout": self.dropout,
            "users_as": self.users_as,
            "num_users": self.num_users,
            "num_items": self.num_items,
            "seed": self.seed,
            **self._hyperparameters(),
        }

    def _create(self, matrix: Any, shape: tuple[int, int], features: dict[str, Any]) -> None:
        # A second fit replaces what the first one wrote, never what was there or was loaded.
        if self._wrote_path and self._store is not None:
            self._store.close(checkpoint=False)
            self._store = self._sides = None
        mean = self.users_as == "items"
        if mean and features["users"] is not None:
            raise ArgumentError('user_features: not with users_as="items", which are their items')
        checked = {
            name: None if given is None else as_features(f"{name[:-1]}_features", given, number)
            for (name, given), number in zip(features.items(), shape, strict=True)
        }
        if mean:
            history = matrix.astype(np.float32)
            history.resize(shape)
            checked["users"] = history
        rows = (
            Side.rows_needed(shape[0], checked["users"], mean),
            Side.rows_needed(shape[1], checked["items"], False),
        )
        store = create_store(
            self.path,
            rows,
            self._description(),
            init=self.init,
            optimizer=self.optimizer,
            cache_bytes=self.cache_bytes,
            device=self.device,
            overwrite=self._wrote_path,
        )
        store.metadata["shape"] = list(shape)
        if self._store is not None:
            self._store.close(checkpoint=False)
        self._wrote_path = self.path is not None
        self._attach(store, checked["users"], checked["items"])
        for name in ("users", "items"):
            self._side(name).save(store, name)

    def _choose_regularization(self, interactions: Interactions) -> None:
        """Of an objective that lets the data choose it: what training uses."""
        self._l2 = kept(
            self.store,
            "regularization",
            self.regularization,
            lambda: regularization_of(interactions),
        )

    def _resumed(self, data: dict[str, Any]) -> tuple[int, int] | None:
        """Where the last commit of an interrupted fit stood; None: there is none."""
        if self._store is None:
            if self.path is None or not os.path.exists(self.path):
                return None
            store = Store.open(self.path, "r+", cache_bytes=self.cache_bytes, device=self.device)
            try:
                if store.last_commit == 0:  # killed before its first commit
                    store.close(checkpoint=False)
                    self._wrote_path = True
                    return None
                check_same(store, self._description(), self.optimizer)
                self._attach_opened(store)
            except BaseException:
                store.close(checkpoint=False)
                raise
            self._wrote_path = True
        if self.store.metadata.get("data") != data:
            raise ArgumentError(
                f"user_items: expected the data of the fit to be resumed,"
                f" {self.store.metadata.get('data')}, got {data}"
            )
        epoch, position = self.store.metadata["position"]
        return int(epoch), int(position)

    def _abandon(self) -> None:
        """After an interruption: back to the last commit, or to no model at all."""
        store = self.store
        self._forget()
        if self.path is not None:
            try:
                store.rollback()
                if store.last_commit > 0 and "position" in store.metadata:
                    return
            except StoreError:
                pass  # the first error is the one to be seen
        store.close(checkpoint=False)
        self._store = self._sides = None
