"""WordVectors: skip-gram and CBOW with negative sampling and sub-words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sparse_embed.errors import ArgumentError, NotAStoreError
from sparse_embed.optim import SGD, Optimizer
from sparse_embed.store import Store
from sparse_embed.text import vectors_store
from sparse_embed.text.corpus import Corpus, Vocabulary, make_vocabulary
from sparse_embed.text.resuming import check_same, take_up
from sparse_embed.text.vectors_options import batch_tokens, check_options
from sparse_embed.text.vectors_queries import NotFittedError, VectorQueries
from sparse_embed.text.vectors_store import Progress
from sparse_embed.text.vectors_training import Learned, Objective, Sampler

__all__ = ["NotFittedError", "VectorProgress", "WordVectors"]

_CLIP = 10.0
_BLOCK = 1 << 15  # tokens whose centres are shuffled


@dataclass(frozen=True)
class VectorProgress:
    """Where training stands; passed to `progress` after every batch.

    epoch counts from 1; done and total are tokens of all epochs, also those that sub-sampling left
    out; loss is the mean of a pair (CBOW: a window) over the epoch so far.  Epoch 0 is the count of
    words: done is the words read, total 0.
    """

    epoch: int
    epochs: int
    done: int
    total: int
    loss: float


class WordVectors(VectorQueries):
    """Word vectors by skip-gram or CBOW with negative sampling, with sub-words or without.

    The vector of a word is the mean of the rows of its sub-words: itself and its character n-grams
    ("fasttext"), or the buckets of both ("floret").  A word never seen has the mean of its n-grams.

    Args:
        embedding_dim: D (gensim: vector_size).
        sg: True: skip-gram; False: CBOW.
        window: most words on each side; the window of each word shrinks at random.
        min_count: leave out words that occur less often.
        max_vocab: keep only this many of the most frequent words (gensim: max_final_vocab).
        negative: words drawn by chance for each pair.
        ns_exponent: they are drawn by count ** ns_exponent.
        sample: words of more than this share of the text are sub-sampled; 0: none is.
        epochs: readings of the text.
        lr: learning rate at the start (gensim: alpha); falls to 0 in a straight line.
        minn, maxn: characters of n-grams; maxn=0: whole words only, as word2vec.
        num_buckets: rows that n-grams share by hashing.  Untrained ones cost nothing.
        scheme: "fasttext" or "floret".
        num_hashes: rows of an n-gram, 1 to 4, floret only.
        batch_size: tokens of running text a step; None: a 500th of the text, 256 to 4096.
        optimizer: of both tables; None is `SGD(lr, clip_norm=10)`.
        seed: the same seed and text give the same vectors, bit for bit, for any number of threads.
        path: directory of the store to train on; None: in memory.
        cache_bytes: memory for rows of each table; None: what the process has.

    Raises:
        ArgumentError: a value out of range, or both `lr` and `optimizer`.

    Notes:
        Defaults are fastText's (its `skipgram` command).  Batching rule: a batch has its words from
        all over 32,768 words of running text, in an order that is drawn; its rows move
        once, by the sum of their gradients at its beginning, and this sum is clipped to a norm of
        10.  fastText moves rows pair by pair; the sum of a word that is everywhere, taken at one
        point, would overshoot in large batches, and the clip bounds how far it can go.
        Drawn from all over 262,144 words, WordSim-353 was a little higher and SimLex-999 lower,
        hardly by more than seeds differ.
    """

    def __init__(
        self,
        embedding_dim: int = 100,
        *,
        sg: bool | int = True,
        window: int = 5,
        min_count: int = 5,
        max_vocab: int | None = None,
        negative: int = 5,
        ns_exponent: float = 0.5,
        sample: float = 1e-4,
        epochs: int = 5,
        lr: float | None = None,
        minn: int = 3,
        maxn: int = 6,
        num_buckets: int = 2_000_000,
        scheme: str = "fasttext",
        num_hashes: int = 1,
        batch_size: int | None = None,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        if optimizer is None:
            optimizer = SGD(lr=0.05 if lr is None else lr, clip_norm=_CLIP)
        elif lr is not None:
            raise ArgumentError(f"lr: give it in optimizer or alone, got both {lr} and {optimizer}")
        options = {
            "embedding_dim": embedding_dim,
            "sg": sg,
            "window": window,
            "min_count": min_count,
            "max_vocab": max_vocab,
            "negative": negative,
            "ns_exponent": ns_exponent,
            "sample": sample,
            "epochs": epochs,
            "minn": minn,
            "maxn": maxn,
            "num_buckets": num_buckets,
            "scheme": scheme,
            "num_hashes": num_hashes,
            "batch_size": batch_size,
            "seed": seed,
        }
        super().__init__(check_options(options))
        self.optimizer = optimizer
        self.path = None if path is None else os.fspath(path)
        self.cache_bytes = cache_bytes
        self._wrote_path = False

    # ---- training -------------------------------------------------------------------------------

    def fit(
        self,
        corpus: Any,
        *,
        resume: bool = False,
        progress: Callable[[VectorProgress], None] | None = None,
        commit_every: int = 50_000_000,
    ) -> Self:
        """Learn from running text.

        Args:
            corpus: the path of a text file (words between white space; .gz, .bz2, .xz are
                unpacked), a list of `pathlib.Path`s, or texts or lists of words in something that
                can be iterated more than once.  Read `epochs` + 1 times, never held in memory.
            resume: go on from the last commit of an interrupted `fit` on the same text (of this
                model, of a new one with the same arguments and `path`, or of one loaded with mode
                "r+"); gives the bits that it would have given.  With nothing at `path`, or nothing
                committed yet, it begins there.
            progress: called after every batch.
            commit_every: tokens between commits of a model with a `path`; it commits after every
                epoch in any case.

        Raises:
            ArgumentError: not a corpus; too few words; nothing to resume, or another text; training
                diverged (the loss is no longer finite).
            StoreError: `path` exists already or cannot be written.
            OSError: a file cannot be read.

        Notes:
            If `fit` is interrupted, a model with a `path` goes back to its last commit (the first
            one is made before the first batch) and stays usable there; one in memory is gone.
        """
        source = Corpus(corpus)
        if resume and self._take_up():
            at = vectors_store.read_progress(self.store)
            if at is None or at.finished:
                raise ArgumentError("resume: this model's last training was not interrupted")
            return self._train(source, at, progress, commit_every)
        counts = source.count(_told(progress, self.options["epochs"]))
        options = self.options
        vocabulary = make_vocabulary(
            counts, options["min_count"], options["max_vocab"], source.name
        )
        del counts
        self._begin(vocabulary)
        tokens = vocabulary.tokens
        size = batch_tokens(options, tokens)
        at = Progress(options["epochs"], tokens, 0, self.optimizer.lr, 0, size)
        return self._train(source, at, progress, commit_every)

    def partial_fit(
        self,
        corpus: Any,
        *,
        epochs: int = 1,
        lr: float | None = None,
        progress: Callable[[VectorProgress], None] | None = None,
        commit_every: int = 50_000_000,
    ) -> Self:
        """Train on with more text; words that are not in the vocabulary are passed over.

        Args:
            corpus: as `fit`.
            epochs: readings of it.
            lr: at the start; None is where `fit` started.
            Others as `fit`.

        Raises:
            NotFittedError: before `fit` or `load`.
            ArgumentError: no word of the vocabulary occurs in the text; as `fit`.

        Notes:
            Counts add up, for sub-sampling and for the choice of negatives.
        """
        old = self.vocabulary
        options = check_options({**self.options, "epochs": epochs})
        rate = self.optimizer.lr if lr is None else SGD(lr=lr).lr
        source = Corpus(corpus)
        found = source.count(_told(progress, epochs))
        counts = np.array([found[word] for word in old.words], np.int64)
        if not counts.any():
            raise ArgumentError(f"{source.name}: no word of the vocabulary occurs in it")
        runs = self.store.metadata.get("progress", {}).get("runs", 0)
        self._set_vocabulary(Vocabulary(old.words, old.counts + counts))
        tokens = int(counts.sum())
        size = batch_tokens(options, tokens)
        at = Progress(options["epochs"], tokens, 0, rate, runs + 1, size)
        return self._train(source, at, progress, commit_every)

    def _train(
        self,
        source: Corpus,
        at: Progress,
        progress: Callable[[VectorProgress], None] | None,
        commit_every: int,
    ) -> Self:
        try:
            self._commit(at)
            objective = self._objective(at.runs)
            total, committed = at.epochs * at.tokens, at.tokens_done
            while at.tokens_done < total:
                epoch, loss, pairs = at.tokens_done // at.tokens, 0.0, 0
                for learned in self._reading(source, objective, at):
                    loss, pairs = loss + learned.loss, pairs + learned.pairs
                    mean = loss / max(1, pairs)
                    if not np.isfinite(mean):
                        raise ArgumentError(
                            f"training diverged in epoch {epoch + 1} (loss {mean}): try a smaller"
                            f" batch_size than {at.batch_size} or a smaller learning rate than"
                            f" {at.lr}"
                        )
                    if progress is not None:
                        progress(VectorProgress(epoch + 1, at.epochs, at.tokens_done, total, mean))
                    if at.tokens_done - committed >= commit_every:
                        self._commit(at)
                        committed = at.tokens_done
                if at.tokens_done != (epoch + 1) * at.tokens:
                    raise ArgumentError(
                        f"{source.name}: expected {at.tokens} tokens in a reading, found"
                        f" {at.tokens_done - epoch * at.tokens}: is it another text than before?"
                    )
                self._commit(at)
                committed = at.tokens_done
        except BaseException:
            self._abandon()
            raise
        return self

    def _reading(self, source: Corpus, objective: Objective, at: Progress) -> Iterator[Learned]:
        """The steps of an epoch, or those that are left of it, each when it is done."""
        size, total = at.batch_size, at.epochs * at.tokens
        block = max(_BLOCK, size)
        epoch, seen = divmod(at.tokens_done, at.tokens)
        first, seen = divmod(seen, block)  # a block that was begun goes on
        blocks = source.batches(self.vocabulary, block, first * block)
        for number, (tokens, lines) in enumerate(blocks, first):
            before = epoch * at.tokens + number * block
            drawn = objective.draw(tokens, lines, epoch, number)
            steps = -(-len(tokens) // size)
            for step in range(-(-seen * steps // len(tokens)), steps):
                lr = at.lr * max(0.0, 1 - at.tokens_done / total)
                begin, end = (len(drawn) * k // steps for k in (step, step + 1))
                learned = objective.train_batch(drawn, begin, end, lr)
                self._forget()
                at.tokens_done = before + len(tokens) * (step + 1) // steps
                yield learned
            seen = 0

    def _objective(self, run: int) -> Objective:
        options = self.options
        return Objective(
            self.store.tables["input"],
            self.store.tables["output"],
            self._subwords,
            Sampler.of(self.vocabulary.counts, options["sample"], options["ns_exponent"]),
            sg=options["sg"],
            window=options["window"],
            negative=options["negative"],
            seed=options["seed"] + (run << 64),  # text trained on later is drawn from afresh
        )

    def _commit(self, at: Progress) -> None:
        vectors_store.write_progress(self.store, at)
        if self.path is not None:
            self.store.commit()

    def _take_up(self) -> bool:
        """Is there a fit to go on with, of this model or of one that was made like it?"""
        if self._store is not None or self.path is None:
            return True

        def adopt(store: Store) -> None:
            recorded = vectors_store.read_description(store)
            recorded = {k: v for k, v in recorded.items() if k != "hash_seed"}
            recorded["optimizer"] = store.tables["input"].optimizer
            check_same(recorded, {**self.options, "optimizer": self.optimizer})
            self._adopt(store)

        found = take_up(self.path, self.cache_bytes, adopt)
        self._wrote_path = os.path.exists(self.path)
        return found

    def _begin(self, vocabulary: Vocabulary) -> None:
        """A new store; a second fit replaces what the first one wrote, never what was loaded."""
        if self._wrote_path and self._store is not None:
            self._store.close(checkpoint=False)
            self._store = None
        store = vectors_store.create_store(
            self.path,
            self.options,
            vocabulary,
            optimizer=self.optimizer,
            cache_bytes=self.cache_bytes,
            overwrite=self._wrote_path,
        )
        if self._store is not None:
            self._store.close(checkpoint=False)
        self._adopt(store)
        self._wrote_path = self.path is not None

    def _abandon(self) -> None:
        """After an interruption: back to the last commit, or to no model at all."""
        store = self.store
        self._forget()
        if self.path is not None and store.last_commit:
            store.rollback()
            self._adopt(store)
            return
        store.close(checkpoint=False)
        self._store = None

    # ---- on disk --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, optimizer state included, to a new store that `load` opens.

        A model that was fitted with a `path` is on disk already; this copies its last commit.
        For other programs: `save_word2vec`, `save_fasttext`.

        Raises:
            NotFittedError: before `fit`.
            StoreError: `path` exists or cannot be written.
        """
        self.store.snapshot(path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], mode: str = "r", *, cache_bytes: int | None = None
    ) -> Self:
        """Open a saved model; rows are read as they are asked for.

        Args:
            path: what `save` wrote, or the `path` of a fitted model.
            mode: "r" reads, next to other readers and a writer; "r+" trains on.
            cache_bytes: memory for rows; None: what the process has.

        Raises:
            NotAStoreError: no store at `path`, or one of something else.
            CorruptStoreError: its vocabulary does not fit its tables.
        """
        store = Store.open(path, mode=mode, cache_bytes=cache_bytes)
        try:
            description = vectors_store.read_description(store)
            optimizer = store.tables["input"].optimizer
            try:
                model = cls(
                    **{k: v for k, v in description.items() if k != "hash_seed"},
                    optimizer=optimizer,
                    path=path,
                    cache_bytes=cache_bytes,
                )
            except (TypeError, ValueError) as error:
                raise NotAStoreError(
                    f"{store.path}: its metadata does not describe WordVectors: {error}"
                ) from error
            model._adopt(store)
            return model
        except BaseException:
            store.close(checkpoint=False)
            raise

    # ---- other programs' files ------------------------------------------------------------------

    def save_word2vec(self, path: str | os.PathLike[str], *, binary: bool | None = None) -> int:
        """Write the vectors of the vocabulary in word2vec's text (.txt, .vec) or binary (.bin)
        format; see `vec_files.save_word2vec`."""
        from sparse_embed.text import vec_files

        return vec_files.save_word2vec(self, path, binary=binary)

    @staticmethod
    def load_word2vec(path: str | os.PathLike[str], **options: Any) -> WordVectors:
        """Read word2vec's text or binary format, or fastText's .vec; see
        `vec_files.load_word2vec`."""
        from sparse_embed.text import vec_files

        return vec_files.load_word2vec(path, **options)

    def save_fasttext(self, path: str | os.PathLike[str]) -> None:
        """Write the model as fastText's .bin; see `fasttext_files.save_fasttext`."""
        from sparse_embed.text import fasttext_files

        fasttext_files.save_fasttext(self, path)

    @staticmethod
    def load_fasttext(path: str | os.PathLike[str], **options: Any) -> WordVectors:
        """Read fastText's .bin, sub-words and output rows included; see
        `fasttext_files.load_fasttext`."""
        from sparse_embed.text import fasttext_files

        return fasttext_files.load_fasttext(path, **options)

    @classmethod
    def of(
        cls,
        vocabulary: Vocabulary,
        *,
        path: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """A model with this vocabulary and first weights: what the readers of files fill."""
        model = cls(path=path, **options)
        model._begin(vocabulary)
        return model

    def finish_reading(self) -> None:
        """The tables hold what was read: commit, if there is a path."""
        self._forget()
        if self.path is not None:
            self.store.commit()

    def discard(self) -> None:
        """Close, and remove the store that `of` made."""
        if self._store is not None:
            self._store.discard()
            self._store = None
            self._forget()

    def close(self) -> None:
        """Close the store.  A file-backed model can be loaded again; one in memory is gone."""
        if self._store is not None:
            self._store.close()
            self._store = None
            self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _told(
    progress: Callable[[VectorProgress], None] | None, epochs: int
) -> Callable[[int], None] | None:
    if progress is None:
        return None
    return lambda words: progress(VectorProgress(0, epochs, words, 0, float("nan")))
