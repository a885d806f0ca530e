"""Records on their way between the device and the host: pinned staging, two pieces at a time.

While one piece travels and is put in its place, the host fills the other.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.device import DeviceMemory
from sparse_embed.kernels.cuda import records as kernels
from sparse_embed.kernels.cuda.streams import Mark

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]

PIECE = 4 << 20  # bytes on their way at a time
_BLOCK = 16  # pieces that one kernel gathers


class Staging:
    """Two pinned buffers of a GPU, used in turn by who holds the lock."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.lock = threading.RLock()
        self._memory = memory
        self._buffers: list[Any] = [None, None]
        self._free = [Mark(), Mark()]
        self._turn = 0

    def take(self, nbytes: int) -> tuple[NDArray[np.uint8], Mark]:
        """A buffer that no copy reads any more; record the mark after the last copy from it."""
        self._turn ^= 1
        free = self._free[self._turn]
        with self._memory.active():
            free.synchronize()
            buffer = self._buffers[self._turn]
            if buffer is None or buffer.size < nbytes:
                buffer = self._memory.pinned(max(nbytes, PIECE))
                self._buffers[self._turn] = buffer
        view: NDArray[np.uint8] = buffer[:nbytes]
        return view, free


@functools.cache
def staging_of(memory: DeviceMemory) -> Staging:
    """One for all tables of a GPU."""
    return Staging(memory)


@functools.cache
def stream_beside(memory: DeviceMemory) -> int:
    """One for all tables of a GPU: they share the buffers that are used there."""
    return memory.new_stream()


class Beside:
    """The stream beside the one in use, for what a table's next batch needs."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._done = Mark()

    def join(self) -> None:
        """What the stream in use is asked next comes after all that was done beside it."""
        self._memory.hold(self._done)

    @contextmanager
    def work(self, *after: Mark) -> Iterator[None]:
        """Work on the stream beside inside, after these marks."""
        with self._memory.aside(stream_beside(self._memory)):
            for mark in after:
                self._memory.hold(mark)
            try:
                yield
            finally:
                self._memory.record(self._done)


class DeviceRecords:
    """Records in slots on the device, and how they come and go."""

    def __init__(self, memory: DeviceMemory, slots: int, lanes: int, what: str) -> None:
        self.memory = memory
        self._lanes = lanes
        self._step = max(1, PIECE // (4 * lanes))
        self._staging = staging_of(memory)
        self.array = memory.zeros((slots, lanes), np.float32, what)

    def _buffer(self, rows: int) -> Any:
        flat = self.memory.work("records", rows * self._lanes, np.float32)
        return flat.reshape((rows, self._lanes))

    def gather(self, slots: Int64, out: Floats) -> None:
        """out[i] = the record in slots[i]"""

        def write(begin: int, end: int, data: Floats) -> None:
            out[begin:end] = data

        self.send(slots, write)

    def send(self, slots: Int64, write: Callable[[int, int, Floats], None]) -> None:
        """write(begin, end, data) is given the records in slots[begin:end], a piece at a time."""
        with self._staging.lock:
            self._send(slots, write)

    def _send(self, slots: Int64, write: Callable[[int, int, Floats], None]) -> None:
        memory = self.memory
        for first in range(0, len(slots), _BLOCK * self._step):
            part = slots[first : first + _BLOCK * self._step]
            data = self._buffer(part.size)
            places = self.places(part)
            memory.each(kernels.gather_records_cuda(), data.size, self.array, places, data)
            for begin in range(0, part.size, self._step):
                end = min(begin + self._step, part.size)
                staged, _ = self._staging.take((end - begin) * self._lanes * 4)
                host = staged.view(np.float32).reshape(end - begin, self._lanes)
                memory.download(data[begin:end], host)
                write(first + begin, first + end, host)

    def scatter(self, slots: Int64, data: Floats) -> None:
        """The record in slots[i] = data[i]"""

        def read(begin: int, end: int, out: Floats) -> None:
            out[...] = data[begin:end]

        self.bring(self.memory.upload(slots), read)

    def bring(self, slots: Any, read: Callable[[int, int, Floats], None]) -> None:
        """The record in slots[i], which are on the device, = what read(begin, end, out) gives.

        The next piece is read while one is on its way; the last may be, on return.
        """
        with self._staging.lock:
            self._bring(slots, read)

    def _bring(self, slots: Any, read: Callable[[int, int, Floats], None]) -> None:
        memory, length = self.memory, int(slots.shape[0])
        for begin in range(0, length, self._step):
            end = min(begin + self._step, length)
            staged, free = self._staging.take((end - begin) * self._lanes * 4)
            host = staged.view(np.float32).reshape(end - begin, self._lanes)
            read(begin, end, host)
            target = self._buffer(end - begin)
            memory.fill(target, host)
            memory.record(free)
            memory.each(
                kernels.scatter_records_cuda(), target.size, self.array, slots[begin:end], target
            )

    def places(self, slots: Int64) -> Any:
        """Slots of the host on the device, until the next call."""
        return self.memory.put("places of records", slots)
