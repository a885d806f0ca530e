"""Devices: which one a table is on, its memory, its streams, and what may go wrong with it.

`DeviceMemory` is what storage and the CUDA operations see of a GPU: plain allocations, copies
through pinned staging, launches on one stream.  Without the extra "cuda", or without a driver,
asking for a GPU fails with one line that says what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from sparse_embed._typing import AnyArray
from sparse_embed.errors import (
    ArgumentError,
    DeviceError,
    DeviceMemoryError,
    MissingExtraError,
)

_STAGING = 8 << 20
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
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

    Arrays of it are Numba's and stay inside the package.
    """

    def __init__(self, index: int) -> None:
        from sparse_embed.kernels.cuda import _shim

        self.index = index
        self.name = f"cuda:{index}"
        self._shim = _shim
        self._cuda: Any = vars(_shim)["cuda"]
        self._stream: Any = 0
        self._handle: int | None = None
        self._work: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._staging: Any = None

    # ---- streams and errors ---------------------------------------------------------------------

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Work on this GPU inside.

        Raises:
            DeviceMemoryError: an allocation failed; nothing was changed by it.
            DeviceError: anything else that CUDA reports: the context is lost.
        """
        try:
            with self._cuda.gpus[self.index]:
                yield
        except Exception as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        kind = type(error).__name__
        if not (kind.startswith(("Cuda", "CUDA")) or kind in ("LinkerError", "NvvmError")):
            return error
        if int(getattr(error, "code", 0) or 0) == _OUT_OF_MEMORY:
            return DeviceMemoryError(f"{self.name}: out of memory ({error})")
        return DeviceError(f"{self.name}: {error}")

    @contextlib.contextmanager
    def on_stream(self, handle: int | None) -> Iterator[None]:
        """Launch and copy on this stream inside: a handle as torch's `cuda_stream` or CuPy's `ptr`;
        None: the default stream."""
        if handle is None or self._shim.SIMULATED:
            yield
            return
        with self._lock:
            before = self._stream, self._handle
            self._stream, self._handle = self._cuda.external_stream(handle), handle
            try:
                yield
            finally:
                self._stream, self._handle = before

    def synchronize(self) -> None:
        """Wait for the stream in use."""
        if self._stream:
            self._stream.synchronize()
        else:
            self._cuda.synchronize()

    # ---- memory ---------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        with self.active():
            if self._shim.SIMULATED:
                return 1 << 30, 1 << 30
            free, total = self._cuda.current_context().get_memory_info()
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
            with self.active():
                return self._cuda.device_array(shape, dtype, stream=self._stream)
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
            self._shim.fill_zero(array, self._stream)

    def work(self, name: str, length: int, dtype: Any) -> Any:
        """(length,) of a buffer that is kept under this name: valid until the next call for it."""
        kept = self._work.get(name)
        if kept is None or kept.shape[0] < length or kept.dtype != np.dtype(dtype):
            grown = length if kept is None else max(length, kept.shape[0] * 3 // 2)
            self._work.pop(name, None)
            kept = self._work[name] = self.empty(max(grown, 1), dtype, f"{name}, for a batch")
        return kept[:length] if length != kept.shape[0] else kept

    def forget_work(self) -> None:
        """Give back the buffers that are kept."""
        self._work.clear()

    # ---- other people's arrays ------------------------------------------------------------------

    @property
    def simulated(self) -> bool:
        """Whether this is Numba's simulator."""
        return bool(self._shim.SIMULATED)

    @property
    def stream_handle(self) -> int | None:
        """Of the stream in use; None: the default one."""
        return self._handle

    def address(self, array: Any) -> int:
        """Where an array begins."""
        return self._shim.address(array)

    def adopt(self, array: Any) -> Any:
        """An array with `__cuda_array_interface__` as Numba sees it, without a copy; it is read
        after what its own stream has yet to do."""
        with self.active():
            return self._cuda.as_cuda_array(array)

    def device_of(self, address: int) -> str:
        """ "cuda:N" of the memory at an address; this one where CUDA does not say."""
        try:
            with self._cuda.gpus[self.index]:
                return f"cuda:{self._shim.device_of(address)}"
        except Exception:  # memory that CUDA does not know: what reads it will say so
            return self.name

    def copy(self, target: Any, source: Any) -> None:
        """Copy between arrays of the device."""
        if source.size:
            with self.active():
                target.copy_to_device(source, stream=self._stream)

    # ---- copies ---------------------------------------------------------------------------------

    def upload(self, array: AnyArray, what: str = "a batch") -> Any:
        """A copy on the device."""
        target = self.empty(array.shape, array.dtype, what)
        if array.size:
            with self.active():
                target.copy_to_device(np.ascontiguousarray(array), stream=self._stream)
                self.synchronize()  # the caller may change its array next
        return target

    def fill(self, target: Any, array: AnyArray) -> None:
        """Copy into a device array; the caller leaves `array` alone until `synchronize`."""
        if array.size:
            with self.active():
                target.copy_to_device(array, stream=self._stream)

    def download(self, array: Any, out: AnyArray | None = None) -> AnyArray:
        """A copy in host memory, of a contiguous device array."""
        with self.active():
            if out is None:
                out = np.empty(tuple(array.shape), array.dtype)
            if out.size:
                array.copy_to_host(out, stream=self._stream)
            self.synchronize()
            return out

    def number(self, array: Any) -> int:
        """The first entry of an integer array."""
        return int(self.download(array[:1])[0])

    def staging(self, nbytes: int) -> AnyArray:
        """Pinned host memory of at least so many bytes; one buffer, kept."""
        with self.active():
            if self._staging is None or self._staging.size < nbytes:
                self._staging = self._cuda.pinned_array(max(nbytes, _STAGING), np.uint8)
            staged: AnyArray = self._staging[:nbytes]
            return staged

    # ---- launches -------------------------------------------------------------------------------

    def launch(self, kernel: Any, blocks: int, threads: int, *args: Any) -> None:
        """Start a kernel on the stream in use."""
        with self.active():
            kernel[blocks, threads, self._stream](*args)

    def each(self, kernel: Any, items: int, *args: Any) -> None:
        """Start a kernel in which a thread takes an item, or several; not for no items."""
        if items > 0:
            threads = self._shim.THREADS
            self.launch(kernel, self._shim.blocks_for(items, threads), threads, *args)


def _size(nbytes: int) -> str:
    if nbytes < 1 << 20:
        return f"{nbytes} bytes"
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:.1f} MiB"
