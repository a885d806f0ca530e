"""fastText's model files (.bin), read and written.

    i32 793712314 · i32 version 11 or 12
    args        12 x i32: dim ws epoch minCount neg wordNgrams loss model bucket minn maxn
                lrUpdateRate · f64 t
    dictionary  i32 size, nwords, nlabels · i64 ntokens, pruneidx_size (-1: not pruned)
                size x (word, 0x00, i64 count, i8 type: 0 word, 1 label)
    input       u8 quantised · i64 rows, columns · f32 ...   row i: word i, row nwords + h: bucket h
    output      u8 quantised · i64 rows, columns · f32 ...

Little-endian.  Source: fastText, src/fasttext.cc, args.cc, dictionary.cc, densematrix.cc.
"""

from __future__ import annotations

import os
import struct
from typing import IO, Any

import numpy as np

from sparse_embed._typing import IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.table import EmbeddingTable
from sparse_embed.text.corpus import Vocabulary
from sparse_embed.text.vectors import WordVectors

MAGIC = 793712314
_ARGS = (
    "dim", "ws", "epoch", "minCount", "neg", "wordNgrams", "loss", "model", "bucket", "minn",
    "maxn", "lrUpdateRate",
)  # fmt: skip
_CBOW, _SKIPGRAM, _SUPERVISED = 1, 2, 3
_NEGATIVE_SAMPLING = 2
_BLOCK_BYTES = 16 << 20


class _Reader:
    """A file and its name; short reads are errors that say where."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file = file
        self.name = name
        self.size = os.fstat(file.fileno()).st_size

    def numbers(self, kinds: str, what: str) -> tuple[Any, ...]:
        """Little-endian numbers, as `struct` calls them."""
        size = struct.calcsize("<" + kinds)
        return struct.unpack("<" + kinds, self.bytes(size, what))

    def bytes(self, size: int, what: str) -> bytes:
        data = self.file.read(size)
        if len(data) != size:
            raise ArgumentError(f"{self.name}: the file ends in {what}")
        return data

    def wrong(self, found: str) -> ArgumentError:
        return ArgumentError(f"{self.name}: {found}")


def load_fasttext(
    path: str | os.PathLike[str],
    *,
    model_path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> WordVectors:
    """Read a model that fastText trained (or gensim's `save_facebook_model` wrote).

    Every vector is fastText's own, also of words never seen.  Output rows come along where they are
    those of words (negative sampling, skip-gram or CBOW), so training goes on where it stopped;
    with another loss or a classifier new ones are begun.

    Args:
        model_path: directory of the store to make; None: in memory.
        options: of `WordVectors`, in place of the file's (`epochs`, `window`), for training on.

    Raises:
        ArgumentError: not a fastText model, truncated, quantised (.ftz) or pruned.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        reader = _Reader(file, os.fspath(path))
        args = _read_args(reader)
        words, counts, size = _read_dictionary(reader)
        if args["maxn"] < args["minn"] or args["bucket"] == 0:
            args["maxn"] = 0
        described = {
            "embedding_dim": args["dim"],
            "sg": args["model"] != _CBOW,
            "window": max(1, args["ws"]),
            "min_count": max(1, args["minCount"]),
            "negative": max(1, args["neg"]),
            "sample": args["t"],
            "epochs": max(1, args["epoch"]),
            "minn": args["minn"] if args["maxn"] else 0,
            "maxn": args["maxn"],
            "num_buckets": max(1, args["bucket"]),
            **options,
            "scheme": "fasttext",
        }
        for fixed in ("embedding_dim", "minn", "maxn", "num_buckets"):
            if fixed in options:
                raise ArgumentError(f"{fixed}: a loaded model has its own, {described[fixed]}")
        _quantised(reader, "the input matrix")
        rows = _shape(reader, "the input matrix", args["dim"])
        # Supervised models put nothing between words and buckets; labels have no input rows.
        expected = len(words) + (args["bucket"] if args["bucket"] else 0)
        if rows not in (expected, len(words)):
            raise reader.wrong(f"its input matrix has {rows} rows, expected {expected}")
        model = WordVectors.of(Vocabulary(words, counts), path=model_path, **described)
        try:
            table = model.store.tables["input"]
            _read_rows(reader, table, rows)
            own = args["loss"] == _NEGATIVE_SAMPLING and args["model"] != _SUPERVISED
            if own:
                _quantised(reader, "the output matrix")
                out_rows = _shape(reader, "the output matrix", args["dim"])
                if out_rows != size:
                    raise reader.wrong(f"its output matrix has {out_rows} rows, expected {size}")
                _read_rows(reader, model.store.tables["output"], out_rows)
            model.finish_reading()
        except BaseException:
            model.discard()
            raise
    return model


def _read_args(reader: _Reader) -> dict[str, Any]:
    magic, version = reader.numbers("2i", "its header")
    if magic != MAGIC:
        raise reader.wrong(
            "not a fastText model (.bin); for word2vec's binary format use load_word2vec"
        )
    if version not in (11, 12):
        raise reader.wrong(f"expected version 11 or 12 of fastText's format, found {version}")
    values = reader.numbers("12i", "its arguments")
    args: dict[str, Any] = dict(zip(_ARGS, values, strict=True))
    (args["t"],) = reader.numbers("d", "its arguments")
    if version == 11 and args["model"] == _SUPERVISED:
        args["maxn"] = 0
    sound = (
        1 <= args["dim"] <= 65536
        and 0 <= args["bucket"] < 2**31
        and args["model"] in (_CBOW, _SKIPGRAM, _SUPERVISED)
        and 0 <= args["minn"] <= 1 << 20
        and 0 <= args["maxn"] <= 1 << 20
        and np.isfinite(args["t"])
        and args["t"] >= 0
    )
    if not sound:
        raise reader.wrong(f"its arguments make no sense: {args}")
    return args


def _read_dictionary(reader: _Reader) -> tuple[list[bytes], IndexArray, int]:
    """The words, their counts, and the number of entries with labels."""
    size, nwords, nlabels = reader.numbers("3i", "its dictionary")
    _ntokens, pruned = reader.numbers("2q", "its dictionary")
    if pruned > 0:
        raise reader.wrong("it was pruned by quantisation (.ftz); only full models can be read")
    if min(size, nwords, nlabels) < 0 or size != nwords + nlabels or 10 * size > reader.size:
        raise reader.wrong(f"its dictionary makes no sense: {size}, {nwords}, {nlabels}")
    words: list[bytes] = []
    counts = np.zeros(nwords, np.int64)
    for place in range(size):
        word = _word(reader, place)
        count, kind = reader.numbers("qb", "its dictionary")
        if kind == 0 and len(words) < nwords:
            counts[len(words)] = max(0, count)
            words.append(word)
    if len(words) != nwords or nwords < 2 or len(set(words)) != nwords:
        raise reader.wrong(f"expected {nwords} distinct words, found {len(set(words))}")
    return words, counts, size


def _word(reader: _Reader, place: int) -> bytes:
    word = bytearray()
    while (sign := reader.bytes(1, f"word {place} of its dictionary")) != b"\0":
        word += sign
        if len(word) > 1 << 16:
            raise reader.wrong(f"word {place} of its dictionary does not end")
    try:
        word.decode()
    except UnicodeDecodeError as error:
        raise reader.wrong(f"word {place} of its dictionary is not UTF-8: {error}") from None
    if not word:
        raise reader.wrong(f"word {place} of its dictionary is empty")
    return bytes(word)


def _quantised(reader: _Reader, what: str) -> None:
    (flag,) = reader.numbers("B", what)
    if flag != 0:
        raise reader.wrong(f"{what} is quantised (.ftz); only full models can be read")


def _shape(reader: _Reader, what: str, dim: int) -> int:
    rows, columns = reader.numbers("2q", what)
    left = reader.size - reader.file.tell()
    if columns != dim or rows < 0 or 4 * dim * rows > left:
        raise reader.wrong(f"{what} has {rows} x {columns} numbers, of {dim} columns {left} bytes")
    return int(rows)


def _read_rows(reader: _Reader, table: EmbeddingTable, rows: int) -> None:
    dim = table.embedding_dim
    step = max(1, _BLOCK_BYTES // (4 * dim))
    for begin in range(0, min(rows, table.num_embeddings), step):
        count = min(step, rows - begin, table.num_embeddings - begin)
        data = np.frombuffer(reader.bytes(4 * dim * count, "a matrix"), "<f4").reshape(count, dim)
        if not np.isfinite(data).all():
            raise reader.wrong("a matrix has NaN or infinity in it")
        table.assign(np.arange(begin, begin + count), data)
    beyond = max(0, rows - table.num_embeddings)  # buckets of word n-grams, which vectors have not
    reader.file.seek(4 * dim * beyond, os.SEEK_CUR)


def save_fasttext(model: WordVectors, path: str | os.PathLike[str]) -> None:
    """Write a model as fastText's .bin, version 12: fastText and gensim load it and train on.

    Rows that were never trained are written with their first weights, so the file has
    4 D (V + num_buckets) bytes and more.

    Raises:
        ArgumentError: a floret model; a word with a zero byte.
        OSError: the file cannot be written.
    """
    options, vocabulary = model.options, model.vocabulary
    if options["scheme"] != "fasttext":
        raise ArgumentError('scheme: fastText files hold "fasttext" models only, not floret')
    for word in vocabulary.words:
        if b"\0" in word:
            raise ArgumentError(f"words: {word.decode()!r} has a zero byte in it")
    inputs, outputs = model.store.tables["input"], model.store.tables["output"]
    words = len(vocabulary)
    lr_update_rate = 100
    with open(path, "wb") as file:
        file.write(struct.pack("<2i", MAGIC, 12))
        file.write(
            struct.pack(
                "<12id",
                model.embedding_dim, options["window"], options["epochs"], options["min_count"],
                options["negative"], 1, _NEGATIVE_SAMPLING,
                _SKIPGRAM if options["sg"] else _CBOW, inputs.num_embeddings - words,
                options["minn"], options["maxn"], lr_update_rate, options["sample"],
            )
        )  # fmt: skip
        file.write(struct.pack("<3i2q", words, words, 0, vocabulary.tokens, -1))
        for word, count in zip(vocabulary.words, vocabulary.counts.tolist(), strict=True):
            file.write(word + b"\0" + struct.pack("<qb", count, 0))
        for table in (inputs, outputs):
            file.write(struct.pack("<B2q", 0, table.num_embeddings, table.embedding_dim))
            step = max(1, _BLOCK_BYTES // (4 * table.embedding_dim))
            for begin in range(0, table.num_embeddings, step):
                rows = np.arange(begin, min(begin + step, table.num_embeddings))
                file.write(table.lookup(rows).astype("<f4").tobytes())
