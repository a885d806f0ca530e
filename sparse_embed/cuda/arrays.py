"""Arrays of a GPU as users see them: theirs come in, ours go out, nothing is copied on the way.

In      anything with `__cuda_array_interface__` (CuPy, Numba, torch) or DLPack on a GPU
Out     `DeviceArray`, which has both: torch.as_tensor(x, device="cuda"), torch.from_dlpack(x),
        cupy.asarray(x), cupy.from_dlpack(x), and np.asarray(x) for a copy in host memory
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_embed._typing import AnyArray
from sparse_embed.cuda import dlpack
from sparse_embed.device import DeviceMemory
from sparse_embed.errors import ArgumentError

_ALIGNED = 16


class DeviceArray:
    """A result in the memory of a GPU: `shape`, `dtype`, `device`.

    It lives as long as this object, or as what was made of it by DLPack.  It is complete in the
    order of the stream it was computed on (`stream=`, else the default stream).
    """

    def __init__(self, memory: DeviceMemory, array: Any, stream: int | None = None) -> None:
        """Made by the package."""
        self._memory = memory
        self._array = array
        self._stream = stream

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers."""
        dtype: np.dtype[Any] = np.dtype(self._array.dtype)
        return dtype

    @property
    def device(self) -> str:
        """ "cuda:N" """
        return self._memory.name

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device!r})"

    def reshape(self, *shape: int) -> DeviceArray:
        """The same numbers with other axes."""
        return DeviceArray(self._memory, self._array.reshape(shape), self._stream)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError("an array of a GPU cannot become a NumPy array without a copy")
        with self._memory.on_stream(self._stream):
            host = self._memory.download(self._array)
        return host if dtype is None else host.astype(dtype, copy=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address(self._array), False),
            "strides": None,
            "version": 3,
            "stream": self._stream or 1,  # 1: the legacy default stream
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU_DEVICE if self._memory.simulated else (dlpack.CUDA, self._memory.index)

    def __dlpack__(self, *, stream: Any = None, **_options: Any) -> Any:
        """A DLPack capsule.  The consumer's stream waits: this one is synchronised."""
        if stream != -1:
            with self._memory.on_stream(self._stream), self._memory.active():
                self._memory.synchronize()
        address = self._memory.address(self._array)
        return dlpack.export(self, address, self.shape, self.dtype, self.__dlpack_device__())


def is_on_device(value: object) -> bool:
    """Whether an argument claims to be an array of a GPU."""
    if isinstance(value, np.ndarray | list | tuple | int) or value is None:
        return False
    if isinstance(value, DeviceArray) or hasattr(value, "__cuda_ndarray__"):  # the simulator's
        return True
    if hasattr(value, "__dlpack_device__"):  # asked first: torch makes the other one every time
        return int(value.__dlpack_device__()[0]) in (dlpack.CUDA, dlpack.CUDA_MANAGED)
    return hasattr(value, "__cuda_array_interface__")


def refuse_device_array(name: str, value: object) -> None:
    """For tables on the CPU.

    Raises:
        ArgumentError: the argument lies on a GPU.
    """
    if not isinstance(value, np.ndarray) and is_on_device(value):
        raise ArgumentError(f"{name}: is on a GPU, but this table is on the CPU; copy it first")


def import_array(
    memory: DeviceMemory, value: Any, dtype: type[np.generic], name: str, *, aligned: bool = False
) -> Any:
    """An array of a GPU as Numba sees it, without a copy.

    Args:
        aligned: it has to begin at 16 bytes; if it does not, a copy is taken.

    Raises:
        ArgumentError: names the argument: another dtype, not C-contiguous, another device.
    """
    if isinstance(value, DeviceArray):
        _check(name, value.dtype, dtype, True, value.device, memory)
        found = value._array
    elif memory.simulated:
        if not hasattr(value, "__cuda_ndarray__"):
            raise ArgumentError(f"{name}: expected an array of {memory.name}, got {value!r}")
        _check(name, value.dtype, dtype, value.is_c_contiguous(), memory.name, memory)
        found = value
    elif (interface := getattr(value, "__cuda_array_interface__", None)) is not None:
        found_dtype = np.dtype(interface["typestr"])
        dense = _is_dense(interface["shape"], interface.get("strides"), found_dtype.itemsize)
        address = int(interface["data"][0] or 0)
        on = _device_of(memory, value, address)
        _check(name, found_dtype, dtype, dense, on, memory)
        if interface.get("mask") is not None:
            raise ArgumentError(f"{name}: masked arrays are not supported")
        found = memory.adopt(value, interface)
    else:
        found = _from_dlpack(memory, value, dtype, name)
    if aligned and memory.address(found) % _ALIGNED:
        copied = memory.empty(tuple(found.shape), dtype, f"a copy of {name}")
        memory.copy(copied, found)
        found = copied
    return found


def _device_of(memory: DeviceMemory, value: Any, address: int) -> str:
    """The device of an array, which knows it or whose memory does."""
    if hasattr(value, "__dlpack_device__"):
        return f"cuda:{int(value.__dlpack_device__()[1])}"
    return memory.device_of(address) if address else memory.name


def _from_dlpack(memory: DeviceMemory, value: Any, dtype: type[np.generic], name: str) -> Any:
    kind, index = map(int, value.__dlpack_device__())
    on = f"cuda:{index}" if kind in (dlpack.CUDA, dlpack.CUDA_MANAGED) else f"device type {kind}"
    if on != memory.name:
        raise ArgumentError(f"{name}: expected an array of {memory.name}, got one of {on}")
    tensor = dlpack.Imported(value.__dlpack__(stream=memory.stream_handle or 1))
    dense = _is_dense(tensor.shape, tensor.strides_in_bytes, tensor.dtype.itemsize)
    _check(name, tensor.dtype, dtype, dense, on, memory)
    return memory.adopt(tensor, tensor.__cuda_array_interface__)


def _is_dense(shape: Any, strides: Any, itemsize: int) -> bool:
    if strides is None or 0 in shape:
        return True
    expected = itemsize
    for size, stride in zip(reversed(tuple(shape)), reversed(tuple(strides)), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _check(
    name: str, found: Any, dtype: type[np.generic], dense: bool, on: str, memory: DeviceMemory
) -> None:
    if on != memory.name:
        raise ArgumentError(f"{name}: expected an array of {memory.name}, got one of {on}")
    if np.dtype(found) != np.dtype(dtype):
        raise ArgumentError(f"{name}: expected dtype {np.dtype(dtype)}, got {np.dtype(found)}")
    if not dense:
        raise ArgumentError(f"{name}: expected a C-contiguous array, got one with other strides")


__all__ = ["DeviceArray", "import_array", "is_on_device", "refuse_device_array"]
