"""The input of a collection, in any of its forms, as one checked batch of all features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_embed import _validate, ops_many
from sparse_embed._typing import AnyArray, FloatArray, IndexArray
from sparse_embed.batch import Batch
from sparse_embed.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class KeyedBatch:
    """A checked batch of F features of B bags each; what `EmbeddingBagCollection.batch` returns.

    Feature-major: bag b of feature f is number f B + b; indices (L,), offsets (F B + 1,).
    """

    owner: object
    indices: IndexArray
    bags: ops_many.Bags

    @property
    def batch_size(self) -> int:
        """Bags of each feature, B."""
        return self.bags.num_bags

    def span(self, feature: int) -> tuple[int, int]:
        """The positions [begin, end) of a feature."""
        size, offsets = self.bags.num_bags, self.bags.offsets
        return int(offsets[feature * size]), int(offsets[(feature + 1) * size])

    def part(self, features: Sequence[int], mode: str, padding_idx: int | None) -> Batch:
        """The batch of some features of one table, one behind the other."""
        size, bags = self.bags.num_bags, self.bags
        spans = [self.span(f) for f in features]
        indices = np.concatenate([self.indices[a:b] for a, b in spans])
        lengths = np.diff(bags.offsets).reshape(-1, size) if size else np.zeros((0, 0), np.int64)
        counts = np.concatenate([[0], *(lengths[f] for f in features if size)])
        weights = None
        if bags.weights is not None:
            weights = np.concatenate([bags.weights[a:b] for a, b in spans])
        padding, has_padding = _validate.as_padding_idx(padding_idx), padding_idx is not None
        lead = (len(features) * size,)
        offsets = np.cumsum(counts, dtype=np.int64)
        return Batch(indices, offsets, mode, weights, padding, has_padding, lead)


@dataclass(frozen=True)
class _Flat:
    """Arrays as given: indices of any integer dtype (L,), offsets (F B + 1,), weights or None;
    bounds: the bags cut by ops_many.CHUNK, where the checks did it in passing."""

    indices: object
    offsets: IndexArray
    weights: object
    num_bags: int
    bounds: IndexArray | None = None


def make_keyed_batch(
    owner: object,
    names: Sequence[str],
    features: ops_many.Features,
    paddings: Sequence[int | None],
    modes: Sequence[str],
    indices: object,
    offsets: object,
    per_sample_weights: object,
    include_last_offset: bool,
) -> KeyedBatch:
    """Check a call's arguments; forms as EmbeddingBagCollection says.

    Raises:
        ArgumentError, IndexRangeError: a feature and the argument are named; nothing has changed.
    """

    def check(f: int, array: AnyArray) -> IndexArray:
        name = f"indices of {names[f]!r}"
        return _validate.as_indices(array, int(features.rows[f]), paddings[f], name=name)

    if offsets is None and hasattr(indices, "offsets") and hasattr(indices, "keys"):
        flat = _from_jagged(names, indices, per_sample_weights, check)
    elif isinstance(indices, Mapping):
        if offsets is not None or per_sample_weights is not None:
            raise ArgumentError("offsets, per_sample_weights: belong into the mapping of features")
        flat = _from_mapping(names, indices, include_last_offset, check)
    elif offsets is None:
        flat = _from_padded(names, indices, per_sample_weights)
    else:
        flat = _from_arrays(names, indices, offsets, per_sample_weights, include_last_offset)
    array = _validate._as_integers("indices", flat.indices)
    if array.ndim != 1:
        raise ArgumentError(f"indices: with offsets expected shape (L,), got {array.shape}")
    weights = None
    if flat.weights is not None:
        if "max" in modes:
            raise ArgumentError('per_sample_weights: not defined for mode="max"')
        weights = _validate.as_grad(flat.weights, array.shape, name="per_sample_weights")
    scaled = any(mode in ("mean", "sqrtn") for mode in modes)
    bags = None
    checked = _validate._plain(array, np.int64) if array.dtype != np.uint64 else None
    if flat.num_bags == 0:
        none = np.empty(0, np.int64)
        scale = np.empty(0, np.float32) if scaled else None
        nothing = ops_many.Bags(0, flat.offsets, none, weights, none, none, scale)
        return KeyedBatch(owner, none, nothing)
    where = flat.offsets, flat.bounds, weights, flat.num_bags, scaled
    if checked is not None:
        bags = ops_many.number_bags(features, checked, *where)
    if bags is None:  # out of range, or uint64: feature by feature, which names what is wrong
        checked = np.empty(len(array), np.int64)
        for f in range(len(names)):
            begin = int(flat.offsets[f * flat.num_bags])
            end = int(flat.offsets[(f + 1) * flat.num_bags])
            checked[begin:end] = check(f, array[begin:end])
        bags = ops_many.number_bags(features, checked, *where)
        assert bags is not None
    assert checked is not None
    return KeyedBatch(owner, checked, bags)


def _from_arrays(
    names: Sequence[str],
    indices: object,
    offsets: object,
    weights: object,
    include_last_offset: bool,
) -> _Flat:
    array = _validate._as_integers("indices", indices)
    if array.ndim != 1:
        raise ArgumentError(f"indices: with offsets expected shape (L,), got {array.shape}")
    starts, bounds = _validate.as_bags(
        offsets, len(array), ops_many.CHUNK, include_last_offset=include_last_offset
    )
    num_bags, rest = divmod(len(starts) - 1, len(names))
    if rest:
        raise ArgumentError(
            f"offsets: expected (F B + 1,) entries for F = {len(names)} features,"
            f" got {len(starts) - 1} bags"
        )
    return _Flat(array, starts, weights, num_bags, bounds)


def _from_padded(names: Sequence[str], indices: object, weights: object) -> _Flat:
    array = _validate._as_integers("indices", indices)
    if array.ndim != 3 or array.shape[0] != len(names):
        raise ArgumentError(
            f"indices: without offsets expected shape (F, B, N) with F = {len(names)} features,"
            f" got {array.shape}"
        )
    if weights is not None:
        weights = _validate.as_grad(weights, array.shape, name="per_sample_weights").reshape(-1)
    _, num_bags, width = array.shape
    starts = np.arange(len(names) * num_bags + 1, dtype=np.int64) * width
    return _Flat(array.reshape(-1), starts, weights, num_bags)


def _from_jagged(
    names: Sequence[str],
    given: Any,
    weights: object,
    check: Callable[[int, AnyArray], IndexArray],
) -> _Flat:
    """A KeyedJaggedTensor, by what it can do; of its keys those that are features here."""
    if weights is not None:
        raise ArgumentError("per_sample_weights: are the KeyedJaggedTensor's own")
    keys = list(given.keys())
    missing = [name for name in names if name not in keys]
    if missing:
        raise ArgumentError(f"indices: expected the features {list(names)}, without {missing}")
    values = _validate._as_integers("indices", _array(given.values()))
    starts = _validate.as_offsets(_array(given.offsets()), len(values))
    num_bags, rest = divmod(len(starts) - 1, len(keys))
    if rest:
        raise ArgumentError(
            f"offsets: expected a multiple of {len(keys)} bags, one for each key, got"
            f" {len(starts) - 1}"
        )
    found = given.weights_or_none() if hasattr(given, "weights_or_none") else None
    found = None if found is None else _array(found)
    if keys == list(names):
        return _Flat(values, starts, found, num_bags)
    parts: dict[str, object] = {}
    for name in names:
        k = keys.index(name)
        bounds = starts[k * num_bags : (k + 1) * num_bags + 1]
        begin, end = int(bounds[0]), int(bounds[-1])
        piece = (values[begin:end], bounds - begin)
        parts[name] = piece if found is None else (*piece, found[begin:end])
    return _from_mapping(names, parts, True, check)


def _array(tensor: Any) -> AnyArray:
    """A torch tensor, which may have a gradient to it, or an array."""
    return np.asarray(tensor.detach() if hasattr(tensor, "detach") else tensor)


def _from_mapping(
    names: Sequence[str],
    given: Mapping[str, object],
    include_last_offset: bool,
    check: Callable[[int, AnyArray], IndexArray],
) -> _Flat:
    if set(given) != set(names):
        raise ArgumentError(f"indices: expected the features {list(names)}, got {list(given)}")
    values: list[AnyArray] = []
    bounds: list[IndexArray] = [np.zeros(1, np.int64)]
    weights: list[FloatArray | None] = []
    at = 0
    for name in names:
        one = _one_feature(name, given[name], include_last_offset)
        if len(one.offsets) != len(bounds[-1]) and len(bounds) > 1:
            raise ArgumentError(
                f"indices of {name!r}: expected {len(bounds[-1])} bags as the features before,"
                f" got {len(one.offsets)}"
            )
        array = np.asarray(one.indices)
        if array.dtype == np.uint64:  # beside int64 it would become float64
            array = check(len(values), array)
        values.append(array)
        bounds.append(one.offsets + at)
        weights.append(None if one.weights is None else np.asarray(one.weights))
        at += len(values[-1])
    every = None
    if any(w is not None for w in weights):
        ones = [
            np.ones(len(v), np.float32) if w is None else w
            for v, w in zip(values, weights, strict=True)
        ]
        every = np.concatenate(ones)
    return _Flat(np.concatenate(values), np.concatenate(bounds), every, len(bounds[1]))


def _one_feature(name: str, given: object, include_last_offset: bool) -> _Flat:
    """(indices, offsets[, weights]) or an array (B, N); the offsets are ends of bags."""
    what = f"indices of {name!r}"
    if not isinstance(given, tuple):
        array = _validate._as_integers(what, given)
        if array.ndim != 2:
            raise ArgumentError(
                f"{what}: expected (indices, offsets), (indices, offsets, weights) or an array"
                f" (B, N), got shape {array.shape}"
            )
        ends = np.arange(1, array.shape[0] + 1, dtype=np.int64) * array.shape[1]
        return _Flat(array.reshape(-1), ends, None, array.shape[0])
    if len(given) not in (2, 3):
        raise ArgumentError(f"{what}: expected two or three arrays, got {len(given)}")
    array = _validate._as_integers(what, given[0])
    if array.ndim != 1:
        raise ArgumentError(f"{what}: with offsets expected shape (L,), got {array.shape}")
    try:
        starts = _validate.as_offsets(given[1], len(array), include_last_offset=include_last_offset)
    except ArgumentError as error:
        raise ArgumentError(f"{name!r}: {error}") from None
    weights = given[2] if len(given) == 3 else None
    if weights is not None:
        weights = _validate.as_grad(weights, array.shape, name=f"per_sample_weights of {name!r}")
    return _Flat(array, starts[1:], weights, len(starts) - 1)
