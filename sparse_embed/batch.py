"""A batch of indices, checked and flattened: what lookup, update and their kin share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparse_embed import _validate
from sparse_embed._typing import FloatArray, IndexArray
from sparse_embed.errors import ArgumentError


@dataclass(frozen=True)
class Batch:
    """indices (L,) int64; offsets (B+1,) int64, or None when unpooled; mode None then.

    lead: the shape of the result without its last axis: () of bags or of positions.
    unchecked: the range of the indices is still to be checked, by `check` or by the kernel.
    """

    indices: IndexArray
    offsets: IndexArray | None
    mode: str | None
    weights: FloatArray | None
    padding: int
    has_padding: bool  # padding alone cannot tell: -2^63 is a legal padding_idx and NO_PADDING
    lead: tuple[int, ...]
    num_embeddings: int = 0
    unchecked: bool = False

    def check(self) -> None:
        """Raises IndexRangeError when an index is outside the table."""
        if self.unchecked:
            _validate.check_range(self.indices, self.num_embeddings)

    @property
    def num_bags(self) -> int:
        return len(self.indices) if self.offsets is None else len(self.offsets) - 1

    @property
    def rows(self) -> IndexArray:
        """The row numbers to bring in: all positions but padded ones."""
        if not self.has_padding:
            return self.indices
        kept: IndexArray = self.indices[self.indices != self.padding]
        return kept

    def part(self, first: int, last: int) -> Batch:
        """The bags [first, last) as a batch of their own."""
        if self.offsets is None:
            begin, end, offsets = first, last, None
        else:
            begin, end = int(self.offsets[first]), int(self.offsets[last])
            offsets = self.offsets[first : last + 1] - begin
        weights = None if self.weights is None else self.weights[begin:end]
        lead = (last - first,)
        return replace(
            self, indices=self.indices[begin:end], offsets=offsets, weights=weights, lead=lead
        )

    def slots(self, found: IndexArray) -> IndexArray:
        """Slots by position, from the slots of `rows`."""
        if len(found) == len(self.indices):
            return found
        slots = np.zeros(len(self.indices), np.int64)
        slots[self.indices != self.padding] = found
        return slots


def make_batch(
    num_embeddings: int,
    indices: object,
    offsets: object,
    mode: object,
    per_sample_weights: object,
    padding_idx: object,
    include_last_offset: bool,
    later: bool = False,
) -> Batch:
    """Check the arguments of a call.  Shapes as EmbeddingTable.lookup says.

    later: the range of indices may be left unchecked, where a kernel can do it in passing.

    Raises:
        ArgumentError, IndexRangeError: as `_validate` says; nothing has changed.
    """
    padding = _validate.as_padding_idx(padding_idx)
    has_padding = padding_idx is not None
    pools = (offsets is not None or mode is not None) and mode != "max"
    unchecked = later and pools and not has_padding and _validate.is_plain_int64(indices)
    checked = _validate.as_indices(indices, num_embeddings, padding_idx, check=not unchecked)
    if offsets is None and mode is None:
        if per_sample_weights is not None:
            raise ArgumentError("per_sample_weights: need a mode; an unpooled lookup takes none")
        flat = checked.reshape(-1)
        return Batch(flat, None, None, None, padding, has_padding, checked.shape, num_embeddings)
    pooling = _validate.as_mode("sum" if mode is None else mode)
    if offsets is None:
        if checked.ndim < 1:
            raise ArgumentError("indices: pooling needs at least one axis, got a scalar")
        lead, length = checked.shape[:-1], checked.shape[-1]
        starts = np.arange(int(np.prod(lead, dtype=np.int64)) + 1, dtype=np.int64) * length
    else:
        if checked.ndim != 1:
            raise ArgumentError(f"indices: with offsets expected shape (L,), got {checked.shape}")
        starts = _validate.as_offsets(
            offsets, len(checked), include_last_offset=include_last_offset
        )
        lead = (len(starts) - 1,)
    weights = _validate.as_per_sample_weights(per_sample_weights, checked.shape, pooling)
    flat = checked if checked.ndim == 1 else checked.reshape(-1)
    return Batch(
        flat, starts, pooling, weights, padding, has_padding, lead, num_embeddings, unchecked
    )
