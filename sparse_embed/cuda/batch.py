"""A batch on a GPU, checked: from NumPy arrays by the host's checks, from device arrays there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_embed import _validate
from sparse_embed.batch import Batch, make_batch
from sparse_embed.cuda.arrays import import_array, is_on_device
from sparse_embed.cuda.merging import Survey
from sparse_embed.cuda.ops import DeviceOps
from sparse_embed.errors import ArgumentError, IndexRangeError


@dataclass(frozen=True)
class DeviceBatch:
    """As `batch.Batch`, with arrays on the device.

    found: what the survey of the indices found, on the device.  check: waits for that, and raises
    what is wrong; to be called before rows are read or moved by the host, and before any change.
    shape: of the indices as they were given.
    given: whether the user's indices lay on the device; results then do too.
    """

    indices: Any
    offsets: Any
    mode: str | None
    weights: Any
    padding: int
    has_padding: bool
    lead: tuple[int, ...]
    shape: tuple[int, ...]
    found: Any
    check: Callable[[], None]
    given: bool

    @property
    def num_bags(self) -> int:
        return int(self.indices.shape[0] if self.offsets is None else self.offsets.shape[0] - 1)


def make_device_batch(
    run: DeviceOps,
    num_embeddings: int,
    indices: object,
    offsets: object,
    mode: object,
    per_sample_weights: object,
    padding_idx: object,
    include_last_offset: bool,
) -> DeviceBatch:
    """Check the arguments of a call, as `batch.make_batch` does; the numbers on a device are being
    looked through when this returns, and `check` tells.

    Raises:
        ArgumentError, IndexRangeError: the argument is named; nothing has changed.
    """
    if is_on_device(indices):
        return _from_device(
            run, num_embeddings, indices, offsets, mode, per_sample_weights, padding_idx,
            include_last_offset,
        )  # fmt: skip
    for name, value in (("offsets", offsets), ("per_sample_weights", per_sample_weights)):
        if is_on_device(value):
            raise ArgumentError(f"{name}: is on a GPU, but indices are not; expected both on one")
    batch = make_batch(
        num_embeddings, indices, offsets, mode, per_sample_weights, padding_idx,
        include_last_offset,
    )  # fmt: skip
    return upload_batch(run, batch, shape_of(indices))


def shape_of(indices: Any) -> tuple[int, ...]:
    """The axes of a list or array, wherever it lies."""
    found: Any = indices.shape if hasattr(indices, "shape") else np.shape(indices)
    return tuple(int(n) for n in found)


def upload_batch(run: DeviceOps, batch: Batch, shape: tuple[int, ...]) -> DeviceBatch:
    """A checked batch of the host, on the device."""
    upload = run.memory.upload
    return DeviceBatch(
        indices=upload(batch.indices),
        offsets=None if batch.offsets is None else upload(batch.offsets),
        mode=batch.mode,
        weights=None if batch.weights is None else upload(batch.weights),
        padding=batch.padding,
        has_padding=batch.has_padding,
        lead=batch.lead,
        shape=shape,
        found=run.nothing_found,
        check=_nothing_to_check,
        given=False,
    )


def _from_device(
    run: DeviceOps,
    num_embeddings: int,
    indices: Any,
    offsets: object,
    mode: object,
    per_sample_weights: object,
    padding_idx: object,
    include_last_offset: bool,
) -> DeviceBatch:
    memory = run.memory
    array = import_array(memory, indices, np.int64, "indices")
    shape = tuple(array.shape)
    flat = array if len(shape) == 1 else array.reshape((math.prod(shape),))
    length = int(flat.shape[0])
    padding = _validate.as_padding_idx(padding_idx)
    pooling = None if offsets is None and mode is None else _validate.as_mode(mode or "sum")
    if per_sample_weights is not None and pooling is None:
        raise ArgumentError("per_sample_weights: need a mode; an unpooled lookup takes none")
    if pooling is None:
        starts, lead = None, shape
    elif offsets is None:
        if not shape:
            raise ArgumentError("indices: pooling needs at least one axis, got a scalar")
        lead = shape[:-1]
        bags = np.arange(int(np.prod(lead, dtype=np.int64)) + 1, dtype=np.int64)
        starts = memory.upload(bags * shape[-1])
    else:
        if len(shape) != 1:
            raise ArgumentError(f"indices: with offsets expected shape (L,), got {shape}")
        starts = device_offsets(run, offsets, length, include_last_offset)
        lead = (int(starts.shape[0]) - 1,)
    weights = None
    if per_sample_weights is not None:
        if pooling == "max":
            raise ArgumentError('per_sample_weights: not defined for mode="max"')
        weights = as_device(run, per_sample_weights, shape, "per_sample_weights")
        weights = weights.reshape((length,))
    found, read = run.survey(
        flat, num_embeddings, padding if padding_idx is not None else None, starts
    )

    def check() -> None:
        _check_survey(read(), length, num_embeddings)

    return DeviceBatch(
        flat, starts, pooling, weights, padding, padding_idx is not None, lead, shape, found, check,
        True,
    )  # fmt: skip


def _check_survey(survey: Survey, length: int, num_embeddings: int) -> None:
    if survey.outside:
        raise IndexRangeError(
            f"indices: {survey.outside} of {length} are out of range; expected 0 <= index <"
            f" num_embeddings = {num_embeddings}; nothing was changed"
        )
    if survey.first or survey.beyond or survey.falls:
        raise ArgumentError(
            "offsets: expected (B+1,) int64 non-decreasing from 0 to len(indices) ="
            f" {length}, got {survey.first} to {length + survey.beyond} with"
            f" {survey.falls} steps down"
        )


def _nothing_to_check() -> None:
    """The host has looked already."""


def device_offsets(run: DeviceOps, offsets: object, length: int, with_last: bool) -> Any:
    """(B+1,) on the device; numbers that lie there are not looked at yet."""
    memory = run.memory
    if not is_on_device(offsets):
        checked = _validate.as_offsets(offsets, length, include_last_offset=with_last)
        return memory.upload(checked)
    starts = import_array(memory, offsets, np.int64, "offsets")
    if len(starts.shape) != 1:
        raise ArgumentError(f"offsets: expected shape (B+1,), got {tuple(starts.shape)}")
    if not with_last:
        bags = int(starts.shape[0])
        whole = memory.empty(bags + 1, np.int64)
        memory.copy(whole[:bags], starts)
        memory.copy(whole[bags:], memory.upload(np.array([length], np.int64)))
        starts = whole
    if starts.shape[0] == 0:
        raise ArgumentError("offsets: expected (B+1,) entries, at least one, got none")
    return starts


def as_device(
    run: DeviceOps,
    values: object,
    shape: tuple[int, ...],
    name: str,
    check_finite: bool = False,
) -> Any:
    """A float32 array of exactly this shape, on the device.

    Raises:
        ArgumentError: another dtype, shape or device; `check_finite`: NaN or infinity.
    """
    if not is_on_device(values):
        return run.memory.upload(
            _validate.as_grad(values, shape, check_finite=check_finite, name=name)
        )
    array = import_array(run.memory, values, np.float32, name, aligned=True)
    if tuple(array.shape) != shape:
        raise ArgumentError(f"{name}: expected shape {shape}, got {tuple(array.shape)}")
    if check_finite:
        _validate.as_grad(run.memory.download(array), shape, check_finite=True, name=name)
    return array
