"""Checked batches of many features on tables whose records lie on a GPU.

One sort for the batch of all tables; then a launch for each feature (lookup) and each table
(update).  What goes table by table instead, through the host where the batch lies on the device: a
table larger than its cache, the training of "max", `backward`, the gradient of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sparse_embed import _validate
from sparse_embed._typing import NO_PADDING, FloatArray
from sparse_embed.batch import Batch
from sparse_embed.collection_batch import KeyedBatch
from sparse_embed.collection_run import ManyExecution
from sparse_embed.cuda.arrays import DeviceArray, import_array, is_on_device
from sparse_embed.cuda.batch import as_device, device_offsets, upload_batch
from sparse_embed.cuda.execution import DeviceExecution
from sparse_embed.cuda.many import ManyOps, Numbered
from sparse_embed.cuda.ops import Coefficients
from sparse_embed.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class DeviceKeyedBatch:
    """As `KeyedBatch`, on the device, being looked through there.

    host: the batch in the host's memory, checked.  given: whether it came from the device.
    """

    owner: object
    indices: Any
    offsets: Any
    weights: Any
    batch_size: int
    given: bool
    numbered: Numbered | None
    host: Callable[[], KeyedBatch]

    def check(self) -> None:
        """Wait for what the device has found.

        Raises:
            ArgumentError, IndexRangeError: as the host's check says it.
        """
        if self.numbered is not None:
            found = self.numbered.survey()
            if found.outside or found.falls or found.first or found.beyond:
                self.host()
                raise AssertionError("the GPU refuses a batch that the host takes")


class DeviceManyExecution(ManyExecution):
    """What EmbeddingBagCollection's methods do on a GPU."""

    runs: list[DeviceExecution]  # type: ignore[assignment]

    def __init__(
        self,
        runs: Sequence[DeviceExecution],
        table_of: Sequence[int],
        modes: Sequence[str],
        paddings: Sequence[int | None],
    ) -> None:
        super().__init__(runs, table_of, modes, paddings)
        self.memory = runs[0].memory
        self.order = [f for features in self.features_of for f in features]
        ends = np.cumsum([len(features) for features in self.features_of]).tolist()
        self._spans = list(zip([0, *ends[:-1]], ends, strict=True))  # of a table in `order`

    @cached_property
    def many(self) -> ManyOps:
        """The operations."""
        return ManyOps(self.runs[0].ops, self.features, self.key_starts, self.order)

    # ---- arguments and results ------------------------------------------------------------------

    def make_batch(self, owner: object, names: Sequence[str], *arguments: Any) -> Any:
        indices, offsets, weights, with_last = arguments
        if hasattr(indices, "keys") and hasattr(indices, "values") and offsets is None:
            if _is_jagged(indices) and is_on_device(indices.values()):
                if list(indices.keys()) != list(names):
                    jagged = _jagged_on_host(self, indices)
                    return self._from_host(owner, names, (jagged, None, weights, with_last), True)
                if weights is not None:
                    raise ArgumentError("per_sample_weights: are the KeyedJaggedTensor's own")
                found = indices.weights_or_none() if hasattr(indices, "weights_or_none") else None
                arguments = indices.values(), indices.offsets(), found, True
                return self._from_device(owner, names, *arguments)
            if isinstance(indices, Mapping):
                host, given = _mapping_on_host(self, indices)
                return self._from_host(owner, names, (host, None, weights, with_last), given)
        if is_on_device(indices):
            return self._from_device(owner, names, *arguments)
        for name, value in (("offsets", offsets), ("per_sample_weights", weights)):
            if is_on_device(value):
                raise ArgumentError(f"{name}: is on a GPU, but indices are not; expected both")
        return self._from_host(owner, names, arguments, False)

    def _from_host(
        self, owner: object, names: Sequence[str], arguments: Any, given: bool
    ) -> DeviceKeyedBatch:
        batch = super().make_batch(owner, names, *arguments)
        upload, weights = self.memory.upload, batch.bags.weights
        indices, offsets = upload(batch.indices), upload(batch.bags.offsets)
        numbered = None
        if batch.batch_size:
            numbered = self.many.number(indices, offsets, batch.batch_size)
        return DeviceKeyedBatch(
            owner, indices, offsets, None if weights is None else upload(weights),
            batch.batch_size, given, numbered, lambda: batch,
        )  # fmt: skip

    def _from_device(
        self,
        owner: object,
        names: Sequence[str],
        indices: Any,
        offsets: Any,
        weights: Any,
        with_last: bool,
    ) -> DeviceKeyedBatch:
        memory, ops = self.memory, self.runs[0].ops
        array = import_array(memory, indices, np.int64, "indices")
        shape, count = tuple(map(int, array.shape)), len(names)
        flat = array.reshape((int(np.prod(shape, dtype=np.int64)),))
        if offsets is None:
            if len(shape) != 3 or shape[0] != count:
                raise ArgumentError(
                    f"indices: without offsets expected shape (F, B, N) with F = {count} features,"
                    f" got {shape}"
                )
            starts = memory.upload(np.arange(count * shape[1] + 1, dtype=np.int64) * shape[2])
        else:
            if len(shape) != 1:
                raise ArgumentError(f"indices: with offsets expected shape (L,), got {shape}")
            starts = device_offsets(ops, offsets, int(flat.shape[0]), with_last)
        num_bags, rest = divmod(int(starts.shape[0]) - 1, count)
        if rest:
            raise ArgumentError(
                f"offsets: expected (F B + 1,) entries for F = {count} features,"
                f" got {int(starts.shape[0]) - 1} bags"
            )
        if weights is not None:
            if "max" in self.modes:
                raise ArgumentError('per_sample_weights: not defined for mode="max"')
            weights = as_device(ops, weights, shape, "per_sample_weights")
            weights = weights.reshape(flat.shape)
        down, known = memory.download, list[KeyedBatch]()

        def host() -> KeyedBatch:
            if not known:
                w = None if weights is None else down(weights)
                arguments = (down(flat), down(starts), w, True)
                known.append(super(DeviceManyExecution, self).make_batch(owner, names, *arguments))
            return known[0]

        if num_bags == 0:
            host()  # which checks it
        numbered = self.many.number(flat, starts, num_bags) if num_bags else None
        return DeviceKeyedBatch(owner, flat, starts, weights, num_bags, True, numbered, host)

    def as_grads(
        self, grad: Any, batch: Any, names: Sequence[str], dims: Sequence[int], check_finite: bool
    ) -> Any:
        """The upstream gradient as a matrix of each feature, one behind the other."""
        ops, size = self.runs[0].ops, batch.batch_size
        if not isinstance(grad, Mapping):
            wide = as_device(ops, grad, (size, sum(dims)), "grad", check_finite)
            return self.many.apart(wide)
        if set(grad) != set(names):
            raise ArgumentError(f"grad: expected the features {list(names)}, got {list(grad)}")
        flat = self.memory.empty(size * sum(dims), np.float32, "the gradient of bags")
        for place, f in enumerate(self.order):
            what = f"grad[{names[f]!r}]"
            array = as_device(ops, grad[names[f]], (size, dims[f]), what, check_finite)
            self.memory.copy(self.many.matrix(flat, place, place + 1, size), array)
        return flat

    def as_result(self, array: Any, batch: Any) -> Any:
        if not batch.given:
            return array if isinstance(array, np.ndarray) else self.memory.download(array)
        if isinstance(array, np.ndarray):
            array = self.memory.upload(array)
        return DeviceArray(self.memory, array, self.memory.stream_handle)

    def split(self, bags: Any, dims: Sequence[int]) -> list[Any]:
        """A result's columns by feature; of the GPU's arrays, which have no strides, copies."""
        if not is_on_device(bags):
            return super().split(bags, dims)
        stream = bags._stream if isinstance(bags, DeviceArray) else None
        with self.memory.on_stream(stream):
            size = int(bags.shape[0])
            flat = self.many.apart(import_array(self.memory, bags, np.float32, "bags"))
            parts: dict[int, Any] = {
                f: self.many.matrix(flat, place, place + 1, size)
                for place, f in enumerate(self.order)
            }
        return [DeviceArray(self.memory, parts[f], stream) for f in range(len(parts))]

    def on_host(self, batch: Any) -> KeyedBatch:
        found: KeyedBatch = batch.host()
        return found

    def grad_of(self, grads: Any, t: int) -> FloatArray:
        size = int(grads.size) // self.many.width
        found: FloatArray = self.memory.download(self.many.matrix(grads, *self._spans[t], size))
        return found

    def part(self, batch: Any, t: int) -> Batch:
        return super().part(self.on_host(batch), t)

    # ---- reading --------------------------------------------------------------------------------

    def _is_near(self, t: int) -> bool:
        """Whether this table's rows lie at the slots of their numbers."""
        return self.runs[t].table.rows.resident.kind == "identity"

    def pooled(self, batch: Any, width: int) -> Any:
        memory, size = self.memory, batch.batch_size
        if size == 0:
            return memory.empty((0, width), np.float32)
        flat = memory.empty(size * width, np.float32, "pooled rows")
        for t, run in enumerate(self.runs):
            if self._is_near(t):
                self._pool_near(batch, t, flat)
            else:
                batch.check()
                found = run.lookup(self._upload(self.part(batch, t)))
                memory.copy(self.many.matrix(flat, *self._spans[t], size), found)
        out = self.many.side_by_side(flat, size)
        batch.check()
        return out

    def _pool_near(self, batch: DeviceKeyedBatch, t: int, flat: Any) -> None:
        run, size, mode = self.runs[t], batch.batch_size, self.modes[t]
        resident: Any = run.table.rows.resident
        padding = _validate.as_padding_idx(self.paddings[t])
        for place, f in zip(range(*self._spans[t]), self.features_of[t], strict=True):
            if not resident.complete:
                batch.check()
                begin, end = self.on_host(batch).span(f)
                resident.bring(batch.indices[begin:end], padding)
            assert batch.numbered is not None
            run.ops.lookup_bags(
                run.records(), batch.indices, batch.indices,
                batch.offsets[f * size : (f + 1) * size + 1], batch.weights, mode, padding,
                batch.numbered.found, self.many.matrix(flat, place, place + 1, size),
            )  # fmt: skip

    def _upload(self, part: Batch) -> Any:
        return upload_batch(self.runs[0].ops, part, part.indices.shape)

    # ---- changing -------------------------------------------------------------------------------

    def update(self, batch: Any, grads: Any, tables: Sequence[int] | None = None) -> None:
        batch.check()
        chosen = range(len(self.runs)) if tables is None else sorted(tables)
        near = [t for t in chosen if self._few and self._is_near(t) and self.modes[t] != "max"]
        changes = self._prepare(batch, grads, near) if batch.batch_size and near else []
        with self.step():
            for change in changes:
                change()
            for t in near:
                self.runs[t].table.step += 1
            for t in set(chosen) - set(near):
                optimizer = self.runs[t].optimizer
                assert optimizer is not None
                part = self._upload(self.part(batch, t))
                upstream = self.many.matrix(grads, *self._spans[t], batch.batch_size)
                self.runs[t].update(part, upstream, optimizer)

    def _prepare(
        self, batch: DeviceKeyedBatch, grads: Any, near: Sequence[int]
    ) -> list[Callable[[], None]]:
        """The changes of these tables; all memory that they need is had."""
        many, ops, size = self.many, self.runs[0].ops, batch.batch_size
        assert batch.numbered is not None
        merged, cuts = many.merge(batch.numbered)
        scale = None
        if any(self.modes[t] in ("mean", "sqrtn") for t in near):
            scale = many.scale(batch.indices, batch.offsets, batch.weights, size)
        changes = []
        for begin, end in self._cut_dims():  # tables whose gradients are one matrix
            first, last = self._spans[begin][0], self._spans[end - 1][1]
            grad = many.matrix(grads, first, last, size)
            shares = Coefficients(
                batch.numbered.bags, batch.weights,
                None if scale is None else scale[first * size : last * size],
            )  # fmt: skip
            if cuts[begin] == cuts[end]:
                continue
            sums = ops.long_sums(merged, cuts[begin], cuts[end], shares, grad)
            for t in range(begin, end):
                if t in near and cuts[t] < cuts[t + 1]:
                    run, table = self.runs[t], self.runs[t].table
                    resident: Any = table.rows.resident
                    slots = resident.bring(merged.all_indices[cuts[t] : cuts[t + 1]], NO_PADDING)
                    assert run.optimizer is not None
                    changes.append(ops.prepare_update(
                        run.records(), slots, merged, cuts[t], cuts[t + 1], shares, grad, None,
                        run.optimizer, table.step + 1, table.lr, sums,
                    ))  # fmt: skip
        return changes

    def _cut_dims(self) -> list[tuple[int, int]]:
        dims = [run.dim for run in self.runs]
        cuts = [t for t in range(len(dims)) if t == 0 or dims[t] != dims[t - 1]]
        return list(zip(cuts, [*cuts[1:], len(dims)], strict=True))


def _is_jagged(value: Any) -> bool:
    return not isinstance(value, Mapping) and hasattr(value, "offsets")


class _Jagged:
    """A KeyedJaggedTensor's parts in the host's memory."""

    def __init__(self, keys: list[str], arrays: Sequence[Any]) -> None:
        self._keys, self._arrays = keys, arrays

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> Any:
        return self._arrays[0]

    def offsets(self) -> Any:
        return self._arrays[1]

    def weights_or_none(self) -> Any:
        return self._arrays[2]


def _jagged_on_host(run: DeviceManyExecution, given: Any) -> _Jagged:
    weights = given.weights_or_none() if hasattr(given, "weights_or_none") else None
    parts = (("values", given.values()), ("offsets", given.offsets()), ("weights", weights))
    return _Jagged(list(given.keys()), [_on_host(run, value, name) for name, value in parts])


def _mapping_on_host(
    run: DeviceManyExecution, given: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The arrays of features in the host's memory, and whether one was on the device."""
    found: dict[str, Any] = {}
    on_device = False
    for name, value in given.items():
        parts = value if isinstance(value, tuple) else (value,)
        on_device = on_device or any(is_on_device(part) for part in parts)
        moved = tuple(_on_host(run, part, f"indices of {name!r}") for part in parts)
        found[name] = moved if isinstance(value, tuple) else moved[0]
    return found, on_device


def _on_host(run: DeviceManyExecution, value: Any, name: str) -> Any:
    if not is_on_device(value):
        return value
    dtype: Any = np.float32 if "float" in str(value.dtype) else np.int64
    return run.memory.download(import_array(run.memory, value, dtype, name))


__all__ = ["DeviceKeyedBatch", "DeviceManyExecution"]
