"""WordVectors: the objective against plain NumPy, the same bits always, resuming, bad input."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.errors import ArgumentError, NotAStoreError, StoreError
from sparse_embed.keys import NgramHasher
from sparse_embed.text import WordVectors, vectors_reference
from sparse_embed.text.corpus import Corpus, make_vocabulary
from sparse_embed.text.vectors import NotFittedError
from sparse_embed.text.vectors_options import batch_tokens
from sparse_embed.text.vectors_queries import UnknownWordError
from sparse_embed.text.vectors_training import Block, Objective, Sampler

DIM = 64  # as other tests, for their compiled kernels
SMALL = {
    "embedding_dim": DIM,
    "min_count": 1,
    "num_buckets": 1000,
    "epochs": 3,
    "batch_size": 64,
    "sample": 0,
    "lr": 0.1,
}


def topics(lines: int = 300, seed: int = 0) -> list[str]:
    """Each line has words of one of two topics: words of a topic belong together."""
    rng = np.random.default_rng(seed)
    words = [
        ["apple", "pear", "cherry", "plum", "grape", "lemon"],
        ["hammer", "saw", "pliers", "wrench", "drill", "nail"],
    ]
    return [" ".join(rng.choice(words[i % 2], 8)) for i in range(lines)]


def bits(model: WordVectors) -> bytes:
    tables = model.store.tables
    return b"".join(
        table.lookup(np.arange(table.num_embeddings)).tobytes() for table in tables.values()
    )


@pytest.fixture(scope="module")
def model():
    return WordVectors(**SMALL).fit(topics())


# ---- the objective ------------------------------------------------------------------------------


def _objective(sg: bool, maxn: int, dim: int = DIM):
    """An objective on small tables, with weights that are not zero, and a batch."""
    words = [f"word{i}".encode() for i in range(20)]
    subwords = NgramHasher(50, min(3, maxn), maxn).vocabulary(words, word_rows=True)
    tables = []
    for seed, rows in enumerate((70, 20)):
        tables.append(
            se.EmbeddingTable.create(
                None, num_embeddings=rows, embedding_dim=dim, init=se.Uniform(0.5),
                optimizer=se.SGD(lr=0.1), seed=seed,
            )
        )  # fmt: skip
    counts = np.arange(20, 0, -1)
    sampler = Sampler.of(counts, 0.01, 0.5)
    objective = Objective(*tables, subwords, sampler, sg=sg, window=3, negative=4, seed=5)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 20, 200)
    lines = np.sort(rng.integers(0, 12, 200))
    return objective, tables, subwords, sampler, tokens, lines


@pytest.mark.parametrize(("sg", "maxn"), [(True, 5), (True, 0), (False, 5)])
def test_one_batch_is_what_it_says(sg, maxn):
    objective, tables, subwords, sampler, tokens, lines = _objective(sg, maxn)
    weights = [table.lookup(np.arange(table.num_embeddings)).astype(np.float64) for table in tables]
    random = np.random.default_rng((5, 0, 7))
    key = int(random.integers(0, 2**64, dtype=np.uint64))
    kept = random.random(len(tokens), np.float32) < sampler.keep[tokens]
    assert 50 < kept.sum() < 200
    block = objective.draw(tokens, lines, 0, 7)
    assert sorted(block.order.tolist()) == list(range(kept.sum())) != block.order.tolist()
    *grads, loss, pairs = vectors_reference.train_batch(
        *weights, lambda word: subwords([word])[0], tokens[kept], lines[kept],
        block.order[10:-10], key=key,
        threshold=sampler.threshold, alias=sampler.alias, sg=sg, window=3, negative=4,
    )  # fmt: skip
    learned = objective.train_batch(block, 10, len(block) - 10, 0.1)
    assert learned.pairs == pairs > 50
    assert learned.loss == pytest.approx(loss, rel=1e-5)
    for table, before, grad in zip(tables, weights, grads, strict=True):
        found = table.lookup(np.arange(table.num_embeddings))
        # Sums in float32 against float64.
        np.testing.assert_allclose(found, before - 0.1 * grad, atol=2e-5)


def test_negatives_follow_the_counts():
    objective, _, _, sampler, *_ = _objective(True, 0)
    from sparse_embed.kernels import skipgram as kernels
    from sparse_embed.kernels._jit import new_counter

    n = 20_000
    tokens, lines = np.zeros(n, np.int64), np.zeros(n, np.int64)
    tokens[1::2] = 1
    order = np.arange(n)
    firsts = objective._firsts(Block(np.uint64(3), tokens, lines, order), order)
    targets = np.empty(firsts[-1] * 5, np.int64)
    kernels.skipgram_cpu()(
        np.uint64(3), np.uint64(3), 4, order, lines, tokens, firsts,
        sampler.threshold, sampler.alias, new_counter(), targets,
    )  # fmt: skip
    drawn = np.bincount(targets.reshape(-1, 5)[:, 1:].ravel(), minlength=20)
    wanted = np.sqrt(np.arange(20, 0, -1.0))
    # 0 and 1 are targets, so they are drawn less often; the others keep their proportions.
    np.testing.assert_allclose(drawn[2:] / drawn[2:].sum(), wanted[2:] / wanted[2:].sum(), rtol=0.1)
    assert np.diff(firsts).max() == 6 and np.diff(firsts)[10:-10].min() == 2


def test_subsampling_is_word2vecs():
    counts = np.array([600, 300, 99, 1])
    keep = Sampler.of(counts, 1e-2, 0.75).keep
    share = counts / counts.sum()
    np.testing.assert_allclose(keep, np.minimum(1, np.sqrt(0.01 / share) + 0.01 / share), rtol=1e-6)
    assert (Sampler.of(counts, 0, 0.75).keep == 1).all()


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"sg": False}, {"maxn": 0}, {"scheme": "floret"}], ids=str)
def test_learns_what_belongs_together(options):
    model = WordVectors(**SMALL | {"epochs": 10, "seed": 1} | options).fit(topics())
    fruit = {"apple", "pear", "cherry", "plum", "grape", "lemon"}
    near = {word for word, _ in model.most_similar("apple", k=5)}
    assert near == fruit - {"apple"}
    assert model.similarity("apple", "pear") > model.similarity("apple", "hammer") + 0.3


def test_same_bits_for_any_number_of_threads(model):
    before = se.get_num_threads() if hasattr(se, "get_num_threads") else 2
    try:
        for threads in (1, 2):
            se.set_num_threads(threads)
            assert bits(WordVectors(**SMALL).fit(topics())) == bits(model)
    finally:
        se.set_num_threads(before)
    assert bits(WordVectors(**SMALL | {"seed": 1}).fit(topics())) != bits(model)


def test_a_file_a_list_and_lists_of_words_are_the_same(model, tmp_path):
    import gzip

    text = "\n".join(topics()) + "\n"
    (tmp_path / "text.txt").write_text(text)
    with gzip.open(tmp_path / "text.txt.gz", "wt") as file:
        file.write(text)
    half = text.index("\n", len(text) // 2) + 1
    (tmp_path / "a").write_text(text[:half])
    (tmp_path / "b").write_text(text[half:])
    for corpus in (
        str(tmp_path / "text.txt"),
        tmp_path / "text.txt.gz",
        [tmp_path / "a", tmp_path / "b"],
        [line.split() for line in topics()],
    ):
        assert bits(WordVectors(**SMALL).fit(corpus)) == bits(model)


def test_on_disk_in_a_small_cache_and_read_again(model, tmp_path):
    path = tmp_path / "model"
    with WordVectors(**SMALL, path=path, cache_bytes=1 << 16).fit(topics()) as trained:
        assert bits(trained) == bits(model)
        assert trained.store.last_commit == 4  # the vocabulary, then each epoch
    with WordVectors.load(path) as again:
        assert bits(again) == bits(model)
        assert again.words == model.words
        assert (again.counts == model.counts).all()
        assert (again["unseen"] == model["unseen"]).all()
    model.save(tmp_path / "copy")
    with WordVectors.load(tmp_path / "copy") as copy:
        assert bits(copy) == bits(model)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [0.2, 0.5])
def test_interrupted_and_resumed(model, tmp_path, stop_at):
    def stop(at):
        if at.total and at.done > stop_at * at.total:
            raise _Stop

    path = tmp_path / "model"
    interrupted = WordVectors(**SMALL, path=path)
    with pytest.raises(_Stop):
        interrupted.fit(topics(), progress=stop, commit_every=128)
    assert len(interrupted.most_similar("apple", k=3)) == 3  # usable where it stands
    interrupted.close()
    with WordVectors.load(path, "r+") as resumed:
        done = resumed.store.metadata["progress"]["tokens_done"]
        assert 0 < done < stop_at * 3 * 2400
        resumed.fit(topics(), resume=True)
        assert bits(resumed) == bits(model)
        with pytest.raises(ArgumentError, match="was not interrupted"):
            resumed.fit(topics(), resume=True)


def test_a_new_model_of_the_same_arguments_goes_on(model, tmp_path):
    def stop(at):
        if at.total and at.done > 0.5 * at.total:
            raise _Stop

    path = tmp_path / "model"
    with WordVectors(**SMALL, path=path) as interrupted, pytest.raises(_Stop):
        interrupted.fit(topics(), progress=stop, commit_every=128)
    with pytest.raises(ArgumentError, match="seed: the fit to be resumed had"):
        WordVectors(**{**SMALL, "seed": 77}, path=path).fit(topics(), resume=True)
    with WordVectors(**SMALL, path=path).fit(topics(), resume=True) as again:
        assert bits(again) == bits(model)
    with WordVectors(**SMALL, path=tmp_path / "new").fit(topics(), resume=True) as fresh:
        assert bits(fresh) == bits(model)


def test_resuming_on_another_text_is_refused(tmp_path):
    def stop(at):
        if at.total and at.done > at.total / 2:
            raise _Stop

    model = WordVectors(**SMALL, path=tmp_path / "model")
    with pytest.raises(_Stop):
        model.fit(topics(), progress=stop)
    with pytest.raises(ArgumentError, match="another text"):
        model.fit(topics(100), resume=True)
    model.fit(topics(), resume=True)


def test_interrupted_in_memory_is_gone():
    def stop(at):
        if at.total:
            raise _Stop

    model = WordVectors(**SMALL)
    with pytest.raises(_Stop):
        model.fit(topics(), progress=stop)
    with pytest.raises(NotFittedError):
        model["apple"]


def test_partial_fit_goes_on():
    model = WordVectors(**SMALL).fit(topics(100))
    before = model.vectors
    model.partial_fit([*topics(50, seed=3), "wordnotknown apple pear"], lr=0.05)
    assert (model.vectors != before).any(axis=1).all()
    assert model.counts.sum() == 150 * 8 + 2
    again = WordVectors(**SMALL).fit(topics(100))
    again.partial_fit([*topics(50, seed=3), "wordnotknown apple pear"], lr=0.05)
    assert bits(again) == bits(model)
    with pytest.raises(ArgumentError, match="no word of the vocabulary"):
        model.partial_fit(["nothing known"])


def test_hot_words_do_not_diverge():
    """Two words that make most of the text, in batches far too large for plain sums."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(50)])
    share = np.r_[0.45, 0.45, np.full(48, 0.1 / 48)]
    text = [" ".join(rng.choice(words, 50, p=share)) for _ in range(400)]
    losses = []
    options = SMALL | {"batch_size": 8192, "lr": 0.05}
    WordVectors(**options).fit(text, progress=lambda at: losses.append(at.loss))
    assert losses[-1] < 6 * np.log(2)


def test_progress_reports():
    seen = []
    WordVectors(**SMALL).fit(topics(), progress=seen.append)
    last = seen[-1]
    assert (last.epoch, last.done, last.total) == (3, 7200, 7200)
    assert seen[0].loss == pytest.approx(6 * np.log(2), rel=1e-3)  # all outputs are zero at first
    assert last.loss < seen[0].loss


# ---- asking -------------------------------------------------------------------------------------


def test_queries(model):
    assert len(model) == 12
    assert "apple" in model and "zebra" not in model and 3 not in model
    assert model["apple"].shape == (DIM,)
    assert (model[["apple", "pear"]][1] == model["pear"]).all()
    assert (model.vectors[model.words.index("pear")] == model["pear"]).all()
    assert model.vectors_of([]).shape == (0, DIM)
    found = model.most_similar(positive=["apple", "pear"], negative="saw", topn=3)
    assert len(found) == 3 and not {"apple", "pear", "saw"} & {word for word, _ in found}
    assert model.most_similar(model["apple"], k=1)[0][0] == "apple"
    assert model.analogy("apple", "pear", "hammer", k=2) == model.most_similar(
        ["pear", "hammer"], ["apple"], 2
    )
    table = model.static_table()
    assert table.optimizer is None
    assert (table.lookup(np.arange(12)) == model.vectors).all()


def test_a_word_never_seen_is_the_mean_of_its_ngrams(model):
    rows, _ = NgramHasher(1000, 3, 6, first_row=len(model))(["apples"])
    mean = model.store.tables["input"].lookup(rows).mean(axis=0)
    np.testing.assert_allclose(model["apples"], mean, rtol=1e-5, atol=1e-7)
    with pytest.raises(UnknownWordError, match="'x' is not in the vocabulary and has no n-grams"):
        WordVectors(**SMALL | {"minn": 4}).fit(topics(20))["x"]
    with pytest.raises(KeyError, match="not in the vocabulary"):
        WordVectors(**SMALL | {"maxn": 0}).fit(topics(20))["apples"]


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim: expected"),
        ({"window": 0}, "window: expected"),
        ({"window": 2.5}, "window: expected an integer"),
        ({"min_count": 0}, "min_count: expected"),
        ({"negative": 0}, "negative: expected"),
        ({"sample": -1}, "sample: expected"),
        ({"sample": float("nan")}, "sample: expected"),
        ({"ns_exponent": "x"}, "ns_exponent: expected"),
        ({"sg": 2}, "sg: expected True or False"),
        ({"minn": 5, "maxn": 4}, "minn, maxn: expected"),
        ({"scheme": "bpe"}, "scheme: expected"),
        ({"num_hashes": 2}, "num_hashes"),
        ({"max_vocab": 1}, "max_vocab: expected"),
        ({"lr": -1.0}, "lr"),
        ({"lr": 0.1, "optimizer": se.SGD(lr=1.0)}, "lr: give it"),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        WordVectors(**options)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (3, "corpus: expected a path"),
        (b"text", "corpus: expected a path"),
        ((text for text in ["a b"]), "can be read only once"),
        (["a b", 3], r"corpus\[1\]: expected a text or a list of words, got 3"),
        (["a b", ["a", 3]], r"corpus\[1\]: expected a text"),
        (["a b", None], r"corpus\[1\]: expected a text"),
        (["a \ud800"], r"corpus\[0\]: not valid Unicode"),
        ([], "found 0 words"),
        (["", " "], "found 0 words"),
        (["one one"], "found 2 words, and 1 different"),
    ],
    ids=str,
)
def test_bad_corpora(corpus, message):
    with pytest.raises(ArgumentError, match=message):
        WordVectors(**SMALL).fit(corpus)


def test_bad_questions(model, tmp_path):
    with pytest.raises(NotFittedError, match="call fit first"):
        WordVectors()["apple"]
    with pytest.raises(ArgumentError, match=r"words\[1\]: expected a string, got 3"):
        model[["apple", 3]]
    with pytest.raises(ArgumentError, match="k: expected at least 1"):
        model.most_similar("apple", k=0)
    with pytest.raises(ArgumentError, match="at least one word"):
        model.most_similar([])
    with pytest.raises(ArgumentError, match=r"negative: expected words or vectors \(D,\), got int"):
        model.most_similar("apple", 3)
    with pytest.raises(ArgumentError, match="a vector of 64 numbers"):
        model.most_similar(np.zeros(3))
    with pytest.raises(FileNotFoundError):
        WordVectors().fit(tmp_path / "none.txt")
    with pytest.raises(NotAStoreError):
        WordVectors.load(tmp_path / "none")
    se.EmbeddingTable.create(tmp_path / "table", num_embeddings=3, embedding_dim=2).close()
    with pytest.raises(NotAStoreError, match="expected WordVectors"):
        WordVectors.load(tmp_path / "table")
    with pytest.raises(StoreError, match="already a store"):
        model.save(tmp_path / "table")


def test_vocabulary_order_and_limits():
    counts = Corpus(["b a c a", "b a d"]).count()
    vocabulary = make_vocabulary(counts, 1, 3, "corpus")
    assert vocabulary.words == [b"a", b"b", b"c"]
    assert vocabulary.counts.tolist() == [3, 2, 1]
    assert make_vocabulary(counts, 2, None, "corpus").words == [b"a", b"b"]


def test_batches_keep_lines_apart_and_skip(tmp_path):
    text = "a b c\n\nzz a b\nc"
    (tmp_path / "text").write_bytes(b"a b c\r\n\r\nzz a b\nc \xff")
    vocabulary = make_vocabulary(Corpus(["a a a b b c"]).count(), 1, None, "corpus")
    for corpus in (Corpus(text.split("\n")), Corpus(tmp_path / "text")):
        batches = list(corpus.batches(vocabulary, 4))
        assert [tokens.tolist() for tokens, _ in batches] == [[0, 1, 2, 0], [1, 2]]
        assert [lines.tolist() for _, lines in batches] == [[0, 0, 0, 2], [2, 3]]
        skipped = list(corpus.batches(vocabulary, 4, skip=4))
        assert [tokens.tolist() for tokens, _ in skipped] == [[1, 2]]
    counted = Corpus(tmp_path / "text").count()
    assert b"\xff" in counted
    assert b"\xff" not in make_vocabulary(counted, 1, None, "corpus").words


def test_a_line_longer_than_the_reading_buffer(tmp_path):
    (tmp_path / "text").write_text("aa bb cc dd " * 200_000)
    corpus = Corpus(tmp_path / "text")
    assert corpus.count() == dict.fromkeys((b"aa", b"bb", b"cc", b"dd"), 200_000)
    vocabulary = make_vocabulary(corpus.count(), 1, None, "corpus")
    batches = list(corpus.batches(vocabulary, 100_000))
    assert len(batches) == 8
    assert all((lines == 0).all() for _, lines in batches)


def test_batches_fit_the_text():
    for tokens, size in ((100, 256), (1_000_000, 2000), (10**9, 4096)):
        assert batch_tokens({"batch_size": None}, tokens) == size
    assert batch_tokens({"batch_size": 7}, 10**9) == 7
    with pytest.raises(ArgumentError, match="batch_size: expected at least 2"):
        WordVectors(batch_size=1)
