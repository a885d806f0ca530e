"""Epochs and batches: which texts a step sees, at what learning rate, and when to stop.

The order of an epoch is a function of (seed, epoch) alone, so training goes on after an interrupted
epoch as if nothing had happened.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparse_embed._typing import AnyArray, FloatArray, IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.text.features import Bags, take
from sparse_embed.text.labels import Targets
from sparse_embed.text.network import Input, Network, Weights

_BLOCK = 1 << 12  # texts put in order at a time


@dataclass(frozen=True)
class FitProgress:
    """Where `fit` stands; passed to its `progress` after every batch.

    epoch counts from 1; done and total are texts of all epochs; loss is the mean over the epoch so
    far; score is the newest one on held-out texts, NaN before the first.
    """

    epoch: int
    epochs: int
    done: int
    total: int
    loss: float
    score: float


@dataclass(frozen=True)
class Examples:
    """Texts ready for training: bags or a padded matrix, their targets, and their weights."""

    bags: Bags | None
    matrix: AnyArray | None
    targets: Targets
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, order: IndexArray) -> Examples:
        """Some texts, in this order."""
        return Examples(
            None if self.bags is None else take(self.bags, order),
            None if self.matrix is None else self.matrix[order],
            self.targets.take(order),
            self.weight[order],
        )

    def drawn(self, seed: int, epoch: int) -> Examples:
        """With one label a text: where there are several, one of them by chance."""
        return replace(self, targets=self.targets.drawn(seed, epoch))

    def part(self, begin: int, end: int) -> tuple[Input, Targets, FloatArray]:
        """Neighbours, without copying."""
        classes, ends = self.targets.classes, self.targets.offsets[begin : end + 1]
        targets = Targets(classes[ends[0] : ends[-1]], ends - ends[0])
        if self.bags is None:
            assert self.matrix is not None
            return Input(self.matrix[begin:end], None), targets, self.weight[begin:end]
        indices, offsets = self.bags[0], self.bags[1][begin : end + 1]
        batch = Input(indices[offsets[0] : offsets[-1]], offsets - offsets[0])
        return batch, targets, self.weight[begin:end]

    def batches(
        self, order: IndexArray, size: int
    ) -> Iterator[tuple[Input, Targets, FloatArray, int]]:
        """Batches of `size` texts in this order, and how many texts are done with each."""
        block = max(1, _BLOCK // size) * size
        for start in range(0, len(order), block):
            shuffled = self.take(order[start : start + block])
            for begin in range(0, len(shuffled), size):
                end = min(begin + size, len(shuffled))
                yield *shuffled.part(begin, end), start + end

    def fingerprint(self) -> int:
        """A checksum: `fit(resume=True)` refuses other data."""
        found = 0
        arrays: list[Any] = [self.targets.classes, self.targets.offsets, self.weight]
        arrays += list(self.bags) if self.bags is not None else [self.matrix]
        for array in arrays:
            found = zlib.crc32(np.ascontiguousarray(array).data, found)
        return found


def epoch_order(number: int, seed: int, epoch: int) -> IndexArray:
    """A permutation of 0..number-1."""
    random: AnyArray = np.random.PCG64([seed, epoch]).random_raw(number)
    return np.argsort(random, kind="stable")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.  The rate falls on a straight line to 0, as fastText's, or stays."""

    epochs: int
    batch_size: int
    lr: float
    linear: bool
    seed: int

    def rate(self, epoch: int, done: int, number: int) -> float:
        """The learning rate after `done` texts of an epoch (counted from 0)."""
        passed = (epoch * number + done) / (self.epochs * number)
        return self.lr * (1 - passed) if self.linear else self.lr


def train_epoch(
    network: Network,
    examples: Examples,
    schedule: Schedule,
    epoch: int,
    positive: FloatArray,
    negative: FloatArray,
    report: Callable[[int, float], None],
) -> float:
    """One visit of every text; the mean loss.

    Args:
        report: called after each batch with the texts done and the mean loss so far.

    Raises:
        ArgumentError: training diverged.
    """
    number, total, before = len(examples), 0.0, 0
    order = epoch_order(number, schedule.seed, epoch)
    for batch, targets, example, done in examples.batches(order, schedule.batch_size):
        rate = schedule.rate(epoch, before, number)
        network.words.lr = network.dense.lr = rate
        total += network.train(batch, targets, Weights(example, positive, negative))
        before = done
        report(done, total / done)
    if not np.isfinite(total):
        raise ArgumentError(
            f"training diverged in epoch {epoch + 1} (loss {total / number}): try a smaller"
            f" learning rate than {schedule.lr}"
        )
    return total / number


class Best:
    """The best epoch so far, to return to: the last commit of a store on disk, else copies."""

    def __init__(self, network: Network, patience: int) -> None:
        self._network, self._patience = network, patience
        self._copies: dict[str, tuple[IndexArray, FloatArray]] = {}
        self.score, self.epoch = -np.inf, -1

    def better(self, score: float, epoch: int) -> bool:
        """Is this epoch the best so far?  Then it is the one to return to."""
        if score <= self.score:
            return False
        self.score, self.epoch = score, epoch
        return True

    def enough(self, epoch: int) -> bool:
        """Has there been no better one for `patience` epochs?"""
        return epoch - self.epoch >= self._patience

    def keep(self) -> None:
        """Copy the trained rows, for a store in memory."""
        for name in ("words", "dense"):
            table = getattr(self._network, name)
            rows = table.trained_indices()
            self._copies[name] = (rows, table.lookup(rows))
        norm = self._network.norm
        self._statistics = None if norm is None else (norm.running_mean + 0, norm.running_var + 0)

    def restore(self) -> None:
        """Put the copies back; rows trained since are untrained again."""
        for name, (rows, values) in self._copies.items():
            table = getattr(self._network, name)
            table.assign(rows, values)
            table.reset(np.setdiff1d(table.trained_indices(), rows, assume_unique=True))
        norm = self._network.norm
        if norm is not None and self._statistics is not None:
            norm.running_mean[:], norm.running_var[:] = self._statistics
