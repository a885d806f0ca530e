"""TextClassifier: fit(texts, labels), predict, predict_proba, score; saved as a store."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import scipy.sparse

from sparse_embed._typing import AnyArray, FloatArray, IndexArray
from sparse_embed.errors import ArgumentError, NotAStoreError
from sparse_embed.optim import Optimizer
from sparse_embed.store import Store
from sparse_embed.text import labels as _labels
from sparse_embed.text import model_store
from sparse_embed.text.estimator import Estimator, NotFittedError
from sparse_embed.text.features import Bags, as_texts
from sparse_embed.text.fitting import Fitting
from sparse_embed.text.inputs import Inputs
from sparse_embed.text.labels import Labels
from sparse_embed.text.network import Network
from sparse_embed.text.resuming import take_up
from sparse_embed.text.settings import Settings
from sparse_embed.text.training import FitProgress

__all__ = ["FitProgress", "NotFittedError", "TextClassifier"]

_BLOCK = 1 << 12  # texts scored at a time


class TextClassifier(Estimator):
    """Texts to classes: words, word n-grams and character n-grams hashed into one table, pooled.

        x = pool(rows of the text);  x = batch_norm(dropout(x)) if asked for;  s = W x + b
        p = softmax(s);  with loss="ova", and for two classes, p = 1 / (1 + e^-s)

    The defaults are one setting for short and long texts, two and 735 classes, to be left alone:
    of mean and sqrtn, lr 0.03 to 0.4 and 5 to 20 epochs, that which is good on all of fastText's
    cooking questions, sentence polarity, subjectivity and movie reviews, and best on none.  Give
    `word_ngrams=1` where texts are long and few, `minn=3, maxn=6` where words are inflected or
    misspelt, and `early_stopping=True` where labels are often wrong.

    Args:
        embedding_dim: D, numbers a word or n-gram has.
        epochs: visits of every text; None: 20, and above 50,000 texts as many as make a million
            visits, but at least 5; flattened: 20, and above 3,750 texts as many as make 75,000
            visits, but at least 3 (of 2, 3, 5 and 10 epochs 2 and 3 were best on 25,000 made-up
            texts of IMDB's lengths, 10 on sentence polarity's 8,500: visits are what agrees).
        lr: learning rate of an optimizer given by name, or chosen by the pooling; None: its own,
            see `optimizer`.
        batch_size: texts a step.  Gradients of a batch are added, not averaged.
        optimizer: "adagrad" (lr 0.05), "adam" (0.01; flattened 0.001) or "sgd" (0.1), or any of
            this package; None: "adagrad", flattened "adam".
        lr_schedule: "linear" falls to 0 at the end of the last epoch, as fastText's; "constant".
        word_ngrams: longest n-gram in words; None: 2, flattened 1, and no other there.
        minn, maxn: lengths of character n-grams of words; maxn=0: none.
        num_embeddings: rows to hash into, E; only rows that occur cost memory.
        normalize: lower case, and signs apart from words (`text.tokenize.normalize`); False: words
            are what white space separates, as it stands.
        binary: a text has each word and n-gram once, however often it occurs in it, as in
            scikit-learn's `CountVectorizer(binary=True)`; not flattened.
        min_count: leave out words and n-grams that occur less often in training (`binary`: in fewer
            texts).
        max_features: keep the most frequent words and n-grams; None: all.
        pooling: "sqrtn" (the sum over the root of their number), "mean", "sum" or "max" of a
            text's rows, or "flatten": the last `max_length` words side by side, padded with zeros
            in front.  Its weights are many, so `epochs`, `optimizer` and `word_ngrams` have
            defaults of their own with it.
        max_length: words of a flattened text.
        dropout: of the pooled numbers, in training.
        batch_norm: normalise the pooled numbers over the batch.
        loss: "softmax": one class a text, or shares of several; "ova": each class by itself, for
            texts with any number of classes; "auto": "ova" for lists of labels, else "softmax".
        label_sampling: of a text's several labels "softmax" sees one by chance at every visit, as
            fastText's does, instead of a share of each.  Better for plain SGD, which learns shares
            by heart (cooking, lr 1, 25 epochs: P@1 0.58 instead of 0.56), worse for Adagrad.
        class_weight: {label: weight}, or "balanced": texts / (classes * texts of the class).
        early_stopping: hold out `validation_fraction` of the texts (or use fit's `eval_set`), stop
            when the score has not risen for `patience` epochs, and return to the best epoch.
        validation_fraction, patience: see early_stopping.
        pretrained: word vectors to start from: a file in word2vec's or fastText's format, a pair
            (words, (V, D) float32 array), or anything with `words` and `vectors`.
        static: leave the pretrained vectors as they are; only n-grams and unknown words train.
        seed: the same seed and data give the same model, bit for bit, for any number of threads.
        path: directory of the store to train on, with a commit after every epoch; None: in memory.
        cache_bytes: memory for rows; None: what the process has.
        verbose: show a progress bar on stderr.

    Attributes:
        classes_: the labels, sorted: the columns of `predict_proba`.

    Arguments are kept as they are given and checked by `fit`, as scikit-learn wants it: a model
    works in its `Pipeline`, `GridSearchCV` and `cross_val_score`.

    References:
        Joulin, Grave, Bojanowski, Mikolov: Bag of Tricks for Efficient Text Classification. 2016.
        Duchi, Hazan, Singer: Adaptive Subgradient Methods. JMLR 2011.

    >>> texts = ["a great film", "great fun", "a dull film", "so dull and so sad"]
    >>> model = TextClassifier(epochs=20).fit(texts, ["good", "good", "bad", "bad"])
    >>> model.predict(["great", "very dull"]).tolist()
    ['good', 'bad']
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int = 64,
        optimizer: Optimizer | str | None = None,
        lr_schedule: str = "linear",
        word_ngrams: int | None = None,
        minn: int = 0,
        maxn: int = 0,
        num_embeddings: int = 1 << 24,
        normalize: bool = True,
        binary: bool = False,
        min_count: int = 1,
        max_features: int | None = None,
        pooling: str = "sqrtn",
        max_length: int = 500,
        dropout: float = 0.0,
        batch_norm: bool = False,
        loss: str = "auto",
        label_sampling: bool = False,
        class_weight: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 3,
        pretrained: Any = None,
        static: bool = False,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.embedding_dim = embedding_dim
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.word_ngrams = word_ngrams
        self.minn = minn
        self.maxn = maxn
        self.num_embeddings = num_embeddings
        self.normalize = normalize
        self.binary = binary
        self.min_count = min_count
        self.max_features = max_features
        self.pooling = pooling
        self.max_length = max_length
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.loss = loss
        self.label_sampling = label_sampling
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.pretrained = pretrained
        self.static = static
        self.seed = seed
        self.path = path
        self.cache_bytes = cache_bytes
        self.verbose = verbose
        self._store: Store | None = None
        self._wrote_path = False
        self._labels: Labels | None = None
        self._network: Network | None = None
        self._inputs: Inputs | None = None

    # ---- training -------------------------------------------------------------------------------

    def fit(
        self,
        texts: Any,
        labels: Any,
        *,
        sample_weight: Any = None,
        eval_set: tuple[Any, Any] | None = None,
        resume: bool = False,
        progress: Callable[[FitProgress], None] | None = None,
    ) -> Self:
        """Learn the labels of texts.

        Args:
            texts: N strings.  An empty one is scored by the biases alone.
            labels: for each text a str or int; or a list of them; or a row of a 0/1 matrix.
            sample_weight: (N,) weights of the texts.
            eval_set: (texts, labels) to score after every epoch, for early stopping and progress;
                labels that training does not have count as missed.
            resume: go on after the last commit of a fit that was interrupted (of a model with a
                `path`: this one, a new one with the same arguments, or one loaded with mode "r+");
                the texts must be the same.  The result is that of a fit without interruption, bit
                for bit.  With nothing at `path`, or nothing committed yet, it begins there.
            progress: called after every batch.

        Returns:
            The model.

        Raises:
            ArgumentError: a setting out of range; texts that are not strings; labels of mixed
                types or of one class only; weights that are negative or NaN; nothing to resume;
                training diverged.
            StoreError: `path` exists already or cannot be written.

        Notes:
            A model with a `path` commits after every epoch (with early stopping, after each that
            is the best so far).  If `fit` is interrupted the model goes back to the last of these
            commits and stays usable there; in memory it is as before `fit`.
        """
        listed = as_texts(texts)
        settings = Settings.of(self, len(listed))
        resume = resume and self._take_up(settings)
        if resume:
            known = self._known_labels()
            targets = known.encode(labels)
        else:
            known, targets = _labels.learn(labels)
        if len(listed) != len(targets):
            raise ArgumentError(f"labels: expected {len(listed)}, one a text, got {len(targets)}")
        fitting = Fitting(settings, known, listed, targets, sample_weight)
        evaluation = (
            None if eval_set is None else (eval_set[0], known.encode(eval_set[1], known=False))
        )
        if resume:
            fitting.check_resumed(self.store)
        else:
            self._replace_store(fitting.create_store(self.path, overwrite=self._wrote_path), known)
        try:
            fitting.run(self.store, evaluation, progress, verbose=bool(self.verbose))
        except BaseException:
            self._abandon()
            raise
        return self

    def _take_up(self, settings: Settings) -> bool:
        """Is there a fit to go on with, of this model or of one that was made like it?"""
        if self._store is not None or self.path is None:
            self._need_store()
            return True

        def adopt(store: Store) -> None:
            _, labels = model_store.read_description(store)
            model_store.check_same(store, settings)
            self._attach(store, labels)

        found = take_up(self.path, self.cache_bytes, adopt)
        self._wrote_path = os.path.exists(self.path)
        return found

    def _replace_store(self, store: Store, labels: Labels) -> None:
        if self._store is not None:
            self._store.close(checkpoint=False)
        self._wrote_path = self.path is not None
        self._attach(store, labels)

    def _attach(self, store: Store, labels: Labels) -> None:
        self._store, self._labels = store, labels
        shape, features, fixed_words, kept = model_store.read_shape(store)
        self._network = Network(store, shape)
        self._inputs = Inputs(features, shape, fixed_words, kept)
        self.classes_ = labels.values

    def _abandon(self) -> None:
        """After an interrupted epoch: back to the last commit, or to no model at all."""
        store = self.store
        if store.path is not None:
            store.rollback()
            if store.metadata.get("epochs_done", 0) > 0:
                return
        self._forget(checkpoint=False)

    # ---- the fitted model -----------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store with the tables `words` and `dense`.

        Raises:
            NotFittedError: before `fit`.
        """
        return self._need_store()

    def _need_store(self) -> Store:
        if self._store is None:
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        return self._store

    def _known_labels(self) -> Labels:
        self._need_store()
        assert self._labels is not None
        return self._labels

    def decision_function(self, texts: Any) -> FloatArray:
        """Scores before the softmax or sigmoid: (N, classes), or (N,) for two classes."""
        scores = self._scores(texts)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def _scores(self, texts: Any) -> FloatArray:
        self._need_store()
        assert self._network is not None and self._inputs is not None
        listed = as_texts(texts)
        out = np.empty((len(listed), self._network.shape.outputs), np.float32)
        for start in range(0, len(listed), _BLOCK):
            batch = self._inputs(listed[start : start + _BLOCK])
            out[start : start + _BLOCK] = self._network.scores(batch)
        return out

    def predict_proba(self, texts: Any) -> FloatArray:
        """Probability of each class, in the order of `classes_`: (N, classes) float32.

        Rows add up to 1, except with loss="ova", where each class stands by itself.
        """
        scores = self._scores(texts)
        assert self._network is not None
        return model_store.probabilities(scores, self._network.shape.loss)

    def predict(self, texts: Any) -> Any:
        """The most probable class of each text: (N,) of the labels' type.

        Models of several labels a text give those with a probability of 0.5 or more: a list for
        each text, or a 0/1 array, as `fit` had them.
        """
        chance = self.predict_proba(texts)
        known = self._known_labels()
        if known.kind == "single":
            return known.values[chance.argmax(axis=1)]
        chosen = chance >= 0.5
        if known.kind == "columns":
            return chosen.astype(np.int64)
        return [known.values[row].tolist() for row in chosen]

    def predict_top(self, texts: Any, k: int = 1) -> tuple[AnyArray, FloatArray]:
        """The k most probable classes of each text: labels and probabilities, (N, k), best first.

        fastText's `predict(text, k)`.  Ties: the class that sorts first.
        """
        found, chance = self._top(texts, k)
        return self._known_labels().values[found], chance

    def _top(self, texts: Any, k: int) -> tuple[IndexArray, FloatArray]:
        """Class numbers and probabilities, (N, k)."""
        chance = self.predict_proba(texts)
        if not 1 <= k <= chance.shape[1]:
            raise ArgumentError(f"k: expected 1 to {chance.shape[1]} (all classes), got {k}")
        order = np.argsort(-chance, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(chance, order, axis=1)

    def score(self, texts: Any, labels: Any, sample_weight: Any = None) -> float:
        """Accuracy; with several labels a text, how many texts have exactly theirs (scikit-learn's
        convention)."""
        known = self._known_labels()
        targets = known.encode(labels, known=False)
        chance = self.predict_proba(texts)
        if len(targets) != len(chance):
            raise ArgumentError(f"labels: expected {len(chance)}, one a text, got {len(targets)}")
        true = targets.matrix(len(known)) > 0
        if known.kind == "single":
            right = true[np.arange(len(true)), chance.argmax(axis=1)]
        else:
            right = ((chance >= 0.5) == true).all(axis=1)
        return float(np.average(right, weights=sample_weight)) if len(right) else float("nan")

    def precision_recall_at(self, texts: Any, labels: Any, k: int = 1) -> tuple[float, float]:
        """P@k and R@k over texts with at least one label: the figures of fastText's `test`.

        Args:
            labels: one for each text, or a list for each, whichever `fit` had.  Those that it did
                not have are never found.
            k: 1 to the number of classes.
        """
        targets = self._known_labels().encode(labels, known=False, same_kind=False)
        counts = _labels.label_counts(labels)
        found, chance = self._top(texts, k)
        if len(targets) != len(chance):
            raise ArgumentError(f"labels: expected {len(chance)}, one a text, got {len(targets)}")
        true = targets.matrix(len(self._known_labels()))
        right = int(np.take_along_axis(true, found, axis=1).sum())
        return right / max(1, k * int((counts > 0).sum())), right / max(1, int(counts.sum()))

    def bags(self, texts: Any) -> Bags:
        """What the table looks up for each text: row numbers (L,) and offsets (N + 1,)."""
        self._need_store()
        assert self._inputs is not None
        return self._inputs.bags(as_texts(texts))

    def one_hot(self, texts: Any) -> scipy.sparse.csr_array:
        """The bags as a sparse matrix (N, E): `one_hot(texts) @ rows` is the "sum" lookup, and any
        scikit-learn model takes it as the same features."""
        from sparse_embed.text.one_hot import one_hot

        assert self._network is not None or self._need_store()
        indices, offsets = self.bags(texts)
        return one_hot(indices, offsets, self.store.tables["words"].num_embeddings)

    # ---- on disk --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a new store, which `load` opens; optimizer state is copied too.

        Raises:
            NotFittedError: before `fit`.
            StoreError: `path` exists or cannot be written.
        """
        self.store.snapshot(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        mode: str = "r",
        *,
        cache_bytes: int | None = None,
    ) -> Self:
        """Open a saved model.  Rows are read as they are asked for, so this takes milliseconds.

        Args:
            path: what `save` wrote, or the `path` of a model, fitted or interrupted.
            mode: "r" reads, next to other readers and a writer; "r+" is a writer, which can resume.
            cache_bytes: memory for rows; None: what the process has.

        Raises:
            NotAStoreError: no store at `path`, or one of something else.
        """
        store = Store.open(path, mode=mode, cache_bytes=cache_bytes)
        try:
            arguments, labels = model_store.read_description(store)
            try:
                model = cls(**arguments, path=path, cache_bytes=cache_bytes)
                model._attach(store, labels)
            except (TypeError, ValueError, KeyError) as error:
                raise NotAStoreError(
                    f"{store.path}: its metadata does not describe a {cls.__name__}: {error}"
                ) from error
        except BaseException:
            store.close(checkpoint=False)
            raise
        return model

    def _forget(self, checkpoint: bool = True) -> None:
        if self._store is not None:
            self._store.close(checkpoint)
        self._store = self._labels = self._network = self._inputs = None
        self.__dict__.pop("classes_", None)

    def close(self) -> None:
        """Close the store.  A file-backed model can be loaded again; one in memory is gone."""
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
