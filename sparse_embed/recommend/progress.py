"""How training reports, and how it is stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sparse_embed.errors import ArgumentError

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class FitProgress:
    """Where `fit` stands; passed to its `progress` after every batch, to callbacks after an epoch.

    epoch counts from 1; done and total are interactions of all epochs; loss is the mean over the
    epoch so far; speed is in interactions a second; metrics are those of the eval_set, after the
    epochs that measured it.
    """

    epoch: int
    epochs: int
    done: int
    total: int
    loss: float
    speed: float = 0.0
    metrics: Metrics = field(default_factory=dict)


Callback = Callable[[FitProgress], Any]
"""Called after each epoch; training stops when it returns True."""


@dataclass
class EarlyStopping:
    """Stop when a metric of the eval_set has not risen for `patience` measurements.

    Args:
        metric: one that `evaluate` gives, such as "ndcg@20" or "recall@20".
        patience: measurements without a rise by more than `min_delta`.
        restore_best: end with the model of the best measurement.
    """

    metric: str = "ndcg@20"
    patience: int = 3
    min_delta: float = 0.0
    restore_best: bool = True
    best: float = field(default=float("-inf"), init=False)
    best_epoch: int = field(default=0, init=False)
    _waited: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.patience, bool) or not isinstance(self.patience, int):
            raise ArgumentError(f"patience: expected an integer, got {self.patience!r}")
        if self.patience < 1:
            raise ArgumentError(f"patience: expected at least 1, got {self.patience}")

    def reset(self) -> None:
        """Forget an earlier fit."""
        self.best, self.best_epoch, self._waited = float("-inf"), 0, 0

    def __call__(self, at: FitProgress) -> bool:
        if not at.metrics:
            return False
        if self.metric not in at.metrics:
            raise ArgumentError(
                f"metric: expected one of {', '.join(sorted(at.metrics))}, got {self.metric!r}"
            )
        value = at.metrics[self.metric]
        if value > self.best + self.min_delta:
            self.best, self.best_epoch, self._waited = value, at.epoch, 0
        else:
            self._waited += 1
        return self._waited >= self.patience


class ProgressBar:
    """Epoch, loss, metric and speed on stderr; shows nothing unless asked, or on a terminal."""

    def __init__(self, show: bool | None, total: int) -> None:
        """show: None shows it where stderr is a terminal."""
        self._show = sys.stderr.isatty() if show is None else show
        self._total = total
        self._bar: Any = None
        self._task: Any = None
        self._last = 0.0

    def __enter__(self) -> Self:
        if self._show:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=self._total, note="")
            self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, at: FitProgress) -> None:
        if self._bar is None or (time.monotonic() - self._last < 0.1 and at.done < at.total):
            return
        self._last = time.monotonic()
        note = f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.4f}  {at.speed / 1e6:.2f} M/s"
        for name, value in list(at.metrics.items())[:1]:
            note += f"  {name} {value:.4f}"
        self._bar.update(self._task, completed=at.done, note=note)
