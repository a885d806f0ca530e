"""Prefix sums and selections on a device: what storage and the operations share."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_embed.device import DeviceMemory
from sparse_embed.kernels.cuda import merge as kernels
from sparse_embed.kernels.cuda import records
from sparse_embed.kernels.cuda._shim import THREADS


def launch_tiles(memory: DeviceMemory, kernel: Any, length: int, *args: Any) -> None:
    """Start a kernel in which a block takes a tile."""
    memory.launch(kernel, kernels.num_tiles(length), THREADS, *args)


def prefix_sums(memory: DeviceMemory, values: Any, name: str = "totals") -> Any:
    """values[i] = the sum of the values before i, in place; their total, (1,) on the device, valid
    until the next of this name."""
    total = memory.work(name, 1, np.int64)
    length = int(values.shape[0])
    many = length > 4 * kernels.SCAN_THREADS
    sums = values
    if many:
        sums = memory.work("sums of tiles", kernels.num_tiles(length), np.int64)
        launch_tiles(memory, kernels.sum_tiles_cuda(), length, values, sums)
    memory.launch(kernels.scan_cuda(), 1, kernels.SCAN_THREADS, sums, total)
    if many:
        launch_tiles(memory, kernels.scan_tiles_cuda(), length, values, sums)
    return total


def select_flagged(
    memory: DeviceMemory, flags: Any, limit: int, want: int, like: bool = True
) -> Any:
    """The entries below `limit` with any flag of `want` (like=False: none of them), ascending."""
    if limit == 0:
        return memory.empty(0, np.int64)
    counts = memory.work("counts", kernels.num_tiles(limit), np.int64)
    wanted = np.uint8(want)
    kernel = kernels.count_flagged_cuda()
    launch_tiles(memory, kernel, limit, flags, limit, wanted, like, counts)
    num = memory.number(prefix_sums(memory, counts))
    found = memory.empty(num, np.int64, "a list of rows")
    if num:
        kernel = kernels.write_flagged_cuda()
        launch_tiles(memory, kernel, limit, flags, limit, wanted, like, counts, found)
    return found


def take(memory: DeviceMemory, values: Any, places: Any) -> Any:
    """values[places], int64."""
    out = memory.empty(places.shape[0], np.int64)
    take_into(memory, values, places, out)
    return out


def take_into(memory: DeviceMemory, values: Any, places: Any, out: Any) -> None:
    """out = values[places], int64."""
    memory.each(records.take_cuda(), int(places.shape[0]), values, places, out)
