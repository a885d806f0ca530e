"""Devices: which one a table is on, its memory, its streams, and what may go wrong with it.

`DeviceMemory` is what storage and the CUDA operations see of a GPU: plain allocations, copies
through pinned staging, launches, all on the stream that the thread has chosen.  Without the extra
"cuda", or without a driver, asking for a GPU fails with one line that says what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sparse_embed._typing import AnyArray
from sparse_embed.device_order import Order
from sparse_embed.errors import (
    ArgumentError,
    DeviceError,
    DeviceMemoryError,
    MissingExtraError,
)

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_LEGACY = 1  # CU_STREAM_LEGACY: the default stream by name
_SHARE = 0.8  # of the free device memory, for tables without cache_bytes


def parse_device(device: object) -> int | None:
    """The number of a GPU, or None for "cpu".

    Raises:
        ArgumentError: neither "cpu" nor "cuda" nor "cuda:N".
    """
    if device == "cpu":
        return None
    if isinstance(device, str):
        kind, colon, number = device.partition(":")
        if kind == "cuda" and (not colon or (number.isascii() and number.isdigit())):
            return int(number) if colon else 0
    raise ArgumentError(f'device: expected "cpu", "cuda" or "cuda:N", got {device!r}')


def cuda_status() -> dict[str, Any]:
    """What there is of CUDA: package, driver, toolkit, devices, simulator, and why not if not."""
    from importlib.metadata import PackageNotFoundError, version

    status: dict[str, Any] = {"simulator": False, "devices": []}
    try:
        status["numba-cuda"] = version("numba-cuda")
    except PackageNotFoundError:
        status["numba-cuda"] = 'not installed: pip install "sparse-embed[cuda]"'
    try:
        from sparse_embed.kernels.cuda import _shim
    except Exception as error:  # a broken installation must not break the report about it
        return status | {"problem": f"{type(error).__name__}: {error}"}
    status["simulator"] = _shim.SIMULATED
    if _shim.SIMULATED:
        return status | {"devices": ["simulator"]}
    return status | _shim.driver_facts()


def check_cuda(index: int) -> None:
    """There is such a GPU, and it can be used.

    Raises:
        MissingExtraError: the package or the driver is missing.
        ArgumentError: there are fewer GPUs.
    """
    try:
        from sparse_embed.kernels.cuda import _shim
    except Exception as error:
        raise MissingExtraError(
            'device: "cuda" needs numba-cuda, which cannot be imported here'
            f' ({type(error).__name__}: {error}): pip install "sparse-embed[cuda]"'
        ) from None
    if not _shim.HAS_PACKAGE:
        raise MissingExtraError('device: "cuda" needs: pip install "sparse-embed[cuda]"')
    if _shim.SIMULATED:
        count = 1
    else:
        facts = _shim.driver_facts()
        if "problem" in facts:
            raise MissingExtraError(
                f'device: "cuda" needs an NVIDIA driver and GPU ({facts["problem"]}); '
                "`sparse-embed doctor` says what is there"
            )
        count = len(facts["devices"])
    if index >= count:
        raise ArgumentError(f'device: expected "cuda:0" to "cuda:{count - 1}", got "cuda:{index}"')


@functools.cache
def device_memory(index: int) -> DeviceMemory:
    """The one DeviceMemory of a GPU of this process."""
    check_cuda(index)
    return DeviceMemory(index)


class DeviceMemory:
    """A GPU: allocations, copies and launches, all on the stream in use.

    Arrays of it are `kernels.cuda._driver`'s (the simulator has Numba's) and stay inside the
    package.
    """

    def __init__(self, index: int) -> None:
        from sparse_embed.kernels.cuda import _shim

        self.index = index
        self.name = f"cuda:{index}"
        self._shim = _shim
        self._card: Any = _shim.open_card(index)
        self._chosen = _Chosen()
        self._order = Order(self._card)

    # ---- streams and errors ---------------------------------------------------------------------

    def active(self) -> _Active | _Inside:
        """Work on this GPU inside; within another such block that one explains errors.

        Raises:
            DeviceMemoryError: an allocation failed; nothing was changed by it.
            DeviceError: anything else that CUDA reports: the context is lost.
        """
        return _INSIDE if self._chosen.depth else _Active(self)

    def explained(self, error: BaseException) -> BaseException:
        """What an error of CUDA's is called here; others stay what they are."""
        kind = type(error).__name__
        if not (kind.startswith(("Cuda", "CUDA")) or kind in ("LinkerError", "NvvmError")):
            return error
        if int(getattr(error, "code", 0) or 0) == _OUT_OF_MEMORY:
            return DeviceMemoryError(f"{self.name}: out of memory ({error})")
        return DeviceError(f"{self.name}: {error}")

    @property
    def stream(self) -> int:
        """The handle of the stream in use by this thread; 0 is the default one."""
        return self._chosen.stream

    @property
    def stream_handle(self) -> int | None:
        """As `stream`; None: the default one."""
        return self.stream or None

    def on_stream(self, handle: int | None) -> _Active:
        """Work on this GPU inside, launch and copy on this stream: a handle as torch's
        `cuda_stream` or CuPy's `ptr`; None: the default one.  It comes after what was done before,
        whatever the stream."""
        if self.simulated:
            return _Active(self)
        return _Active(self, 0 if handle is None or handle == _LEGACY else handle)

    def new_stream(self) -> int:
        """A stream for copies beside the work; it lives as long as the process."""
        with self.active():
            return int(self._card.new_stream())

    def after(self, other: int) -> None:
        """What the stream in use is asked next comes after all that `other` has been asked."""
        if other != self.stream:
            with self.active():
                self._card.after(self.stream, other)

    @contextlib.contextmanager
    def aside(self, stream: int) -> Iterator[None]:
        """Launch and copy on this stream of ours inside, with kept buffers of its own."""
        before = self.stream
        self._chosen.stream, self._chosen.aside = stream, "aside: "
        try:
            yield
        finally:
            self._chosen.stream, self._chosen.aside = before, ""

    def record(self, mark: Any) -> None:
        """Put a `kernels.cuda.streams.Mark` into the stream in use."""
        with self.active():
            mark.record(self.stream)

    def hold(self, mark: Any) -> None:
        """What the stream in use is asked next comes after the mark."""
        with self.active():
            mark.hold(self.stream)

    def synchronize(self) -> None:
        """Wait for the stream in use."""
        with self.active():
            self._card.synchronize(self.stream)

    # ---- memory ---------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        with self.active():
            free, total = self._card.memory_info()
            return int(free), int(total)

    def default_cache_bytes(self) -> int:
        """For a table without `cache_bytes`."""
        return int(self.memory()[0] * _SHARE)

    def empty(self, shape: tuple[int, ...] | int, dtype: Any, what: str = "a batch") -> Any:
        """An array of the device, its contents rubbish.

        Raises:
            DeviceMemoryError: names what it was for, its size and what is free.
        """
        try:
            with _Active(self):
                return self._card.empty(shape, dtype, self.stream)
        except DeviceMemoryError as error:
            wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            free, total = self.memory()
            raise DeviceMemoryError(
                f"{self.name}: {_size(wanted)} for {what} do not fit; {_size(free)} of "
                f"{_size(total)} are free; nothing was changed"
            ) from error

    def zeros(self, shape: tuple[int, ...] | int, dtype: Any, what: str = "a batch") -> Any:
        """An array of the device full of zeros."""
        array = self.empty(shape, dtype, what)
        self.clear(array)
        return array

    def clear(self, array: Any) -> None:
        """All bytes of an array become zero."""
        with self.active():
            self._card.zero(array, self.stream)

    def work(self, name: str, length: int, dtype: Any) -> Any:
        """(length,) of a buffer that this thread keeps under this name: valid until it asks for it
        again."""
        chosen = self._chosen
        name = chosen.aside + name
        kept = chosen.work.get(name)
        if kept is None or kept.array.shape[0] < length or kept.array.dtype != dtype:
            grown = length if kept is None else max(length, kept.array.shape[0] * 3 // 2)
            kept = None
            chosen.work.pop(name, None)  # the last reference: its memory may be had again
            what = f"{name}, for a batch"
            try:
                array = self.empty(max(grown, 1), dtype, what)
            except DeviceMemoryError:
                if grown <= length:
                    raise
                array = self.empty(max(length, 1), dtype, what)
            kept = chosen.work[name] = _Kept(array, array[:length])
        elif kept.part.shape[0] != length:
            kept.part = kept.array[:length]
        return kept.part

    def forget_work(self) -> None:
        """Give back the buffers that this thread keeps, and memory that waits to be used again."""
        self._chosen.work.clear()
        self._card.forget()

    # ---- other people's arrays ------------------------------------------------------------------

    @property
    def simulated(self) -> bool:
        """Whether this is Numba's simulator."""
        return bool(self._shim.SIMULATED)

    def address(self, array: Any) -> int:
        """Where an array begins."""
        return int(self._card.address(array))

    def adopt(self, array: Any, interface: dict[str, Any] | None = None) -> Any:
        """An array with this `__cuda_array_interface__` as one of ours, without a copy; it is read
        after what its own stream has yet to do."""
        with self.active():
            return self._card.adopt(array, interface, self.stream)

    def device_of(self, address: int) -> str:
        """ "cuda:N" of the memory at an address; this one where CUDA does not say."""
        try:
            with _Active(self):
                return f"cuda:{self._card.device_of(address)}"
        except DeviceError:  # memory that CUDA does not know: what reads it will say so
            return self.name

    def copy(self, target: Any, source: Any) -> None:
        """Copy between arrays of the device."""
        if source.size:
            with self.active():
                self._card.copy(target, source, self.stream)

    # ---- copies ---------------------------------------------------------------------------------

    def upload(self, array: AnyArray, what: str = "a batch") -> Any:
        """A copy on the device; the caller may change `array` at once."""
        target = self.empty(array.shape, array.dtype, what)
        if array.size:
            with self.active():
                self._card.upload(target, np.ascontiguousarray(array), self.stream)
        return target

    def fill(self, target: Any, array: AnyArray) -> None:
        """Copy into a device array; the caller leaves `array`, which is pinned or waited for, alone
        until the stream has come here."""
        if array.size:
            with self.active():
                self._card.to_device(target, array, self.stream)

    def put(self, name: str, array: AnyArray) -> Any:
        """A copy on the device in the buffer of this name (`work`); the caller may change `array`
        at once."""
        target = self.work(name, array.size, array.dtype)
        if array.size:
            with self.active():
                self._card.upload(target, np.ascontiguousarray(array), self.stream)
        return target

    def download(self, array: Any, out: AnyArray | None = None) -> AnyArray:
        """A copy in host memory, of a contiguous device array."""
        with self.active():
            if out is None:
                out = np.empty(tuple(array.shape), array.dtype)
            if out.size:
                self._card.to_host(out, array, self.stream)
            self._card.synchronize(self.stream)
            return out

    def read_later(self, array: Any) -> Callable[[], AnyArray]:
        """A function that waits for at most 64 bytes as they are now, and for nothing else that the
        stream is asked meanwhile."""
        with self.active():
            wait: Callable[[], AnyArray] = self._card.read_later(array, self.stream)

        def read() -> AnyArray:
            with self.active():
                return wait()

        return read

    def number(self, array: Any) -> int:
        """The first entry of an integer array."""
        return int(self.read_later(array[:1])()[0])

    def pinned(self, nbytes: int) -> AnyArray:
        """Pinned host memory, the caller's own until the process ends."""
        with self.active():
            found: AnyArray = self._card.pinned(nbytes)
            return found

    # ---- launches -------------------------------------------------------------------------------

    def launch(self, kernel: Any, blocks: int, threads: int, *args: Any) -> None:
        """Start a kernel on the stream in use."""
        chosen = self._chosen
        if chosen.depth:  # who has entered explains errors
            self._card.launch(kernel, blocks, threads, chosen.stream, args)
        else:
            with self.active():
                self._card.launch(kernel, blocks, threads, chosen.stream, args)

    def each(self, kernel: Any, items: int, *args: Any) -> None:
        """Start a kernel in which a thread takes an item, or several; not for no items."""
        if items > 0:
            threads = self._shim.THREADS
            self.launch(kernel, self._shim.blocks_for(items, threads), threads, *args)


class _Chosen(threading.local):
    """What a thread has chosen: its stream, how often it has entered the GPU, its buffers."""

    stream: int = 0
    aside: str = ""
    depth: int = 0

    def __init__(self) -> None:
        self.work: dict[str, _Kept] = {}


class _Kept:
    """A buffer that is kept, and the part of it that was asked for last."""

    __slots__ = ("array", "part")

    def __init__(self, array: Any, part: Any) -> None:
        self.array, self.part = array, part


class _Inside:
    """The GPU is this thread's already."""

    __slots__ = ()

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, *_: object) -> None:
        """Nothing to do."""


_INSIDE = _Inside()


class _Active:
    """As a context manager: the GPU is this thread's, CUDA's errors are ours, and with a stream it
    is the one in use."""

    __slots__ = ("before", "memory", "stream")

    def __init__(self, memory: DeviceMemory, stream: int | None = None) -> None:
        self.memory, self.stream = memory, stream

    def __enter__(self) -> None:
        memory, stream = self.memory, self.stream
        chosen = memory._chosen
        self.before = chosen.stream
        entered = False
        try:
            if chosen.depth == 0:
                memory._card.__enter__()
                entered = True
            if stream is not None:
                memory._order.follow(stream)
                chosen.stream = stream
            elif chosen.depth == 0 and not chosen.aside:  # beside, marks tell what to wait for
                memory._order.follow(chosen.stream)
        except Exception as error:
            if entered:
                memory._card.__exit__()
            raise memory.explained(error) from error
        chosen.depth += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        memory = self.memory
        chosen = memory._chosen
        try:
            if self.stream:
                memory._order.end(self.stream)
        except Exception as failure:  # a lost context has said so before
            error = error or failure
        chosen.stream = self.before
        chosen.depth -= 1
        if chosen.depth == 0:
            try:
                memory._card.__exit__()
            except Exception as failure:
                error = error or failure
        if error is not None:
            explained = memory.explained(error)
            if explained is not error:
                try:
                    raise explained from error
                finally:  # or a circle of frames would keep arrays until it is collected
                    del explained, error, trace


def _size(nbytes: int) -> str:
    if nbytes < 1 << 20:
        return f"{nbytes} bytes"
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:.1f} MiB"
