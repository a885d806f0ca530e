"""Looking through a batch and merging it on a GPU: `ops.merge` on device arrays.

Nothing here waits for the GPU unless somebody asks how many rows are unique, or what the survey
has found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sparse_embed import ops
from sparse_embed.device import DeviceMemory
from sparse_embed.device_scan import launch_tiles, prefix_sums
from sparse_embed.kernels.cuda import backward as _backward
from sparse_embed.kernels.cuda import batches as _batches
from sparse_embed.kernels.cuda import merge as _merge
from sparse_embed.kernels.cuda import sort as _sort
from sparse_embed.kernels.cuda._shim import THREADS
from sparse_embed.kernels.plan import BLOCK


class Merged:
    """As `ops.Merged`, on the device; how many rows are unique is asked when somebody must know.

    all_indices, all_starts, all_positions: as long as the batch; the first entries mean something.
    all_bags: of each entry, or None.  num (1,): how many rows, on the device.  hot: the long
    segments.
    """

    def __init__(
        self,
        arrays: tuple[Any, Any, Any],
        num: Any,
        hot: Hot,
        number: Callable[[Any], int],
        count: int | None = None,
        all_bags: Any = None,
    ) -> None:
        self.all_bags = all_bags
        self.all_indices, self.all_starts, self.all_positions = arrays
        self.num, self.hot = num, hot
        self._number, self._count = number, count

    def __len__(self) -> int:
        if self._count is None:
            self._count = self._number(self.num)
        return self._count

    @property
    def indices(self) -> Any:
        """(U,) unique row numbers, ascending."""
        return self.all_indices[: len(self)]

    @property
    def starts(self) -> Any:
        """(U+1,) where the entries of each begin."""
        return self.all_starts[: len(self) + 1]

    @property
    def positions(self) -> Any:
        """(n,) of the entries in the batch."""
        kept = self._number(self.all_starts[len(self) :]) if len(self) else 0
        return self.all_positions[:kept]


class Hot(NamedTuple):
    """Segments too long for one group of lanes: see `kernels.cuda.backward`."""

    rows: Any
    bases: Any
    starts: Any
    found: Any


class Survey(NamedTuple):
    """What one pass over a batch tells: indices out of range, one more than the largest index in
    range, padded positions, falling offsets, the first offset, and how far the last one is from
    the number of positions."""

    outside: int
    rows: int
    padded: int
    falls: int
    first: int
    beyond: int


class MergeOps:
    """Survey and merge on one GPU."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self._zero = memory.upload(np.zeros(1, np.int64))
        nothing = memory.upload(np.zeros(1, np.int64))
        self._not_hot = Hot(nothing, nothing, nothing, nothing)
        self.nothing_found = memory.upload(np.zeros(len(Survey._fields), np.int64))

    def survey(
        self, indices: Any, num_embeddings: int, padding_idx: int | None, offsets: Any = None
    ) -> tuple[Any, Callable[[], Survey]]:
        """Range check and counts of a batch, in one pass.

        Returns:
            the numbers on the device, valid until the next survey, and a function that waits for
            them, and for nothing that the stream is asked after.
        """
        found = self.memory.work("survey", len(Survey._fields), np.int64)
        self.memory.clear(found)
        self.memory.each(
            _batches.survey_cuda(),
            max(1, int(indices.shape[0]), 0 if offsets is None else int(offsets.shape[0])),
            indices, num_embeddings, 0 if padding_idx is None else padding_idx,
            padding_idx is not None, self._zero if offsets is None else offsets,
            offsets is not None, found,
        )  # fmt: skip
        read = self.memory.read_later(found)
        return found, lambda: Survey(*map(int, read()))

    def merge(
        self,
        indices: Any,
        padding_idx: int,
        num_embeddings: int | None = None,
        bag_ids: Any = None,
    ) -> Merged:
        """Sort a batch by row, stably, without its padding.

        num_embeddings: more than any index; without it the indices are looked through.
        bag_ids: of the positions, for `all_bags`.
        """
        length = int(indices.shape[0])
        if num_embeddings is None or num_embeddings.bit_length() + length.bit_length() > 64:
            survey = self.survey(indices, 2**63 - 1, padding_idx)[1]()
            num_embeddings = survey.rows
        # The largest number of so many bits is nobody's: it is the key of padding.
        key_bits = max(1, num_embeddings.bit_length())
        position_bits = max(1, (length - 1).bit_length())
        if length == 0:
            empty = self.memory.empty(0, np.int64)
            arrays = (empty, self._zero, empty)
            return Merged(arrays, self._zero, self._not_hot, self.memory.number, 0)
        if key_bits + position_bits > 64:
            return self._merge_on_host(indices, padding_idx)
        padding = np.uint64((1 << (key_bits + position_bits)) - 1)
        words = self._sorted_words(indices, padding_idx, key_bits, position_bits, padding)
        return self._segments(words, position_bits, padding, bag_ids)

    def _merge_on_host(self, indices: Any, padding_idx: int) -> Merged:
        """Row numbers of a table so large that key and position do not fit in 64 bits."""
        merged = ops.merge(self.memory.download(indices), padding_idx)
        upload, count = self.memory.upload, len(merged.indices)
        lengths = np.diff(merged.starts)
        hot_rows = np.flatnonzero(lengths > _backward.HOT)
        blocks = -(-lengths[hot_rows] // BLOCK)
        bases = np.cumsum(blocks) - blocks
        hot_starts = np.zeros(count + 1, np.int64)
        hot_starts[hot_rows] = bases
        found = np.array([(len(hot_rows) << 40) + int(blocks.sum())], np.int64)
        rows, firsts, begins = (upload(np.append(a, 0)) for a in (hot_rows, bases, hot_starts))
        hot = Hot(rows, firsts, begins, upload(found))
        num = upload(np.array([count], np.int64))
        arrays = (upload(merged.indices), upload(merged.starts), upload(merged.positions))
        return Merged(arrays, num, hot, self.memory.number, count)

    def _sorted_words(
        self,
        indices: Any,
        padding_idx: int,
        key_bits: int,
        position_bits: int,
        padding: np.uint64,
    ) -> Any:
        memory, length = self.memory, int(indices.shape[0])
        tiles = _sort.sort_tiles(length)
        buffers = [memory.work(name, length, np.uint64) for name in ("words", "more words")]
        counts = memory.work("counts", _sort.DIGITS * tiles, np.int64)
        totals = memory.work("digits", _sort.DIGITS, np.int64)
        source = indices
        for shift in range(position_bits, position_bits + key_bits, _sort.DIGIT_BITS):
            first, target = shift == position_bits, buffers.pop(0)
            how = (source, padding_idx, position_bits, padding, shift, counts)
            memory.launch(_sort.count_digits_cuda(first), tiles, THREADS, *how)
            memory.launch(_sort.scan_digits_cuda(), _sort.DIGITS, THREADS, counts, tiles, totals)
            memory.launch(_sort.scatter_digits_cuda(first), tiles, THREADS, *how, totals, target)
            buffers += [] if first else [source]
            source = target
        return source

    def _segments(self, words: Any, position_bits: int, padding: np.uint64, bag_ids: Any) -> Merged:
        memory, length = self.memory, int(words.shape[0])
        bags = None if bag_ids is None else memory.work("bags of entries", length, np.int64)
        heads = memory.work("heads", _merge.num_tiles(length), np.int64)
        positions = memory.work("positions", length, np.int64)
        unique = memory.work("unique", length, np.int64)
        starts = memory.work("starts", length + 1, np.int64)
        most = length // _backward.HOT + 1
        hot = Hot(
            memory.work("hot rows", most, np.int64), memory.work("hot bases", most, np.int64),
            memory.work("hot starts", length, np.int64), memory.work("hot", 1, np.int64),
        )  # fmt: skip
        how = (words, position_bits, padding)
        launch_tiles(memory, _merge.count_heads_cuda(), length, *how, heads, hot.found)
        num = prefix_sums(memory, heads, "unique rows")
        launch_tiles(
            memory, _merge.write_segments_cuda(_backward.HOT, BLOCK), length,
            *how, heads, num, positions, unique, starts, *hot, bag_ids is not None,
            self._zero if bag_ids is None else bag_ids, self._zero if bags is None else bags,
        )  # fmt: skip
        return Merged((unique, starts, positions), num, hot, memory.number, None, bags)
