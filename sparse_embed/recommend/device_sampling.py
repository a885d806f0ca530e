"""The sampler on a GPU: draws of `sampling.Sampler`, bit for bit, into arrays that stay there."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_embed.cuda.arrays import DeviceArray, import_array
from sparse_embed.device import DeviceMemory
from sparse_embed.kernels.cuda import pairs, sampling
from sparse_embed.kernels.cuda.records import take_cuda
from sparse_embed.recommend.sampling import Sampler


class DeviceSampler:
    """A sampler's tables on the GPU, and what is drawn with them: raw arrays of the device."""

    def __init__(self, sampler: Sampler, memory: DeviceMemory) -> None:
        self._host = sampler
        self._memory = memory
        data = sampler.interactions
        self._rows, self._columns, self._indptr, self._catalogue, self._alias, self._bits = (
            memory.upload(array, "the interactions")
            for array in (
                data.rows, data.columns, data.indptr, data.catalogue, sampler.alias, sampler.bits,
            )
        )  # fmt: skip

    def pairs(self, epoch: int, start: int, stop: int) -> tuple[Any, Any]:
        """users and columns (B,) int64; `Sampler.pairs` without the items."""
        memory, host = self._memory, self._host
        users, columns = (memory.empty(stop - start, np.int64) for _ in range(2))
        memory.each(
            pairs.sample_pairs_cuda(), stop - start, host.key(epoch), np.uint64(start),
            host.half_bits, self._rows, self._columns, users, columns,
        )  # fmt: skip
        return users, columns

    def shared(self, epoch: int, start: int, stop: int, number: int) -> Any:
        """(blocks, number) int64; as `Sampler.shared`."""
        blocks = -(-(stop - start) // self._host.block)
        columns = self._memory.empty((blocks, number), np.int64)
        begin = np.uint64(start // self._host.block * number)
        self._memory.each(
            sampling.sample_shared_cuda(), blocks * number, self._host.key(epoch), begin,
            self._alias, columns.reshape((blocks * number,)),
        )  # fmt: skip
        return columns

    def repeated(self, columns: Any, number: int) -> Any:
        """(blocks, number) int64: the columns, from the start again until blocks are full."""
        blocks = -(-int(columns.shape[0]) // number)
        out = self._memory.empty((blocks, number), np.int64)
        flat = out.reshape((blocks * number,))
        self._memory.each(pairs.repeat_cuda(), blocks * number, columns, flat)
        return out

    def marks(self, users: Any, columns: Any) -> Any:
        """(B, M) uint8; as `Sampler.marks`."""
        shape = int(users.shape[0]), int(columns.shape[1])
        marks = self._memory.empty(shape, np.uint8)
        self._memory.each(
            pairs.mark_taken_cuda(), shape[0] * shape[1], self._host.block, users, columns,
            self._indptr, self._columns, self._bits, marks,
        )  # fmt: skip
        return marks

    def items_of(self, columns: Any, out: Any) -> None:
        """out = the item numbers of these positions in the catalogue."""
        length = int(columns.shape[0])
        self._memory.each(take_cuda(), length, self._catalogue, columns, out)


def raw(memory: DeviceMemory, array: DeviceArray) -> Any:
    """A float32 result of a table, as kernels take it."""
    return import_array(memory, array, np.float32, "rows")


__all__ = ["DeviceSampler", "raw"]
