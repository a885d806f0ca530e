"""Word vectors of the English in Python's own standard library: nothing is downloaded.

    python examples/word_vectors.py                # docstrings and comments of the library
    python examples/word_vectors.py FILE [WORD]    # your text: words between spaces

Skip-gram with character n-grams.  Trains on a store, closes it, opens it again, and asks: which
words are near, also to a word that is not there; and is the text like itself?
"""

from __future__ import annotations

import io
import re
import sys
import sysconfig
import tempfile
import time
import tokenize
from pathlib import Path

from sparse_embed.text import WordVectors

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
KINDS = (tokenize.STRING, tokenize.COMMENT)


def library_text() -> list[str]:
    """The words of the strings and comments in the library's modules, four or more of each."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(folder.glob("*.py")):
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline))
        except (SyntaxError, ValueError, tokenize.TokenError):
            continue
        for kind, text, *_ in tokens:
            words = WORD.findall(text.lower()) if kind in KINDS else []
            if len(words) > 3:
                texts.append(" ".join(words))
    return texts


def main() -> None:
    asked = ["directory", "socket", "exception", "bytes"]
    corpus: str | list[str]
    if len(sys.argv) > 1:
        corpus = sys.argv[1]
        asked = sys.argv[2:]
    else:
        corpus = library_text()
        print(f"{len(corpus):,} docstrings and comments of Python's standard library")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors"
        started = time.perf_counter()
        model = WordVectors(
            embedding_dim=64, epochs=8, min_count=3, sample=1e-3, num_buckets=200_000, path=path
        )
        losses: dict[int, float] = {}
        model.fit(corpus, progress=lambda at: losses.update({at.epoch: at.loss}))
        took = time.perf_counter() - started
        words = int(model.counts.sum())
        print(
            f"{words:,} words, {len(model):,} in the vocabulary; {took:.0f} s, compiling included"
        )
        shown = [f"{losses[epoch]:.2f}" for epoch in sorted(losses) if epoch]
        print("loss of a pair by epoch:", " ".join(shown))
        model.close()
        with WordVectors.load(path) as model:
            for word in asked or model.words[:5]:
                near = ", ".join(name for name, _ in model.most_similar(word, k=6))
                print(f"  {word:<12} {near}")
            if len(sys.argv) == 1:
                for word in ("misdirectories", "unpicklable"):
                    near = ", ".join(name for name, _ in model.most_similar(word, k=4))
                    known = "known" if word in model else "never seen"
                    print(f"  {word:<12} ({known}) {near}")


if __name__ == "__main__":
    main()
