"""One batch of word vectors: what is drawn, and the public table operations that learn from it.

The input table holds rows of words and sub-words, the output table one row a word.  Running text
comes in blocks of many batches.  A batch has its centres from all over a block: words stand in
heaps (a name ten times in a paragraph), and a batch of neighbours would move such a word once by
ten gradients that say the same.  The centres of a batch are sorted by word, so that each of its
words is one bag:

    hidden  = input.lookup(sub-words of each word, mode="mean")
    scores  = <hidden, output row>          output.per_sample_weights_grad(hidden, targets, bags)
    g       = sigmoid(scores) - label       kernels/skipgram.py
    upward  = sum g * output row            output.lookup(targets, bags, per_sample_weights=g)
    output.update(hidden, targets, bags, per_sample_weights=g)
    input.update(upward, sub-words of each word, mode="sum")

Every row of a batch moves once, by the sum of its gradients at the batch's beginning.  (fastText
and word2vec move rows pair by pair, from several threads at once.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from sparse_embed import ops
from sparse_embed._typing import AnyArray, FloatArray, IndexArray
from sparse_embed.kernels import skipgram as kernels
from sparse_embed.kernels._jit import guard_fork, new_counter
from sparse_embed.kernels.draws import alias_table_cpu
from sparse_embed.keys import NgramVocabulary
from sparse_embed.table import EmbeddingTable


@dataclass(frozen=True)
class Sampler:
    """How often words are kept, and how often they are drawn as negatives.

    keep: (V,) float32, the chance of an occurrence to stay.  threshold, alias: the alias table.
    """

    keep: FloatArray
    threshold: AnyArray
    alias: AnyArray

    @classmethod
    def of(cls, counts: IndexArray, sample: float, ns_exponent: float) -> Sampler:
        """With f a word's share of the text: keep = sqrt(sample / f) + sample / f, at most 1
        (word2vec's code, fastText, gensim; 0 keeps all); negatives by count ** ns_exponent."""
        known = np.maximum(counts, 1).astype(np.float64)
        keep = np.ones(len(counts))
        if sample > 0:
            ratio = sample * known.sum() / known
            keep = np.minimum(np.sqrt(ratio) + ratio, 1.0)
        threshold = np.empty(len(counts), np.uint64)
        alias = np.empty(len(counts), np.int32)
        guard_fork()
        alias_table_cpu()(known**ns_exponent, threshold, alias)
        return cls(keep.astype(np.float32), threshold, alias)


@dataclass(frozen=True)
class Learned:
    """What a batch says of itself: the sum of the losses of its pairs (CBOW: windows)."""

    loss: float
    pairs: int


@dataclass(frozen=True)
class Block:
    """Running text after sub-sampling.

    tokens, lines: (n,) words and the line of each.  order: (n,) its positions, shuffled: batches
    take their centres from it.  key: of what is drawn for them.
    """

    key: np.uint64
    tokens: IndexArray
    lines: IndexArray
    order: IndexArray

    def __len__(self) -> int:
        return len(self.order)


class Objective:
    """Skip-gram or CBOW with negative sampling, on two tables.

    Args:
        subwords: the bags of the vocabulary in the input table.
        sg: skip-gram; else CBOW.
        window, negative: as `WordVectors`.
        seed: everything drawn is a function of (seed, epoch, number of the block).
    """

    def __init__(
        self,
        inputs: EmbeddingTable,
        outputs: EmbeddingTable,
        subwords: NgramVocabulary,
        sampler: Sampler,
        *,
        sg: bool,
        window: int,
        negative: int,
        seed: int,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._subwords = subwords
        self._lengths = np.diff(subwords.offsets)
        self._sampler = sampler
        self._window = np.uint64(window)
        self._negative = negative
        self._seed = seed
        self._learn = self._skipgram if sg else self._cbow

    def draw(self, tokens: IndexArray, lines: IndexArray, epoch: int, number: int) -> Block:
        """Sub-sample a block of running text, and shuffle its centres."""
        random = np.random.default_rng((self._seed, epoch, number))
        key = random.integers(0, 2**64, dtype=np.uint64)
        kept = random.random(len(tokens), np.float32) < self._sampler.keep[tokens]
        tokens, lines = tokens[kept], lines[kept]
        return Block(key, tokens, lines, random.permutation(len(tokens)))

    def train_batch(self, block: Block, begin: int, end: int, lr: float) -> Learned:
        """Move both tables once, for the centres `block.order[begin:end]`."""
        if begin >= end:
            return Learned(0.0, 0)
        self.inputs.lr = self.outputs.lr = lr
        guard_fork()
        return self._learn(block, block.order[begin:end])

    def _skipgram(self, block: Block, centres: IndexArray) -> Learned:
        merged = ops.merge(block.tokens[centres], ops.NO_PADDING)
        centres = centres[merged.positions]
        firsts = self._firsts(block, centres)
        pairs = int(firsts[-1])
        if pairs == 0:
            return Learned(0.0, 0)
        entries = 1 + self._negative
        targets = np.empty(pairs * entries, np.int64)
        kernels.skipgram_cpu()(
            block.key, self._window, self._negative, centres, block.lines, block.tokens, firsts,
            self._sampler.threshold, self._sampler.alias, _counter(len(centres)), targets,
        )  # fmt: skip
        bags = self._subwords(merged.indices)
        hidden = self.inputs.lookup(*bags, mode="mean")
        upward, loss = self._output_step(hidden, targets, firsts[merged.starts] * entries)
        self.inputs.update(upward, *bags, mode="sum")
        return Learned(loss, pairs)

    def _cbow(self, block: Block, centres: IndexArray) -> Learned:
        n, entries = len(centres), 1 + self._negative
        firsts = self._firsts(block, centres)
        contexts = np.empty(firsts[-1], np.int64)
        targets = np.empty(n * entries, np.int64)
        if len(contexts) == 0:
            return Learned(0.0, 0)
        kernels.cbow_cpu()(
            block.key, self._window, self._negative, centres, block.lines, block.tokens, firsts,
            self._sampler.threshold, self._sampler.alias, _counter(n), contexts, targets,
        )  # fmt: skip
        merged = ops.merge(contexts, ops.NO_PADDING)
        local = np.empty(len(contexts), np.int64)
        local[merged.positions] = np.repeat(np.arange(len(merged)), np.diff(merged.starts))
        bags = self._subwords(merged.indices)
        sums = self.inputs.lookup(*bags, mode="sum")
        ones = np.ones(len(contexts), np.float32)
        windows = scipy.sparse.csr_array((ones, local, firsts), (n, len(merged)))
        # The mean over all sub-words of the window, as fastText and gensim take it.
        lengths = windows @ self._lengths[merged.indices].astype(np.float32)
        hidden = (windows @ sums) / np.maximum(lengths, 1.0)[:, None]
        alone = np.flatnonzero(firsts[1:] == firsts[:-1])
        bounds = np.arange(n + 1) * entries
        if len(alone):  # a word without neighbours teaches nothing
            keep = np.repeat(firsts[1:] > firsts[:-1], entries)
            targets = targets[keep]
            bounds = np.concatenate(([0], np.cumsum(keep.reshape(n, entries).sum(axis=1))))
        upward, loss = self._output_step(hidden, targets, bounds)
        self.inputs.update(windows.T @ upward, *bags, mode="sum")
        return Learned(loss, n - len(alone))

    def _firsts(self, block: Block, centres: IndexArray) -> IndexArray:
        """(n+1,) where the pairs of each centre begin."""
        firsts = np.zeros(len(centres) + 1, np.int64)
        counter = _counter(len(centres))
        kernels.count_pairs_cpu()(
            block.key, self._window, centres, block.lines, counter, firsts[1:]
        )
        np.cumsum(firsts, out=firsts)
        return firsts

    def _output_step(
        self, hidden: FloatArray, targets: IndexArray, bounds: IndexArray
    ) -> tuple[FloatArray, float]:
        """Move the output rows; the gradient of `hidden`, and the summed loss."""
        shares = self.outputs.per_sample_weights_grad(hidden, targets, bounds, mode="sum")
        pairs = len(targets) // (1 + self._negative)
        losses = np.empty(-(-pairs // kernels.CHUNK), np.float64)
        kernels.logistic_gradients_cpu()(self._negative, shares, new_counter(len(losses)), losses)
        upward = self.outputs.lookup(targets, bounds, mode="sum", per_sample_weights=shares)
        self.outputs.update(hidden, targets, bounds, mode="sum", per_sample_weights=shares)
        return upward, float(losses.sum())


def _counter(positions: int) -> IndexArray:
    """Of kernels that draw chunks of positions."""
    return new_counter(-(-positions // kernels.CHUNK))
