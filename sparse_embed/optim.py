"""Sparse optimizers: frozen descriptions.  Their state lives in the table's records.

Law for all: gradients of the same row are merged first, and a row without gradient stays as it is,
bit for bit.  `lr` here is where a table starts; `table.lr` may change between steps and is what
`scalars` gets.  Steps count from 1.  Where implementations differ, each docstring says whose
variant this is.

A later `Adam`, equal to dense Adam at sparse cost by catching up on missed steps, fits in as a
class of its own with one more state field, a per-row `last_step` (uint32 bits in a float32 lane),
and a history of lr in the store.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from sparse_embed._typing import FloatArray
from sparse_embed.errors import ArgumentError

_LARGEST = 3.0e38


class StateField(NamedTuple):
    """One field of optimizer state in a record: its name, float32 lanes, and first value."""

    name: str
    lanes: int
    fill: float


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ArgumentError(f"{where}: expected a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise ArgumentError(f"{where}: expected a finite float32 number, got {number!r}")
    return number


def _not_negative(where: str, value: object) -> float:
    number = _number(where, value)
    if number < 0:
        raise ArgumentError(f"{where}: expected a number >= 0, got {number!r}")
    return number


def _positive(where: str, value: object) -> float:
    number = _number(where, value)
    if number <= 0:
        raise ArgumentError(f"{where}: expected a number > 0, got {number!r}")
    return number


def _positive_or_none(where: str, value: object) -> float | None:
    return None if value is None else _positive(where, value)


def _betas(where: str, value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ArgumentError(f"{where}: expected two numbers, got {value!r}")
    beta1, beta2 = (_number(f"{where}[{i}]", beta) for i, beta in enumerate(value))
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ArgumentError(f"{where}: expected 0 <= beta < 1, got {(beta1, beta2)!r}")
    return beta1, beta2


def _eps_mode(where: str, value: object) -> str:
    if value not in ("hat", "outside"):
        raise ArgumentError(f'{where}: expected "hat" or "outside", got {value!r}')
    return str(value)


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "lr": _not_negative,
    "weight_decay": _not_negative,
    "lr_decay": _not_negative,
    "eps": _not_negative,
    "initial_accumulator_value": _not_negative,
    "betas": _betas,
    "eps_mode": _eps_mode,
    "clip_value": _positive_or_none,
    "clip_norm": _positive_or_none,
}


def check_lr(lr: object) -> float:
    """A learning rate: a finite number >= 0.

    Raises:
        ArgumentError: anything else.
    """
    return _not_negative("lr", lr)


class _Description:
    """Checks, dict and scalars that all optimizers share."""

    name: ClassVar[str]
    clip_value: float | None
    clip_norm: float | None

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            where = f"{type(self).__name__}.{field.name}"
            object.__setattr__(
                self, field.name, _CHECKS[field.name](where, getattr(self, field.name))
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `optimizer_from_dict` reads it back."""
        data: dict[str, Any] = {"name": self.name}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            data[field.name] = list(value) if isinstance(value, tuple) else value
        return data

    def state_fields(self, embedding_dim: int) -> tuple[StateField, ...]:
        """The state of one row, in the order of its record."""
        raise NotImplementedError

    def _rates(self, step: int, lr: float) -> tuple[float, ...]:
        raise NotImplementedError

    def scalars(self, step: int, lr: float) -> FloatArray:
        """What the kernel needs at this step: (9,) float32, computed in float64 first.

        The places are those of `kernels/update.py`.
        """
        values = np.zeros(9, np.float64)
        rates = self._rates(step, lr)
        values[: len(rates)] = rates
        values[6] = np.inf if self.clip_value is None else self.clip_value
        values[7] = np.inf if self.clip_norm is None else self.clip_norm
        state = self.state_fields(1)
        values[8] = state[0].fill if state else 0.0
        return values.astype(np.float32)


@dataclass(frozen=True)
class SGD(_Description):
    """w -= lr (g + weight_decay w)

    torch.optim.SGD without momentum, on touched rows: weight decay is coupled.
    """

    name: ClassVar[str] = "sgd"
    lr: float
    weight_decay: float = 0.0
    _: KW_ONLY
    clip_value: float | None = None
    clip_norm: float | None = None

    def state_fields(self, embedding_dim: int) -> tuple[StateField, ...]:
        return ()

    def _rates(self, step: int, lr: float) -> tuple[float, ...]:
        return lr, self.weight_decay


@dataclass(frozen=True)
class Adagrad(_Description):
    """g += weight_decay w;  sum += g^2;  w -= lr / (1 + (step - 1) lr_decay) g / (sqrt(sum) + eps)

    torch.optim.Adagrad, on touched rows: weight decay is coupled.
    """

    name: ClassVar[str] = "adagrad"
    lr: float = 1e-2
    lr_decay: float = 0.0
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0
    weight_decay: float = 0.0
    _: KW_ONLY
    clip_value: float | None = None
    clip_norm: float | None = None

    def state_fields(self, embedding_dim: int) -> tuple[StateField, ...]:
        return (StateField("sum", embedding_dim, self.initial_accumulator_value),)

    def _rates(self, step: int, lr: float) -> tuple[float, ...]:
        return lr / (1 + (step - 1) * self.lr_decay), self.weight_decay, self.eps


@dataclass(frozen=True)
class RowWiseAdagrad(_Description):
    """g += weight_decay w;  sum += mean_d(g^2);  w -= lr / (sqrt(sum) + eps) g

    FBGEMM's EXACT_ROWWISE_ADAGRAD with L2 weight decay: one accumulator a row.
    """

    name: ClassVar[str] = "row_wise_adagrad"
    lr: float = 1e-2
    eps: float = 1e-8
    initial_accumulator_value: float = 0.0
    weight_decay: float = 0.0
    _: KW_ONLY
    clip_value: float | None = None
    clip_norm: float | None = None

    def state_fields(self, embedding_dim: int) -> tuple[StateField, ...]:
        return (StateField("sum", 1, self.initial_accumulator_value),)

    def _rates(self, step: int, lr: float) -> tuple[float, ...]:
        return lr, self.weight_decay, self.eps


def _adam_rates(
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, outside: bool
) -> tuple[float, ...]:
    """rate, decay, eps, root, 1 - beta1, 1 - beta2 (formulas: kernels/adam.py), all in float64."""
    correction1 = -math.expm1(step * math.log(betas[0])) if betas[0] > 0 else 1.0
    correction2 = -math.expm1(step * math.log(betas[1])) if betas[1] > 0 else 1.0
    if outside:
        rate, root = lr / correction1, 1 / math.sqrt(correction2)
    else:
        rate, root = lr * math.sqrt(correction2) / correction1, 1.0
    return rate, 1 - lr * weight_decay, eps, root, 1 - betas[0], 1 - betas[1]


@dataclass(frozen=True)
class LazyAdam(_Description):
    """Adam whose moments move only where there is a gradient; bias corrected by the table's step.

    eps_mode "hat" (default) is torch.optim.SparseAdam and TensorFlow's LazyAdam:
        w -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
    "outside" is the placement of torch.optim.Adam and FBGEMM's ADAM:
        w -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    `weight_decay` is decoupled (AdamW: w *= 1 - lr weight_decay first), on touched rows only.
    """

    name: ClassVar[str] = "lazy_adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    eps_mode: str = "hat"
    _: KW_ONLY
    clip_value: float | None = None
    clip_norm: float | None = None

    def state_fields(self, embedding_dim: int) -> tuple[StateField, ...]:
        return (
            StateField("exp_avg", embedding_dim, 0.0),
            StateField("exp_avg_sq", embedding_dim, 0.0),
        )

    def _rates(self, step: int, lr: float) -> tuple[float, ...]:
        outside = self.eps_mode == "outside"
        return _adam_rates(step, lr, self.betas, self.eps, self.weight_decay, outside)


@dataclass(frozen=True)
class RowWiseAdam(_Description):
    """LazyAdam with one second moment a row, of mean_d(g^2); eps outside the root.

    FBGEMM's PARTIAL_ROWWISE_ADAM: two thirds of LazyAdam's memory.  `weight_decay` is decoupled.
    """

    name: ClassVar[str] = "row_wise_adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    _: KW_ONLY
    clip_value: float | None = None
    clip_norm: float | None = None

    def state_fields(self, embedding_dim: int) -> tuple[StateField, ...]:
        return (StateField("exp_avg", embedding_dim, 0.0), StateField("exp_avg_sq", 1, 0.0))

    def _rates(self, step: int, lr: float) -> tuple[float, ...]:
        return _adam_rates(step, lr, self.betas, self.eps, self.weight_decay, True)


Optimizer: TypeAlias = SGD | Adagrad | RowWiseAdagrad | LazyAdam | RowWiseAdam

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "row_wise_adagrad": RowWiseAdagrad,
    "lazy_adam": LazyAdam,
    "row_wise_adam": RowWiseAdam,
}


def optimizer_from_dict(data: object) -> Optimizer:
    """The optimizer that `to_dict` described.

    Raises:
        ArgumentError: not a dict, an unknown name, a missing or unknown field, or a bad value.
    """
    if not isinstance(data, dict):
        raise ArgumentError(f"optimizer: expected a dict, got {type(data).__name__}")
    name = data.get("name")
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise ArgumentError(f"optimizer: expected a name of {', '.join(OPTIMIZERS)}, got {name!r}")
    kind = OPTIMIZERS[name]
    known = {field.name for field in fields(kind)}
    if set(data) != known | {"name"}:
        unknown = sorted(str(key) for key in set(data) - known - {"name"})
        missing = sorted(known - set(data))
        raise ArgumentError(f"optimizer {name!r}: unknown fields {unknown}, missing {missing}")
    return kind(**{field: data[field] for field in known})
