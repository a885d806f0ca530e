"""Text on embedding tables: classification and word vectors, with the habits of scikit-learn,
fastText and gensim.

tokenize.py    texts to words: what a newcomer's raw text needs before it is hashed
classifier.py  TextClassifier
vectors.py     WordVectors
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Names are imported when they are first asked for: each brings kernels of its own.
_HOME = {
    "TextClassifier": "sparse_embed.text.classifier",
    "WordVectors": "sparse_embed.text.vectors",
}

__all__ = ["TextClassifier", "WordVectors"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
