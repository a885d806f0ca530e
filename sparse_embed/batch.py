"""A batch of indices, checked and flattened: what lookup, update and their kin share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparse_embed import _validate
from sparse_embed._typing import NO_PADDING, FloatArray, IndexArray
from sparse_embed.errors import ArgumentError
from sparse_embed.ops import LOOKUP_CHUNK as CHUNK

_SUMS = (None, "sum", "mean", "sqrtn")


@dataclass(frozen=True)
class Batch:
    """indices (L,) int64; offsets (B+1,) int64, or None when unpooled; mode None then.

    lead: the shape of the result without its last axis: () of bags or of positions.
    unchecked: the range of the indices is still to be checked, by `check` or by the kernel.
    bounds: the bags cut into the chunks of a lookup, where the checks did it in passing.
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
    bounds: IndexArray | None = None

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
            self, indices=self.indices[begin:end], offsets=offsets, weights=weights, lead=lead,
            bounds=None,
        )  # fmt: skip

    def slots(self, found: IndexArray) -> IndexArray:
        """Slots by position, from the slots of `rows`."""
        if len(found) == len(self.indices):
            return found
        slots = np.zeros(len(self.indices), np.int64)
        slots[self.indices != self.padding] = found
        return slots


def _plain_bags(num_embeddings: int, indices: Any, offsets: object, mode: object) -> Batch | None:
    """What `make_batch` does where nothing has to be converted; None where something has."""
    if mode not in _SUMS or indices.ndim != 1 or not _validate.is_plain_int64(offsets):
        return None
    starts, bounds = _validate.as_bags(offsets, len(indices), CHUNK)
    how = "sum" if mode is None else str(mode)
    lead = (len(starts) - 1,)
    return Batch(indices, starts, how, None, NO_PADDING, False, lead, num_embeddings, True, bounds)


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
    plain = per_sample_weights is None and padding_idx is None and include_last_offset
    if (
        later
        and plain
        and (mode is None or isinstance(mode, str))
        and _validate.is_plain_int64(indices)
    ):
        bags = _plain_bags(num_embeddings, indices, offsets, mode)
        if bags is not None:
            return bags
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
    bounds = None
    if offsets is None:
        if checked.ndim < 1:
            raise ArgumentError("indices: pooling needs at least one axis, got a scalar")
        lead, length = checked.shape[:-1], checked.shape[-1]
        starts = np.arange(int(np.prod(lead, dtype=np.int64)) + 1, dtype=np.int64) * length
    else:
        if checked.ndim != 1:
            raise ArgumentError(f"indices: with offsets expected shape (L,), got {checked.shape}")
        starts, bounds = _validate.as_bags(
            offsets, len(checked), CHUNK, include_last_offset=include_last_offset
        )
        lead = (len(starts) - 1,)
    weights = _validate.as_per_sample_weights(per_sample_weights, checked.shape, pooling)
    flat = checked if checked.ndim == 1 else checked.reshape(-1)
    return Batch(
        flat, starts, pooling, weights, padding, has_padding, lead, num_embeddings, unchecked,
        bounds,
    )  # fmt: skip
