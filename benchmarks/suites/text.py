"""Text: word vectors and a classifier, against fastText's own package on the same words.

The words are those of the source files of the running Python's standard library (a line of source
is a sentence), or of `--text FILE`.  A model of word vectors is judged by the loss of a pair on
text held out (every tenth file), which our code computes for both: fastText's model is read
from its .bin.

    vectors      skip-gram with sub-words (dim 100, window 5, n-grams of 3 to 6), one epoch, 2
                 threads; the curve is the held-out loss after 1, 2 and 4 epochs, of ours by size
                 of batch: each row moves once a batch, fastText's once a pair; at the default size
                 the last may not be above fastText's by more than 0.02
    classifier   which of the 30 largest modules 25 words running are from: ours at its defaults,
                 fastText at those of its tutorial (bigrams, lr 1, 25 epochs)
"""

from __future__ import annotations

import lzma
import re
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import sparse_embed as se
from benchmarks.harness import OURS, Case, Competitor, Disagreement, Settings, race
from sparse_embed.text import TextClassifier, WordVectors
from sparse_embed.text.corpus import Corpus

ABOUT = "word vectors and their loss curve, a classifier; fastText"

BUCKETS = 200_000
BATCHES = (256, 1024, 4096)
_WORD = re.compile(r"[^\W\d_]+")
_MODULES, _WORDS, _PASSAGES = 30, 25, 20_000  # classes, words of a passage, most of them


def run(settings: Settings) -> Iterator[Case]:
    documents = read_documents(settings, 20 if settings.quick else 700)
    yield _vectors(settings, documents)
    if settings.text is None:
        yield _classifier(settings, documents)


def read_documents(settings: Settings, files: int) -> list[tuple[str, list[str]]]:
    """(name of the module, its lines of lower-case words), the largest modules first."""
    if settings.text is not None:
        with lzma.open(settings.text, "rt", encoding="utf-8") as file:
            texts = [line.rstrip("\n").split("\t")[2] for line in file]
        return [("", [_words(text)]) for text in texts]
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(parts):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found.append((parts[0].removesuffix(".py"), [_words(line) for line in lines]))
    return sorted(found, key=lambda module: -len(module[1]))[:files]


def _words(line: str) -> str:
    return " ".join(_WORD.findall(line.lower()))


# ---- word vectors -------------------------------------------------------------------------------


def _fit_ours(path: Path, epochs: int, batch_size: int | None = None) -> WordVectors:
    return WordVectors(epochs=epochs, num_buckets=BUCKETS, batch_size=batch_size).fit(path)


def _fit_theirs(path: Path, epochs: int) -> Any:
    import fasttext

    return fasttext.train_unsupervised(
        str(path), model="skipgram", dim=100, ws=5, epoch=epochs, minCount=5, minn=3, maxn=6,
        bucket=BUCKETS, thread=se.get_num_threads(), verbose=0,
    )  # fmt: skip


def held_out_loss(model: WordVectors, path: Path) -> float:
    """Mean loss of a pair, all negatives drawn alike for every model of the same vocabulary."""
    objective = model._objective(run=1)
    loss, pairs = 0.0, 0
    for number, (tokens, lines) in enumerate(Corpus(str(path)).batches(model.vocabulary, 4096)):
        block = objective.draw(tokens, lines, 0, number)
        learned = objective.train_batch(block, 0, len(block), lr=0.0)
        loss, pairs = loss + learned.loss, pairs + learned.pairs
    return loss / max(1, pairs)


def _vectors(settings: Settings, documents: list[tuple[str, list[str]]]) -> Case:
    most = 20_000 if settings.quick else 400_000
    epochs = (1,) if settings.quick else (1, 2, 4)
    with tempfile.TemporaryDirectory() as folder:
        text, held_out, binary = (Path(folder) / name for name in ("text", "held-out", "ft.bin"))
        held_out.write_text("\n".join(line for _, doc in documents[::10] for line in doc))
        lines = [line for i, (_, doc) in enumerate(documents) if i % 10 for line in doc if line]
        ends = np.cumsum([len(line.split()) for line in lines])
        count = int(np.searchsorted(ends, most)) + 1
        text.write_text("\n".join(lines[:count]) + "\n")
        words = int(ends[min(count, len(ends)) - 1])
        losses = {
            f"{OURS}, batches of {size or 'the default size'}": [
                held_out_loss(_fit_ours(text, n, size), held_out) for n in epochs
            ]
            for size in (None, *BATCHES)
        }
        competitors = [Competitor(OURS, lambda i: _fit_ours(text, 1))]
        absent: dict[str, str] = {}
        try:
            found = []
            for n in epochs:
                _fit_theirs(text, n).save_model(str(binary))
                found.append(held_out_loss(WordVectors.load_fasttext(binary), held_out))
        except ImportError as error:
            absent["fastText"] = f"not installed ({error})"
        else:
            losses["fastText"] = found
            competitors.append(Competitor("fastText", lambda i: _fit_theirs(text, 1)))
            ours = next(iter(losses.values()))[-1]
            if not settings.quick and ours > found[-1] + 0.02:  # behind by more than chance
                raise Disagreement(f"held-out loss after {epochs[-1]} epochs: {losses}")
        name = f"skip-gram with sub-words x 100, one epoch of {words:,} words"
        case = race(name, competitors, settings.count(3, 1), warmup=0, absent=absent)
    speeds = {who: words / case.median(who) for who in case.samples}
    case.facts = {f"held-out loss after {epochs} epochs": losses, "words a second": speeds}
    return case


# ---- the classifier -----------------------------------------------------------------------------


def _passages(documents: list[tuple[str, list[str]]]) -> tuple[list[str], list[str]]:
    """Texts and the module of each, of the modules that have most, in an order that is drawn."""
    found = []
    for module, lines in documents:
        words = " ".join(lines).split()
        found += [
            (" ".join(words[i : i + _WORDS]), module) for i in range(0, len(words) - _WORDS, _WORDS)
        ]
    largest = {name for name, _ in Counter(name for _, name in found).most_common(_MODULES)}
    kept = [pair for pair in found if pair[1] in largest]
    order = np.random.default_rng(0).permutation(len(kept))
    return [kept[i][0] for i in order], [kept[i][1] for i in order]


def _classifier(settings: Settings, documents: list[tuple[str, list[str]]]) -> Case:
    most = 600 if settings.quick else _PASSAGES
    texts, labels = (found[:most] for found in _passages(documents))
    cut = len(texts) * 4 // 5
    train, test = (texts[:cut], labels[:cut]), (texts[cut:], labels[cut:])
    competitors = [Competitor(OURS, lambda i: TextClassifier().fit(*train))]
    accuracy, absent = {OURS: TextClassifier().fit(*train).score(*test)}, {}
    commonest = Counter(labels).most_common(1)[0][1] / len(labels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train"
        lines = [f"__label__{label} {text}\n" for text, label in zip(*train, strict=True)]
        path.write_text("".join(lines))

        def theirs() -> Any:
            import fasttext

            return fasttext.train_supervised(
                str(path), lr=1.0, epoch=25, wordNgrams=2, thread=se.get_num_threads(), verbose=0
            )

        try:
            guesses = theirs().predict(test[0])[0]
        except ImportError as error:
            absent["fastText"] = f"not installed ({error})"
        else:
            right = [a[0] == f"__label__{b}" for a, b in zip(guesses, test[1], strict=True)]
            accuracy["fastText"] = float(np.mean(right))
            competitors.append(Competitor("fastText", lambda i: theirs()))
        if accuracy[OURS] <= commonest:
            raise Disagreement(f"accuracy: {accuracy}, the commonest class has {commonest:.3f}")
        name = f"classifier with bigrams: {cut:,} texts of {_WORDS} words, {_MODULES} classes"
        case = race(name, competitors, settings.count(3, 1), warmup=0, absent=absent)
    case.facts = {"accuracy": accuracy}
    return case
