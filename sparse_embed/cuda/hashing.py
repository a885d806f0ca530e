"""Raw keys that lie on a GPU to row numbers there: what `KeyHasher` does with the host's."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_embed.cuda.arrays import DeviceArray, import_array, is_on_device
from sparse_embed.cuda.execution import ops_of
from sparse_embed.device import device_memory
from sparse_embed.errors import ArgumentError
from sparse_embed.kernels.cuda import hashing as kernels
from sparse_embed.kernels.hashing import FMIX64, MURMUR3
from sparse_embed.keys.hasher import KeyHasher

_CODES = {"murmur3": MURMUR3, "fmix64": FMIX64}


def hash_keys(
    hasher: KeyHasher,
    keys: Any,
    offsets: Any = None,
    *,
    device: int = 0,
    stream: int | None = None,
) -> DeviceArray:
    """Row numbers of keys, where they are.

    Args:
        hasher: of scheme "murmur3", or "fmix64" for ids.
        keys: (...) int64 or uint64 ids of a GPU ("fmix64": uint64); with `offsets` the bytes (n,)
            uint8 of strings.
        offsets: (L+1,) int64 of the same GPU: string i is keys[offsets[i]:offsets[i+1]], as in
            Arrow's large_string.
        device: the GPU's number.
        stream: a CUDA stream's handle.

    Returns:
        (...) or (L,) int64, with one more axis when the hasher has several hashes: equal to what
        `hasher` gives for the same keys on the host.

    Raises:
        ArgumentError: another scheme, dtype, shape or device; offsets beyond the bytes.
    """
    code = _CODES.get(hasher.scheme)
    if code is None or (code == FMIX64 and offsets is not None):
        raise ArgumentError(
            f'hasher: expected scheme "murmur3", or "fmix64" for ids, got {hasher.scheme!r}'
        )
    if not is_on_device(keys):
        raise ArgumentError(f"keys: expected an array of a GPU, got {type(keys).__name__}")
    memory = device_memory(device)
    with memory.on_stream(stream):
        states = memory.upload(np.full((1, 2), hasher.seed, np.uint64))
        rows = np.uint64(hasher.num_embeddings)
        if offsets is None:
            ids, shape = _ids(memory, keys, signed=code == MURMUR3)
            out = memory.empty((int(ids.shape[0]), hasher.num_hashes), np.int64, "row numbers")
            kernel = kernels.hash_ids_cuda(code)
            memory.each(kernel, int(ids.shape[0]), ids, states, rows, out)
        else:
            data = import_array(memory, keys, np.uint8, "keys")
            starts = import_array(memory, offsets, np.int64, "offsets")
            _check_offsets(memory, data, starts)
            shape = (int(starts.shape[0]) - 1,)
            out = memory.empty((shape[0], hasher.num_hashes), np.int64, "row numbers")
            memory.each(kernels.hash_strings_cuda(), shape[0], data, starts, states, rows, out)
        if hasher.num_hashes > 1:
            shape = (*shape, hasher.num_hashes)
        return DeviceArray(memory, out.reshape(shape), stream)


def _ids(memory: Any, keys: Any, signed: bool) -> tuple[Any, tuple[int, ...]]:
    for dtype in (np.int64, np.uint64) if signed else (np.uint64,):
        try:
            array = import_array(memory, keys, dtype, "keys")
        except ArgumentError as error:
            if "dtype" not in str(error):
                raise
            continue
        shape = tuple(int(n) for n in array.shape)
        flat = array.reshape((int(np.prod(shape, dtype=np.int64)),))
        return (flat.view(np.uint64) if dtype is np.int64 else flat), shape
    wanted = "int64 or uint64" if signed else "uint64"
    raise ArgumentError(f"keys: expected dtype {wanted}, or bytes (uint8) with offsets")


def _check_offsets(memory: Any, data: Any, starts: Any) -> None:
    if len(starts.shape) != 1 or starts.shape[0] == 0 or len(data.shape) != 1:
        raise ArgumentError("offsets: expected (L+1,) entries into keys (n,)")
    nothing = memory.empty(0, np.int64)
    found = ops_of(memory).survey(nothing, 1, None, starts)[1]()
    if found.falls or found.first < 0 or found.beyond > data.shape[0]:
        raise ArgumentError(
            f"offsets: expected non-decreasing from 0 to at most len(keys) = {data.shape[0]}, got"
            f" {found.first} to {found.beyond} with {found.falls} steps down"
        )
