"""scikit-learn's conventions for an estimator, without scikit-learn: parameters by name."""

from __future__ import annotations

import inspect
from typing import Any, Self

from sparse_embed.errors import ArgumentError, SparseEmbedError


class NotFittedError(SparseEmbedError, ValueError, AttributeError):
    """The model has not been fitted yet.  (scikit-learn's is both of these builtins too.)"""


class Estimator:
    """`get_params`, `set_params` and the tags that `clone`, `Pipeline` and `GridSearchCV` ask for.

    A subclass keeps each argument of its constructor, unchanged, under the argument's name.
    """

    _store: Any

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor; they count from the next `fit` on.

        Raises:
            ArgumentError: a name that the constructor does not have.
        """
        names = self._names()
        for name in params:
            if name not in names:
                raise ArgumentError(
                    f"{name}: no argument of {type(self).__name__}; expected one of"
                    f" {', '.join(names)}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Called by scikit-learn (1.6 and later) alone, so it is there to be imported."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True, multi_output=True),
            transformer_tags=None,
            classifier_tags=ClassifierTags(multi_label=True),
            regressor_tags=None,
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return self._store is not None

    @property
    def _estimator_type(self) -> str:
        """As scikit-learn before 1.6 asks."""
        return "classifier"

    def __getstate__(self) -> dict[str, Any]:
        if self._store is not None:
            raise TypeError(
                f"a fitted {type(self).__name__} is not pickled: its rows are a store;"
                " use save(path) and load(path)"
            )
        return dict(self.__dict__)

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default and value != defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"
