"""A classifier's arguments, checked: what `fit` works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparse_embed._validate import as_integer, as_probability, as_seed
from sparse_embed.errors import ArgumentError
from sparse_embed.initializers import Initializer, Uniform
from sparse_embed.optim import OPTIMIZERS, SGD, Adagrad, LazyAdam, Optimizer, check_lr
from sparse_embed.text.features import TextFeatures

if TYPE_CHECKING:
    from sparse_embed.text.classifier import TextClassifier

POOLINGS = ("mean", "sqrtn", "sum", "max", "flatten")
LOSSES = ("auto", "softmax", "ova")
SCHEDULES = ("linear", "constant")
_NAMED: dict[str, tuple[Any, float]] = {
    "adagrad": (Adagrad, 0.05),
    "adam": (LazyAdam, 0.01),
    "sgd": (SGD, 0.1),
}
_FLAT_ADAM = 0.001
_MOST_FEATURES = 1 << 62
_EPOCHS = 20
_FEWEST, _VISITS = 5, 1_000_000
_FLAT_FEWEST, _FLAT_VISITS = 3, 75_000  # it learns texts by heart: 20 of IMDB's are far too many


@dataclass(frozen=True)
class Settings:
    """Checked arguments of a TextClassifier; those that are not here are the model's business."""

    embedding_dim: int
    epochs: int
    batch_size: int
    optimizer: Optimizer
    linear: bool
    features: TextFeatures
    min_count: int
    max_features: int | None
    pooling: str
    length: int
    dropout: float
    batch_norm: bool
    loss: str
    label_sampling: bool
    class_weight: Any
    early_stopping: bool
    validation_fraction: float
    patience: int
    pretrained: Any
    static: bool
    seed: int
    cache_bytes: int | None

    @property
    def init(self) -> Initializer:
        """fastText's: uniform in 1/D."""
        return Uniform(1 / self.embedding_dim)

    @classmethod
    def of(cls, model: TextClassifier, number: int) -> Settings:
        """Of a model, for a fit of this many texts.

        Raises:
            ArgumentError: names the argument, what was found and what was wanted.
        """
        dim = _integer("embedding_dim", model.embedding_dim, 1)
        pooling = _one_of("pooling", model.pooling, POOLINGS)
        maxn = _integer("maxn", model.maxn, 0)
        minn = _integer("minn", model.minn, 1 if maxn else 0)
        if minn > maxn:
            raise ArgumentError(f"minn: expected at most maxn = {maxn}, got {minn}")
        flat = pooling == "flatten"
        grams = 1 if flat else 2
        if model.word_ngrams is not None:
            grams = _integer("word_ngrams", model.word_ngrams, 1, 1024)
        if flat and (grams != 1 or maxn):
            raise ArgumentError(
                'pooling: "flatten" has a place for each word, so it wants word_ngrams=1 and'
                f" maxn=0, got word_ngrams={grams} and maxn={maxn}"
            )
        if flat and model.binary:
            raise ArgumentError(
                'binary: pooling="flatten" has a place for each word, so not with it'
            )
        if model.static and model.pretrained is None:
            raise ArgumentError("static: there are no vectors to leave alone; give pretrained too")
        if model.static and pooling == "max":
            raise ArgumentError('static: not with pooling="max"')
        seed = as_seed(model.seed)
        features = TextFeatures(
            _integer("num_embeddings", model.num_embeddings, 1, 1 << 62),
            grams,
            minn,
            maxn,
            bool(model.normalize),
            seed & 0xFFFFFFFF,
            bool(model.binary),
        )
        most = None
        if model.max_features is not None:
            most = _integer("max_features", model.max_features, 1)
        fraction = as_probability("validation_fraction", model.validation_fraction)
        if model.early_stopping and fraction == 0:
            raise ArgumentError("validation_fraction: expected more than 0 with early_stopping")
        return cls(
            embedding_dim=dim,
            epochs=_epochs(model.epochs, number, flat),
            batch_size=_integer("batch_size", model.batch_size, 1),
            optimizer=_optimizer(model.optimizer, model.lr, flat),
            linear=_one_of("lr_schedule", model.lr_schedule, SCHEDULES) == "linear",
            features=features,
            min_count=_integer("min_count", model.min_count, 1),
            max_features=most,
            pooling=pooling,
            length=_integer("max_length", model.max_length, 1) if flat else 1,
            dropout=as_probability("dropout", model.dropout),
            batch_norm=bool(model.batch_norm),
            loss=_one_of("loss", model.loss, LOSSES),
            label_sampling=bool(model.label_sampling),
            class_weight=model.class_weight,
            early_stopping=bool(model.early_stopping),
            validation_fraction=fraction,
            patience=_integer("patience", model.patience, 1),
            pretrained=model.pretrained,
            static=bool(model.static),
            seed=seed,
            cache_bytes=model.cache_bytes,
        )


def _integer(name: str, value: object, least: int, most: int = _MOST_FEATURES) -> int:
    number = as_integer(name, value)
    if not least <= number <= most:
        wanted = f"at least {least}" if number < least else f"at most {most}"
        raise ArgumentError(f"{name}: expected {wanted}, got {number}")
    return number


def _epochs(epochs: object, number: int, flat: bool) -> int:
    if epochs is None:
        visits, fewest = (_FLAT_VISITS, _FLAT_FEWEST) if flat else (_VISITS, _FEWEST)
        return min(max(visits // max(number, 1), fewest), _EPOCHS)
    return _integer("epochs", epochs, 1)


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def _optimizer(optimizer: object, lr: object, flat: bool) -> Optimizer:
    if optimizer is None:
        optimizer = "adam" if flat else "adagrad"
    if isinstance(optimizer, tuple(OPTIMIZERS.values())):
        if lr is not None:
            raise ArgumentError(f"lr: give it in optimizer or alone, got both {lr} and {optimizer}")
        chosen: Any = optimizer
        return chosen  # type: ignore[no-any-return]
    if not isinstance(optimizer, str) or optimizer not in _NAMED:
        raise ArgumentError(
            f"optimizer: expected one of {', '.join(_NAMED)} or an optimizer of this package,"
            f" got {optimizer!r}"
        )
    kind, usual = _NAMED[optimizer]
    if flat and kind is LazyAdam:
        usual = _FLAT_ADAM
    made: Optimizer = kind(lr=usual if lr is None else check_lr(lr))
    return made
