"""Arrays of a GPU, and kernels that are started on them."""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Any

import numba
import numpy as np

from sparse_embed.kernels.cuda._calls import driver, handle_from

_KINDS: dict[tuple[str, int], int] = {}


class Array:
    """C-contiguous numbers on a GPU.

    words: what a kernel is given.  kind: a number for each dtype and number of axes.
    owner: keeps the memory.
    """

    __slots__ = ("address", "dtype", "kind", "owner", "shape", "size", "words")

    def __init__(self, address: int, shape: tuple[int, ...], dtype: Any, owner: Any) -> None:
        self.address, self.shape, self.dtype, self.owner = address, shape, dtype, owner
        stride = itemsize = dtype.itemsize
        if len(shape) == 1:
            self.size = shape[0]
            self.words = (0, 0, self.size, itemsize, address, self.size, itemsize)
        else:
            strides = []
            for n in reversed(shape):
                strides.append(stride)
                stride *= n
            self.size = stride // itemsize
            self.words = (0, 0, self.size, itemsize, address, *shape, *reversed(strides))
        self.kind = _KINDS.setdefault((dtype.char, len(shape)), len(_KINDS))

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
            self._function = handle_from(driver().cuKernelGetFunction, int(handle))
        format_ = struct.Struct("<" + "".join(letters for _, letters in kinds))
        self._pack = format_.pack_into
        self._buffer = ctypes.create_string_buffer(format_.size)
        begin, words = ctypes.addressof(self._buffer), format_.size // 8
        self._places = (ctypes.c_void_p * words)(*range(begin, begin + format_.size, 8))
        self._parameters = ctypes.addressof(self._places)
        self._lock = threading.Lock()  # one buffer
        self._launch = driver().cuLaunchKernel

    def start(self, blocks: int, threads: int, stream: int, words: list[Any]) -> None:
        """Pack and launch; `words` are the arguments, arrays as their words."""
        with self._lock:
            self._pack(self._buffer, 0, *words)
            self._launch(
                self._function, blocks, 1, 1, threads, 1, 1, 0, stream, self._parameters, None
            )
