"""A GPU through CUDA's driver: arrays, copies, launches.  Numba compiles, and is not asked again.

Numba's device arrays and launches cost the host some 50 µs each, several times what a small batch
costs the card.  Here an array is an address and a shape, memory comes from a pool that is kept, and
a launch packs its arguments into one buffer by a format that is made once.

Memory is recycled in the order of the stream it was asked for on, as by torch and CuPy: what other
streams do with a result has to be done, or waited for, before the last reference to it goes.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
from numba import cuda

from sparse_embed.kernels.cuda._calls import CudaCallError, driver, handle_from
from sparse_embed.kernels.cuda._launch import Array, Launcher
from sparse_embed.kernels.cuda._ring import LARGEST, Ring

_POOLED = 1 << 28  # bytes of an array that is still recycled
_IDLE = 1 << 30  # bytes that wait to be used again, at most
_SLOTS = 1024
_NO_TIMING, _NON_BLOCKING = 2, 1
_OUT_OF_MEMORY = 2
_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_PREPARING = threading.Lock()


class _Block:
    """Memory that goes back to its pool with the last array in it."""

    __slots__ = ("address", "home", "nbytes", "pool")

    def __init__(self, pool: Pool, address: int, nbytes: int, home: Any) -> None:
        self.pool, self.address, self.nbytes, self.home = pool, address, nbytes, home

    def __del__(self) -> None:
        self.pool.give(self)


class Pool:
    """Device memory that is kept and given out again, by size and stream."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._free: dict[tuple[int, int], list[int]] = {}
        self._idle, self._most = 0, _IDLE

    def take(self, nbytes: int, stream: int) -> _Block:
        """Memory of at least so many bytes, beginning at 256."""
        if nbytes > _POOLED:
            return _Block(self, self._allocate(nbytes), nbytes, None)
        step = 1 << max(9, (nbytes - 1).bit_length() - 4)
        nbytes = -(-max(nbytes, 1) // step) * step
        try:
            address = self._free[nbytes, stream].pop()
        except (KeyError, IndexError):
            return _Block(self, self._allocate(nbytes), nbytes, stream)
        self._idle -= nbytes
        return _Block(self, address, nbytes, stream)

    def _allocate(self, nbytes: int) -> int:
        try:
            return handle_from(driver().cuMemAlloc_v2, nbytes)
        except CudaCallError as error:
            if error.code != _OUT_OF_MEMORY or not any(self._free.values()):
                raise
            self.trim()
            return handle_from(driver().cuMemAlloc_v2, nbytes)

    def give(self, block: _Block) -> None:
        """Take a block back."""
        if block.home is not None and self._idle + block.nbytes <= self._most:
            self._idle += block.nbytes
            self._free.setdefault((block.nbytes, block.home), []).append(block.address)
        else:
            self._release(block.address)

    def _release(self, address: int) -> None:
        try:
            with self._card:
                driver().cuMemFree_v2(address)  # waits for what is still at work
        except Exception:  # the process or the context ends, and the memory with it
            return

    def trim(self) -> None:
        """Give back what waits."""
        waiting, self._free, self._idle = self._free, {}, 0
        for addresses in waiting.values():
            for address in addresses:
                self._release(address)


class Card:
    """One GPU.  Every call takes the handle of the stream it is made on; 0 is the default one."""

    def __init__(self, index: int) -> None:
        self.index = index
        with cuda.gpus[index]:
            self._context = handle_from(driver().cuCtxGetCurrent)
        self._pushed = threading.local()
        self._pool = Pool(self)
        self._events: list[int] = []
        self._slots: list[Any] = []
        self._ring = Ring(self.pinned)

    # ---- the context ----------------------------------------------------------------------------

    def __enter__(self) -> None:
        """Work on this GPU inside; the thread's own comes back afterwards."""
        other = handle_from(driver().cuCtxGetCurrent) != self._context
        if other:
            driver().cuCtxPushCurrent_v2(self._context)
        try:
            self._pushed.stack.append(other)
        except AttributeError:
            self._pushed.stack = [other]

    def __exit__(self, *_: object) -> None:
        if self._pushed.stack.pop():
            handle_from(driver().cuCtxPopCurrent_v2)

    # ---- memory ---------------------------------------------------------------------------------

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        driver().cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def empty(self, shape: tuple[int, ...] | int, dtype: Any, stream: int) -> Array:
        """An array, its contents rubbish."""
        axes = (shape,) if isinstance(shape, int) else tuple(map(int, shape))
        dtype = np.dtype(dtype)
        nbytes = dtype.itemsize
        for n in axes:
            nbytes *= n
        block = self._pool.take(nbytes, stream)
        return Array(block.address, axes, dtype, block)

    def forget(self) -> None:
        """Give back memory that waits to be used again."""
        self._pool.trim()

    def zero(self, array: Array, stream: int) -> None:
        """All bytes become zero."""
        if array.size:
            driver().cuMemsetD8Async(array.address, 0, array.nbytes, stream)

    def pinned(self, nbytes: int) -> Any:
        """Host memory that copies go to and from at full speed; kept until the process ends."""
        address = handle_from(driver().cuMemAllocHost_v2, nbytes)
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)

    # ---- copies ---------------------------------------------------------------------------------

    def copy(self, target: Array, source: Array, stream: int) -> None:
        """Between arrays of the card."""
        driver().cuMemcpyDtoDAsync_v2(target.address, source.address, source.nbytes, stream)

    def to_device(self, target: Array, host: Any, stream: int) -> None:
        """`host` is C-contiguous, and stays as it is until the stream has come here."""
        driver().cuMemcpyHtoDAsync_v2(target.address, host.ctypes.data, host.nbytes, stream)

    def upload(self, target: Array, host: Any, stream: int) -> None:
        """As `to_device`; `host` may change at once."""
        if host.nbytes <= LARGEST:
            self._ring.send(target.address, host, stream)
        else:
            self.to_device(target, host, stream)
            self.synchronize(stream)

    def to_host(self, host: Any, source: Array, stream: int) -> None:
        """`host` is C-contiguous; complete once the stream has been synchronised."""
        driver().cuMemcpyDtoHAsync_v2(host.ctypes.data, source.address, source.nbytes, stream)

    def read_later(self, source: Array, stream: int) -> Any:
        """A function that waits for a few numbers (at most 64 bytes) and returns them as array."""
        try:
            slot = self._slots.pop()
        except IndexError:
            more = list(self.pinned(_SLOTS * 64).reshape(_SLOTS, 64))
            slot = more.pop()
            self._slots += more
        event = self._take_event()
        found = slot[: source.nbytes].view(source.dtype)
        self.to_host(found, source, stream)
        driver().cuEventRecord(event, stream)
        values: list[Any] = []

        def wait() -> Any:
            if not values:
                driver().cuEventSynchronize(event)
                values.append(found.copy())
                self._slots.append(slot)
                self._events.append(event)
            return values[0]

        return wait

    # ---- streams --------------------------------------------------------------------------------

    def _take_event(self) -> int:
        try:  # not asked first: another thread may take the last one meanwhile
            return self._events.pop()
        except IndexError:
            return handle_from(driver().cuEventCreate, _NO_TIMING)

    def new_stream(self) -> int:
        """A stream that does not wait for the default one."""
        return handle_from(driver().cuStreamCreate, _NON_BLOCKING)

    def after(self, stream: int, other: int) -> None:
        """What is asked of `stream` next comes after all that `other` has been asked."""
        if stream == other:
            return
        event = self._take_event()
        driver().cuEventRecord(event, other)
        driver().cuStreamWaitEvent(stream, event, 0)
        self._events.append(event)  # recorded again, it is another event to those who wait

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        driver().cuStreamSynchronize(stream)

    # ---- other people's arrays ------------------------------------------------------------------

    def adopt(self, value: Any, interface: Any, stream: int) -> Array:
        """An array with this interface, to be read after what its stream has yet to do."""
        if isinstance(value, Array):
            return value
        theirs = interface.get("stream")
        if theirs is not None:
            self.after(stream, 0 if theirs == 1 else int(theirs))
        shape = tuple(int(n) for n in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        return Array(int(interface["data"][0] or 0), shape, dtype, value)

    def address(self, array: Array) -> int:
        """Where an array begins."""
        return array.address

    def device_of(self, address: int) -> int:
        """The number of the GPU whose memory is at an address."""
        found = ctypes.c_int()
        driver().cuPointerGetAttribute(ctypes.addressof(found), _ORDINAL, address)
        return found.value

    # ---- launches -------------------------------------------------------------------------------

    def launch(self, kernel: Any, blocks: int, threads: int, stream: int, args: Any) -> None:
        """Start a kernel of `_shim.cuda_kernel`."""
        kinds: list[Any] = [self.index]
        words: list[Any] = []
        for value in args:
            kind = value.__class__
            if kind is Array:
                kinds.append(value.kind)
                words += value.words
            elif kind is tuple:
                kinds.append((len(value), value[0].__class__))
                words += value
            else:
                kinds.append(kind)
                words.append(value)
        key = tuple(kinds)
        ready = kernel.launchers.get(key) or self._prepare(kernel, key, args)
        ready.start(blocks, threads, stream, words)

    def _prepare(self, kernel: Any, key: Any, args: Any) -> Launcher:
        """The kernel for these arguments; threads that want the same one wait for each other, for
        Numba fails where two load a module at once."""
        with _PREPARING:
            ready = kernel.launchers.get(key)
            if ready is None:
                with cuda.gpus[self.index]:
                    ready = kernel.launchers[key] = Launcher(kernel, args)
            found: Launcher = ready
            return found
