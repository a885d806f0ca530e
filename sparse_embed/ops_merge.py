"""Merging: the unique rows of a batch and where they occur, by a stable radix sort.

The first half of every update; `ops` tells the whole story, and is the door to it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from sparse_embed._typing import NO_PADDING, AnyArray, IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.kernels import merge as _merge
from sparse_embed.kernels._jit import guard_fork, new_counter

_NO_INDICES: IndexArray = np.empty(0, np.int64)


@dataclass(frozen=True)
class Merged:
    """The unique rows of a batch and where they occur.

    indices: (U,) int64, sorted, unique.  starts: (U+1,) int64.  positions: (n,) int64, those of row
    u at [starts[u], starts[u+1]), ascending; or what stands for them.  Padded ones are not there.
    """

    indices: IndexArray
    starts: IndexArray
    positions: IndexArray

    def __len__(self) -> int:
        return len(self.indices)


class _Scratch(threading.local):
    """Sort buffers of a Python thread, kept: fresh pages would cost more than the sort."""

    words: AnyArray = np.empty((2, 0), np.uint64)
    histogram: AnyArray = np.empty((0, 4096), np.uint32)

    def take(self, length: int, chunks: int) -> tuple[AnyArray, AnyArray, AnyArray]:
        if self.words.shape[1] < length:
            words = np.empty((2, max(length, 2 * self.words.shape[1])), np.uint64)
            if length <= 1 << 23:  # 128 MiB at most are kept
                self.words = words
        else:
            words = self.words
        if len(self.histogram) <= chunks:
            self.histogram = np.empty((chunks + 1, 4096), np.uint32)
        return words[0, :length], words[1, :length], self.histogram


_scratch = _Scratch()


def merge(indices: IndexArray, padding_idx: int) -> Merged:
    """Sort a batch by row, stably, without its padding.

    Args:
        indices: (L,) int64, each >= 0 or `padding_idx`; up to 2^63 - 1; L < 2^32.

    Raises:
        ArgumentError: 2^32 positions or more.
    """
    return _merge_payload(indices, padding_idx, _NO_INDICES, len(indices))


def merge_places(
    indices: IndexArray, padding_idx: int, places: IndexArray, num_places: int
) -> Merged:
    """As `merge`, with places[k], below num_places, instead of position k in `positions`."""
    return _merge_payload(indices, padding_idx, places, num_places)


def _merge_payload(
    indices: IndexArray, padding_idx: int, payload: IndexArray, num_payloads: int
) -> Merged:
    guard_fork()
    length = len(indices)
    if length >= 2**32:  # the sort counts in 32 bits: such a batch takes 100 GB to train on
        raise ArgumentError(f"indices: expected fewer than 2^32 in one batch, got {length}")
    chunks = _merge.num_chunks(length)
    is_kept = indices != padding_idx
    num_kept = int(np.count_nonzero(is_kept))
    if num_kept == 0:
        return Merged(_NO_INDICES, np.zeros(1, np.int64), _NO_INDICES)
    largest = indices.max() if num_kept == length else indices.max(where=is_kept, initial=0)
    key_bits = max(1, int(largest).bit_length())
    payload_bits = max(1, (num_payloads - 1).bit_length())
    if key_bits + payload_bits > 64:
        return _merge_wide(indices, padding_idx, payload, key_bits)
    words = _sorted_words(indices, payload, padding_idx, key_bits, payload_bits, num_kept)
    payloads, starts = np.empty(num_kept, np.int64), np.empty(num_kept + 1, np.int64)
    unique = np.empty(num_kept, np.int64)
    firsts = np.empty(chunks + 1, np.int64)
    for step in range(2):
        _merge.segments_cpu()(
            words, payload_bits, chunks, step, firsts, new_counter(chunks), payloads, unique, starts
        )
    num_unique = int(firsts[chunks])
    starts[num_unique] = num_kept
    return Merged(unique[:num_unique], starts[: num_unique + 1], payloads)


def _sorted_words(
    indices: IndexArray,
    payload: IndexArray,
    padding_idx: int,
    key_bits: int,
    payload_bits: int,
    num_kept: int,
) -> AnyArray:
    """(num_kept,) uint64: key bits above the payload, sorted; padding is left out."""
    length = len(indices)
    chunks, digit = _merge.num_chunks(length), _merge.digit_bits(key_bits, length)
    target, source, histogram = _scratch.take(length, chunks)
    half_pass = _merge.radix_pass_cpu()
    for number in range(-(-key_bits // digit)):
        for scatter in (False, True):
            half_pass(
                indices, payload, padding_idx, payload_bits, digit, number, scatter,
                num_kept if number else length, chunks, source, target, histogram,
                new_counter(chunks),
            )  # fmt: skip
        source, target = target, source
    return source[:num_kept]


def _merge_wide(
    indices: IndexArray, padding_idx: int, payload: IndexArray, key_bits: int
) -> Merged:
    """Keys that do not fit in a word with their payload: the low bits first, then the rest."""
    position_bits = max(1, (len(indices) - 1).bit_length())
    low_bits = 64 - position_bits
    mask = np.uint64((1 << position_bits) - 1)
    num_kept = int(np.count_nonzero(indices != padding_idx))
    none = _NO_INDICES
    words = _sorted_words(indices, none, padding_idx, low_bits, position_bits, num_kept)
    positions = (words & mask).astype(np.int64)
    high, high_bits = indices[positions] >> low_bits, key_bits - low_bits
    words = _sorted_words(high, none, NO_PADDING, high_bits, position_bits, num_kept)
    positions = positions[(words & mask).astype(np.int64)]
    keys = indices[positions]
    begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    starts = np.append(begins, num_kept).astype(np.int64)
    return Merged(keys[begins], starts, payload[positions] if len(payload) else positions)
