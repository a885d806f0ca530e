"""Does a sentence like a film?  A table of hashed words and bigrams learns to tell.

    python examples/sentiment.py                    # made-up reviews, with "not good" among them
    python examples/sentiment.py pos.txt neg.txt    # yours: one text a line, two files

Made-up reviews say what they think with one opinion, or with its opposite and "not" in front: words
alone cannot tell the two apart, bigrams can.
"""

# a program that prints

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sparse_embed.text import TextClassifier

GOOD = ["good", "great", "moving", "funny", "clever", "superb", "fine", "lovely", "gripping"]
BAD = ["bad", "dull", "flat", "silly", "weak", "awful", "poor", "messy", "slow", "false"]
SUBJECT = ["the film", "the plot", "this story", "her acting", "the music", "the ending", "it all"]
VERB = ["is", "was", "seemed", "felt", "looked", "turned out"]
FILLER = ["to me", "at times", "in the end", "for a sequel", "after an hour", "as ever", "alas"]


def made_up(number: int = 8000) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    texts, labels = [], []
    for _ in range(number):
        liked, negated = rng.random() < 0.5, rng.random() < 0.4
        opinion = rng.choice(GOOD if liked != negated else BAD)
        middle = f"{'not ' if negated else ''}{opinion}"
        texts.append(
            f"{rng.choice(SUBJECT)} {rng.choice(VERB)} {middle} {rng.choice(FILLER)},"
            f" {rng.choice(FILLER)}."
        )
        labels.append("liked" if liked else "not liked")
    return texts, labels


def from_files(paths: list[str]) -> tuple[list[str], list[str]]:
    sides = [Path(path).read_text("utf-8", "replace").splitlines() for path in paths]
    texts = [text for side in sides for text in side if text.strip()]
    first = sum(1 for text in sides[0] if text.strip())
    return texts, ["liked"] * first + ["not liked"] * (len(texts) - first)


def main() -> None:
    texts, labels = from_files(sys.argv[1:3]) if len(sys.argv) > 2 else made_up()
    order = np.random.default_rng(1).permutation(len(texts)).tolist()
    texts, labels = [texts[k] for k in order], [labels[k] for k in order]
    cut = len(texts) * 4 // 5
    print(f"{cut:,} texts to learn from, {len(texts) - cut:,} held out")
    for title, options in (("words alone", {"word_ngrams": 1}), ("words and bigrams", {})):
        started = time.perf_counter()
        model = TextClassifier(**options).fit(texts[:cut], labels[:cut])  # type: ignore[arg-type]
        took = time.perf_counter() - started
        accuracy = model.score(texts[cut:], labels[cut:])
        print(f"{title:<18} accuracy {accuracy:.3f}   {took:5.1f} s, compiler included")

    with tempfile.TemporaryDirectory() as folder:  # saved: a store, loaded in milliseconds
        model.save(Path(folder) / "model")
        with TextClassifier.load(Path(folder) / "model") as loaded:
            questions = ["not good at all", "it was not bad to me", "gripping and funny", "a mess"]
            for text, chance in zip(questions, loaded.predict_proba(questions), strict=True):
                share = chance[list(loaded.classes_).index("liked")]
                print(f"  {text:<24} liked with probability {share:.2f}")


if __name__ == "__main__":
    main()
