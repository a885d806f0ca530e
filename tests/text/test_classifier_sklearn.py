"""TextClassifier inside scikit-learn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.text import TextClassifier
from tests.text.test_classifier import LABELS, NEW_LABELS, NEW_TEXTS, TEXTS, small


def test_parameters():
    model = small(epochs=3)
    assert model.get_params()["epochs"] == 3
    assert model.set_params(epochs=4, lr=0.2) is model
    assert (model.epochs, model.lr) == (4, 0.2)
    with pytest.raises(se.ArgumentError, match="no argument"):
        model.set_params(epoch=4)
    assert repr(TextClassifier(epochs=3)) == "TextClassifier(epochs=3)"


def test_pickled_before_fit_and_not_after():
    again = pickle.loads(pickle.dumps(small(epochs=3)))
    assert again.get_params() == small(epochs=3).get_params()
    with pytest.raises(TypeError, match="save"):
        pickle.dumps(small(epochs=1).fit(TEXTS, LABELS))


def test_clone_pipeline_grid_search():
    pytest.importorskip("sklearn", minversion="1.6")
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.utils.validation import check_is_fitted

    model = small(epochs=3)
    assert is_classifier(model)
    copied = clone(model)
    assert copied is not model
    assert copied.get_params() == model.get_params()

    upper = FunctionTransformer(lambda texts: [text.upper() for text in texts])
    pipe = make_pipeline(upper, small(epochs=5)).fit(TEXTS, LABELS)
    assert pipe.score(NEW_TEXTS, NEW_LABELS) > 0.9
    check_is_fitted(pipe[-1])

    grid = {"epochs": [1, 6], "pooling": ["mean", "sqrtn"]}
    search = GridSearchCV(small(), grid, cv=3, scoring="f1_macro").fit(TEXTS, LABELS)
    assert search.best_params_["epochs"] == 6
    assert search.best_estimator_.score(NEW_TEXTS, NEW_LABELS) > 0.9
    assert np.array_equal(search.classes_, ["bad", "good"])

    scores = cross_val_score(small(epochs=5), np.array(TEXTS, object), LABELS == "good", cv=3)
    assert scores.min() > 0.8
