"""A recommender from beginning to end, on data that any machine has: Python's own sources.

    python examples/recommendation.py

Users are the files of the standard library, items the names they use, hashed to rows.  Which name
does a file use that was held out?  Two objectives, each kept as it was when best on other held-out
names, against the most used names; then a file that nobody trained on, and the model opened again
from disk.
"""

# a program that prints

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse

from sparse_embed.demo import names_in, read_library
from sparse_embed.keys import KeyHasher
from sparse_embed.recommend import (
    BPR,
    EarlyStopping,
    Popularity,
    SampledSoftmax,
    evaluate,
    leave_one_out,
    load,
)

NEW_FILE = """
import threading, queue
def work(jobs: queue.Queue, lock: threading.Lock) -> None:
    while not jobs.empty():
        with lock: jobs.get(timeout=1)
threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
"""


def main() -> None:
    library = read_library()
    print(f"{len(library.files)} files, {len(library.names)} names, {library.pairs.nnz} uses")
    rest, test = leave_one_out(library.pairs, seed=0)
    train, valid = leave_one_out(rest, seed=1)

    print("one name of each file is held out: is it among the best 10 (hr), 20 (recall) guesses?")
    print(f"{'':16}  hr@10  ndcg@10  recall@20")
    show("most used names", evaluate(Popularity(train), train + valid, test))
    with tempfile.TemporaryDirectory() as folder:
        for kind in (BPR, SampledSoftmax):
            path = Path(folder) / kind.__name__
            stopping = EarlyStopping("ndcg@20", patience=10)  # BPR dips before it is best
            with kind(epochs=40, seed=0, path=path) as model:  # commits go to `path`
                model.fit(train, valid, eval_every=4, callbacks=[stopping])
                show(kind.__name__, evaluate(model, train + valid, test))
                print(f"{'':16}  kept from epoch {stopping.best_epoch} of 40, best on other names")

        with load(path) as model:  # milliseconds, whatever the size
            name_of = dict(zip(library.rows.tolist(), library.names, strict=True))
            rows = np.unique(KeyHasher(library.pairs.shape[1])(sorted(names_in(NEW_FILE))))
            pairs = (np.ones(len(rows)), (np.zeros(len(rows), np.int64), rows))
            taken = scipy.sparse.csr_array(pairs, shape=(1, library.pairs.shape[1]))
            items, _ = model.recommend(None, taken, k=8)  # None: a user nobody knows
            print("a new file would use", ", ".join(name_of[int(item)] for item in items[0]))
            vectors = model.item_vectors()[1]  # for hnswlib, usearch or faiss
            print("vectors for an index of inner products:", vectors.shape, vectors.dtype)


def show(name: str, found: dict[str, float]) -> None:
    print(f"{name:16}  {found['hr@10']:.3f}  {found['ndcg@10']:7.3f}  {found['recall@20']:9.3f}")


if __name__ == "__main__":
    main()
