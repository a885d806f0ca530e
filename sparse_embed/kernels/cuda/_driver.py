"""A GPU through CUDA's driver: arrays, copies, launches.  Numba compiles, and is not asked again.

Numba's device arrays and launches cost the host some 50 µs each, several times what a small batch
costs the card.  Here an array is an address and a shape, memory comes from a pool that is kept, and
a launch packs its arguments into one buffer by a format that is made once.

Memory is recycled in the order of the stream it was asked for on, as by torch and CuPy: what other
streams do with a result has to be done, or waited for, before the last reference to it goes.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
import threading
from typing import Any

import numba
import numpy as np
from numba import cuda

_POOLED = 1 << 28  # bytes of an array that is still recycled
_IDLE = 1 << 30  # bytes that wait to be used again, at most
_INLINE = 1 << 16  # bytes that the driver takes along when it returns
_NO_TIMING, _NON_BLOCKING = 2, 1
_OUT_OF_MEMORY = 2
_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL

_HANDLE, _SIZE, _UINT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
_OUT = ctypes.POINTER(ctypes.c_void_p)
_CALLS: dict[str, tuple[Any, ...]] = {
    "cuCtxGetCurrent": (_OUT,),
    "cuCtxPushCurrent_v2": (_HANDLE,),
    "cuCtxPopCurrent_v2": (_OUT,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemAlloc_v2": (_OUT, _SIZE),
    "cuMemFree_v2": (_HANDLE,),
    "cuMemAllocHost_v2": (_OUT, _SIZE),
    "cuMemsetD8Async": (_HANDLE, ctypes.c_ubyte, _SIZE, _HANDLE),
    "cuMemcpyHtoDAsync_v2": (_HANDLE, _HANDLE, _SIZE, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (_HANDLE, _HANDLE, _SIZE, _HANDLE),
    "cuMemcpyDtoDAsync_v2": (_HANDLE, _HANDLE, _SIZE, _HANDLE),
    "cuStreamCreate": (_OUT, _UINT),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamWaitEvent": (_HANDLE, _HANDLE, _UINT),
    "cuEventCreate": (_OUT, _UINT),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventSynchronize": (_HANDLE,),
    "cuKernelGetFunction": (_OUT, _HANDLE),
    "cuPointerGetAttribute": (ctypes.c_void_p, ctypes.c_int, _HANDLE),
    "cuLaunchKernel": (_HANDLE, *[_UINT] * 7, _HANDLE, _HANDLE, _HANDLE),
}


class CudaCallError(Exception):
    """A call of the driver failed; `code` is CUDA's."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"[{code}] {call}: {name}")
        self.code = code


@functools.cache
def driver() -> Any:
    """The driver's calls, by name: they raise CudaCallError."""
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")

    def name_of(code: int) -> str:
        text = ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(text))
        return (text.value or b"unknown").decode()

    def checked(name: str, types: tuple[Any, ...]) -> Any:
        function = getattr(library, name)
        function.argtypes = types

        def call(*args: Any) -> None:
            code = function(*args)
            if code:
                raise CudaCallError(name, code, name_of(code))

        return staticmethod(call)

    return type("Driver", (), {name: checked(name, types) for name, types in _CALLS.items()})


def _handle_from(call: Any, *args: Any) -> int:
    found = ctypes.c_void_p()
    call(ctypes.byref(found), *args)
    return found.value or 0


class Array:
    """C-contiguous numbers on a GPU.

    words: what a kernel is given.  owner: keeps the memory.
    """

    __slots__ = ("address", "dtype", "kind", "owner", "shape", "size", "words")

    def __init__(self, address: int, shape: tuple[int, ...], dtype: Any, owner: Any) -> None:
        self.address, self.shape, self.dtype, self.owner = address, shape, dtype, owner
        stride = itemsize = dtype.itemsize
        strides = []
        for n in reversed(shape):
            strides.append(stride)
            stride *= n
        self.size = stride // itemsize
        self.kind = (dtype.char, len(shape))
        self.words = (0, 0, self.size, itemsize, address, *shape, *reversed(strides))

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return int(self.size) * int(self.dtype.itemsize)

    def reshape(self, shape: tuple[int, ...]) -> Array:
        """The same numbers with other axes; one of them may be -1."""
        if -1 in shape:
            rest = 1
            for n in shape:
                rest *= n
            shape = tuple(self.size // -rest if n == -1 and rest else n for n in shape)
        found = Array(self.address, tuple(shape), self.dtype, self.owner)
        if found.size != self.size:
            raise ValueError(f"{self.shape} cannot be {shape}")
        return found

    def view(self, dtype: Any) -> Array:
        """The same bits as numbers of another type and the same size."""
        other = np.dtype(dtype)
        if other.itemsize != self.dtype.itemsize:
            raise ValueError(f"{self.dtype} cannot be seen as {other}")
        return Array(self.address, self.shape, other, self.owner)

    def __getitem__(self, part: slice) -> Array:
        begin, end, step = part.indices(self.shape[0])
        if step != 1:
            raise IndexError("only runs of the first axis")
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        shape = (max(0, end - begin), *self.shape[1:])
        return Array(self.address + begin * row, shape, self.dtype, self.owner)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }


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
        self._idle = 0

    def take(self, nbytes: int, stream: int) -> _Block:
        """Memory of at least so many bytes, beginning at 256."""
        if nbytes > _POOLED:
            return _Block(self, self._allocate(nbytes), nbytes, None)
        step = 1 << max(9, (nbytes - 1).bit_length() - 4)
        nbytes = -(-max(nbytes, 1) // step) * step
        waiting = self._free.get((nbytes, stream))
        if waiting:
            self._idle -= nbytes
            return _Block(self, waiting.pop(), nbytes, stream)
        return _Block(self, self._allocate(nbytes), nbytes, stream)

    def _allocate(self, nbytes: int) -> int:
        try:
            return _handle_from(driver().cuMemAlloc_v2, nbytes)
        except CudaCallError as error:
            if error.code != _OUT_OF_MEMORY or not self._idle:
                raise
            self.trim()
            return _handle_from(driver().cuMemAlloc_v2, nbytes)

    def give(self, block: _Block) -> None:
        """Take a block back."""
        if block.home is not None and self._idle + block.nbytes <= _IDLE:
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
            self._context = _handle_from(driver().cuCtxGetCurrent)
        self._pushed = threading.local()
        self._pool = Pool(self)
        self._events: list[int] = []
        self._slots: list[Any] = []

    # ---- the context ----------------------------------------------------------------------------

    def __enter__(self) -> None:
        """Work on this GPU inside; the thread's own comes back afterwards."""
        other = _handle_from(driver().cuCtxGetCurrent) != self._context
        if other:
            driver().cuCtxPushCurrent_v2(self._context)
        try:
            self._pushed.stack.append(other)
        except AttributeError:
            self._pushed.stack = [other]

    def __exit__(self, *_: object) -> None:
        if self._pushed.stack.pop():
            _handle_from(driver().cuCtxPopCurrent_v2)

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
        address = _handle_from(driver().cuMemAllocHost_v2, nbytes)
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
        if host.nbytes <= _INLINE:  # a copy of our own is not pinned: the driver takes it along
            self.to_device(target, host.copy(), stream)
        else:
            self.to_device(target, host, stream)
            self.synchronize(stream)

    def to_host(self, host: Any, source: Array, stream: int) -> None:
        """`host` is C-contiguous; complete once the stream has been synchronised."""
        driver().cuMemcpyDtoHAsync_v2(host.ctypes.data, source.address, source.nbytes, stream)

    def read_later(self, source: Array, stream: int) -> Any:
        """A function that waits for a few numbers (at most 64 bytes) and returns them as array."""
        slot = self._slots.pop() if self._slots else self.pinned(64)
        event = self._events.pop() if self._events else self._new_event()
        found = slot[: source.nbytes].view(source.dtype)
        self.to_host(found, source, stream)
        driver().cuEventRecord(event, stream)

        def wait() -> Any:
            with self:
                driver().cuEventSynchronize(event)
            values = found.copy()
            self._slots.append(slot)
            self._events.append(event)
            return values

        return wait

    # ---- streams --------------------------------------------------------------------------------

    def _new_event(self) -> int:
        return _handle_from(driver().cuEventCreate, _NO_TIMING)

    def new_stream(self) -> int:
        """A stream that does not wait for the default one."""
        return _handle_from(driver().cuStreamCreate, _NON_BLOCKING)

    def after(self, stream: int, other: int) -> None:
        """What is asked of `stream` next comes after all that `other` has been asked."""
        if stream == other:
            return
        event = self._events.pop() if self._events else self._new_event()
        driver().cuEventRecord(event, other)
        driver().cuStreamWaitEvent(stream, event, 0)
        self._events.append(event)  # recorded again, it is another event to those who wait

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        driver().cuStreamSynchronize(stream)

    # ---- other people's arrays ------------------------------------------------------------------

    def adopt(self, value: Any, stream: int) -> Array:
        """An array with `__cuda_array_interface__`, read after what its stream has yet to do."""
        if isinstance(value, Array):
            return value
        interface = value.__cuda_array_interface__
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
        key = (
            self.index,
            *[
                a.kind
                if a.__class__ is Array
                else (len(a), a[0].__class__)
                if a.__class__ is tuple
                else a.__class__
                for a in args
            ],
        )
        ready = kernel.launchers.get(key)
        if ready is None:
            with cuda.gpus[self.index]:
                ready = kernel.launchers[key] = Launcher(kernel, args)
        ready.start(blocks, threads, stream, args)


_SCALARS = {
    bool: (numba.boolean, "?7x"),
    np.bool_: (numba.boolean, "?7x"),
    int: (numba.int64, "q"),
    np.int64: (numba.int64, "q"),
    np.uint64: (numba.uint64, "Q"),
    np.uint32: (numba.uint32, "I4x"),
    np.uint8: (numba.uint8, "B7x"),
    np.float32: (numba.float32, "f4x"),
}


def _type_and_format(value: Any) -> tuple[Any, str]:
    """What Numba calls an argument, and how `struct` packs it, each number into 8 bytes."""
    if isinstance(value, Array):
        dims = len(value.shape)
        element = numba.from_dtype(value.dtype)
        return numba.types.Array(element, dims, "C"), f"{5 + 2 * dims}q"
    if isinstance(value, tuple):
        element, letter = _type_and_format(value[0])
        return numba.types.UniTuple(element, len(value)), letter * len(value)
    return _SCALARS[type(value)]


class Launcher:
    """A compiled kernel with the buffer that its arguments are packed into.

    Numba's kernels take an array as seven words and more (two of Numba's own, number, bytes of one,
    address, shape, strides), a tuple as its numbers.
    """

    def __init__(self, kernel: Any, args: Any) -> None:
        kinds = [_type_and_format(value) for value in args]
        compiled = kernel.compile(tuple(kind for kind, _ in kinds))
        self._keep = compiled._codelibrary.get_cufunc()
        handle = self._keep.handle
        self._function = int(handle)
        if "kernel" in type(handle).__name__.lower():  # not yet of this context
            self._function = _handle_from(driver().cuKernelGetFunction, int(handle))
        format_ = struct.Struct("<" + "".join(letters for _, letters in kinds))
        self._pack = format_.pack_into
        self._buffer = ctypes.create_string_buffer(format_.size)
        begin, words = ctypes.addressof(self._buffer), format_.size // 8
        self._places = (ctypes.c_void_p * words)(*range(begin, begin + format_.size, 8))
        self._parameters = ctypes.addressof(self._places)
        self._lock = threading.Lock()  # one buffer

    def start(self, blocks: int, threads: int, stream: int, args: Any) -> None:
        """Pack and launch."""
        words: list[Any] = []
        for value in args:
            if value.__class__ is Array:
                words += value.words
            elif value.__class__ is tuple:
                words += value
            else:
                words.append(value)
        with self._lock:
            self._pack(self._buffer, 0, *words)
            driver().cuLaunchKernel(
                self._function, blocks, 1, 1, threads, 1, 1, 0, stream, self._parameters, None
            )
