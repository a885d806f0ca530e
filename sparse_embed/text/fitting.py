"""What `TextClassifier.fit` does once labels are numbers: the store, epochs, early stopping."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparse_embed._typing import FloatArray
from sparse_embed.errors import ArgumentError
from sparse_embed.store import Store
from sparse_embed.text import model_store, pretrained
from sparse_embed.text.features import as_texts, frequent
from sparse_embed.text.inputs import Inputs
from sparse_embed.text.labels import Labels, Targets
from sparse_embed.text.network import Input, Network, Shape, create_tables
from sparse_embed.text.progress import bar
from sparse_embed.text.training import (
    Best,
    Examples,
    FitProgress,
    Schedule,
    epoch_order,
    train_epoch,
)

_BLOCK = 1 << 12
_HELD_OUT = 1 << 40  # an epoch number that no epoch has: the order in which texts are held out


class Fitting:
    """One call of `fit`."""

    def __init__(
        self,
        settings: Any,
        labels: Labels,
        texts: list[str],
        targets: Targets,
        sample_weight: Any,
    ) -> None:
        self.settings, self.labels, self.texts, self.targets = settings, labels, texts, targets
        self.weight = _sample_weight(sample_weight, len(texts))
        loss = settings.loss
        if loss == "auto":
            loss = "softmax" if labels.kind == "single" else "ova"
        if settings.label_sampling and loss == "ova":
            raise ArgumentError(
                'label_sampling: only loss="softmax" draws labels; "ova" (which is "auto" for lists'
                " of labels) learns from all of them"
            )
        self.one_label = settings.label_sampling and labels.kind != "single"
        outputs = len(labels)
        if labels.kind == "single" and outputs == 2:  # one score: its sigmoid is the second's share
            outputs, loss = 1, "ova"
        self.shape = Shape(
            num_embeddings=settings.features.num_embeddings,
            embedding_dim=settings.embedding_dim,
            outputs=outputs,
            length=settings.length,
            pooling=settings.pooling,
            loss=loss,
            dropout=settings.dropout,
            batch_norm=settings.batch_norm,
            seed=settings.seed,
        )
        self.positive, self.negative = self._class_weights()
        self._vectors = pretrained.read(settings.pretrained, settings.embedding_dim)

    def _class_weights(self) -> tuple[FloatArray, FloatArray]:
        """(C,) for a class that is a target, and for one that is not."""
        counts = np.bincount(self.targets.classes, minlength=len(self.labels))
        weights = _class_weights(self.settings.class_weight, self.labels, counts, len(self.texts))
        if self.shape.outputs == 1:
            return weights[1:], weights[:1]
        return weights, np.ones(len(weights), np.float32)

    # ---- the store ------------------------------------------------------------------------------

    def create_store(self, path: str | os.PathLike[str] | None, *, overwrite: bool) -> Store:
        """A new store with the tables, the labels and what else `load` needs."""
        settings, vectors = self.settings, self._vectors
        store = Store.create(path, overwrite=overwrite)
        try:
            fixed = vectors.values if vectors is not None and settings.static else None
            create_tables(
                store,
                self.shape,
                init=settings.init,
                optimizer=settings.optimizer,
                cache_bytes=settings.cache_bytes,
                fixed=fixed,
            )
            model_store.describe(store, settings, self.shape, self.labels)
            if vectors is not None and settings.static:
                model_store.write_words(store, vectors.words)
            elif vectors is not None:
                rows, values = vectors.hashed(settings.features)
                store.tables["words"].assign(rows, values)
            self._choose_rows(store)
        except BaseException:
            store.discard()
            raise
        return store

    def _choose_rows(self, store: Store) -> None:
        settings = self.settings
        if settings.min_count == 1 and settings.max_features is None:
            return
        shape, features, words, _ = model_store.read_shape(store)
        indices, _ = Inputs(features, shape, words, None).bags(self.texts)
        store.arrays["rows"] = frequent(indices, settings.min_count, settings.max_features)

    def check_resumed(self, store: Store) -> None:
        """Is this the fit that was interrupted?

        Raises:
            ArgumentError: the fit was finished, or has other settings or another network.
        """
        if store.metadata.get("finished"):
            raise ArgumentError("resume: this fit was finished; nothing is left to do")
        network = {"outputs": self.shape.outputs, "loss": self.shape.loss}
        if store.metadata["network"] != network:
            raise ArgumentError("resume: the labels are not those of the fit that was interrupted")

    # ---- epochs ---------------------------------------------------------------------------------

    def run(
        self,
        store: Store,
        evaluation: tuple[Any, Targets] | None,
        progress: Callable[[FitProgress], None] | None,
        *,
        verbose: bool,
    ) -> None:
        """All epochs that are not done yet, with commits if the store is on disk."""
        settings = self.settings
        shape, features, words, rows = model_store.read_shape(store)
        network, inputs = Network(store, shape), Inputs(features, shape, words, rows)
        examples = self._examples(inputs)
        self._check_fingerprint(store, examples)
        held_out: tuple[Input, Targets] | None = None
        if evaluation is not None:
            held_out = (inputs(as_texts(evaluation[0])), evaluation[1])
            if held_out[0].count != len(evaluation[1]):
                raise ArgumentError(
                    f"eval_set: expected as many labels as texts, got {held_out[0].count} texts and"
                    f" {len(evaluation[1])} labels"
                )
        elif settings.early_stopping:
            examples, held_out = self._hold_out(examples)
        schedule = Schedule(
            settings.epochs,
            settings.batch_size,
            settings.optimizer.lr,
            settings.linear,
            settings.seed,
        )
        best = Best(network, settings.patience)
        first, score = int(store.metadata["epochs_done"]), float("nan")
        if first and settings.early_stopping:
            best.score, best.epoch = store.metadata["best_score"], first - 1
        number = len(examples)
        with bar(verbose, settings.epochs * number) as show:
            for epoch in range(first, settings.epochs):

                def report(
                    done: int, loss: float, epoch: int = epoch, score: float = score
                ) -> None:
                    at = FitProgress(
                        epoch + 1,
                        settings.epochs,
                        epoch * number + done,
                        settings.epochs * number,
                        loss,
                        score,
                    )
                    show(at)
                    if progress is not None:
                        progress(at)

                seen = examples.drawn(settings.seed, epoch) if self.one_label else examples
                train_epoch(network, seen, schedule, epoch, self.positive, self.negative, report)
                better = True
                if held_out is not None:
                    score = self._score(network, *held_out)
                if settings.early_stopping:
                    better = best.better(score, epoch)
                if better:
                    store.metadata["epochs_done"] = epoch + 1
                    if settings.early_stopping:
                        store.metadata["best_score"] = score
                        if store.path is None:
                            best.keep()
                    if store.path is not None:
                        store.commit()
                elif best.enough(epoch):
                    break
        self._finish(store, best)

    def _finish(self, store: Store, best: Best) -> None:
        """Return to the best epoch, if it is not the last, and say that all is done."""
        if self.settings.early_stopping:
            if store.path is None:
                best.restore()
            else:
                store.rollback()
        store.metadata["finished"] = True
        if store.path is not None:
            store.commit()

    def _examples(self, inputs: Inputs) -> Examples:
        bags = inputs.bags(self.texts)
        if self.shape.pooling == "flatten":
            matrix = inputs.of_bags(bags).indices
            return Examples(None, matrix, self._shaped(self.targets), self.weight)
        return Examples(bags, None, self._shaped(self.targets), self.weight)

    def _shaped(self, targets: Targets) -> Targets:
        """For one score of two classes: class 1 becomes output 0, class 0 no target."""
        if self.shape.outputs > 1:
            return targets
        ones = targets.classes == 1
        offsets = np.concatenate([[0], np.cumsum(ones)])
        return Targets(np.zeros(int(ones.sum()), np.int32), offsets)

    @staticmethod
    def _check_fingerprint(store: Store, examples: Examples) -> None:
        found = examples.fingerprint()
        if store.metadata.setdefault("fingerprint", found) != found:
            raise ArgumentError("resume: these are not the texts of the fit that was interrupted")

    def _hold_out(self, examples: Examples) -> tuple[Examples, tuple[Input, Targets]]:
        number = len(examples)
        count = max(1, round(number * self.settings.validation_fraction))
        if count >= number:
            raise ArgumentError(f"validation_fraction: leaves none of {number} texts to learn from")
        order = epoch_order(number, self.settings.seed, _HELD_OUT)
        some, others = np.sort(order[:count]), np.sort(order[count:])
        held, _, _ = examples.take(some).part(0, count)
        return examples.take(others), (held, self.targets.take(some))

    def _score(self, network: Network, held: Input, targets: Targets) -> float:
        """The share of texts whose best class is one of theirs."""
        right = 0
        for start in range(0, held.count, _BLOCK):
            end = min(start + _BLOCK, held.count)
            part, own, _ = Examples(
                None if held.offsets is None else (held.indices, held.offsets),
                held.indices if held.offsets is None else None,
                targets,
                np.empty(held.count, np.float32),
            ).part(start, end)
            scores = network.scores(part)
            guess = (
                (scores[:, 0] > 0).astype(np.int64)
                if scores.shape[1] == 1
                else scores.argmax(axis=1)
            )
            texts = np.repeat(np.arange(end - start), np.diff(own.offsets))
            right += int((guess[texts] == own.classes).sum())
        return right / max(1, held.count)


def _sample_weight(sample_weight: Any, number: int) -> FloatArray:
    if sample_weight is None:
        return np.ones(number, np.float32)
    try:
        weight = np.asarray(sample_weight, np.float32)
    except (TypeError, ValueError):
        raise ArgumentError("sample_weight: expected numbers") from None
    if weight.shape != (number,):
        raise ArgumentError(f"sample_weight: expected shape ({number},), got {weight.shape}")
    wrong = ~(np.isfinite(weight) & (weight >= 0))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ArgumentError(
            f"sample_weight[{place}]: expected a finite number >= 0, got {weight[place]}"
        )
    return weight


def _class_weights(given: Any, labels: Labels, counts: Any, number: int) -> FloatArray:
    if given is None:
        return np.ones(len(labels), np.float32)
    if isinstance(given, str) and given == "balanced":
        found: FloatArray = (number / (len(labels) * np.maximum(counts, 1))).astype(np.float32)
        return found
    if not isinstance(given, Mapping):
        raise ArgumentError(f'class_weight: expected a dict or "balanced", got {given!r}')
    places = {value: place for place, value in enumerate(labels.values.tolist())}
    weights = np.ones(len(labels), np.float32)
    for label, weight in given.items():
        if label not in places:
            raise ArgumentError(f"class_weight: {label!r} is none of the labels")
        number_like = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
        if not number_like or not 0 <= float(weight) < np.inf:
            raise ArgumentError(
                f"class_weight[{label!r}]: expected a finite number >= 0, got {weight!r}"
            )
        weights[places[label]] = weight
    return weights
