"""The GPU of Numba's simulator, as `_driver.Card`: its arrays are NumPy's, its streams one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.simulator import kernelapi
from numba.extending import overload

from sparse_embed.kernels import formats

_plain_array = kernelapi.FakeCUDALocal.array


def _zeros(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Local memory.  Lanes behind a row's end compute with what lies there and store nothing; on a
    GPU that may be rubbish, but Python's sqrt raises for less than zero."""
    array = _plain_array(self, *args, **kwargs)
    array.fill(0)
    return array


kernelapi.FakeCUDALocal.array = _zeros


def _let_python_call(name: str, plain: Any) -> None:
    """An intrinsic that the formulas of narrow records use; kernels of the CPU still compile it."""
    compiled = getattr(formats, name)

    @overload(plain, jit_options={"forceinline": True}, strict=False)
    def implementation(x: Any) -> Any:
        return lambda x: compiled(x)

    setattr(formats, name, plain)


for _name, _plain in (
    ("bits", lambda x: np.float32(x).view(np.uint32)),
    ("from_bits", lambda x: np.uint32(x).view(np.float32)),
    ("widen_float16", lambda x: np.float32(np.uint16(x).view(np.float16))),
    ("_truncate_float16", lambda x: np.float32(x).astype(np.float16).view(np.uint16)),
):
    _let_python_call(_name, _plain)


class Card:
    """One GPU that there is not."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self) -> None:
        """Work on this GPU inside."""
        self._entered = cuda.gpus[self.index]

    def __exit__(self, *_: object) -> None:
        """Nothing to give back."""

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes."""
        return 1 << 30, 1 << 30

    def empty(self, shape: Any, dtype: Any, _stream: int) -> Any:
        """An array, its contents rubbish."""
        return cuda.device_array(shape, dtype)

    def forget(self) -> None:
        """Nothing is kept."""

    def zero(self, array: Any, _stream: int) -> None:
        """All bytes become zero."""
        array._ary[...] = 0

    def pinned(self, nbytes: int) -> Any:
        """Host memory."""
        return np.empty(nbytes, np.uint8)

    def copy(self, target: Any, source: Any, _stream: int) -> None:
        """Between arrays of the card."""
        target.copy_to_device(source)

    def to_device(self, target: Any, host: Any, _stream: int) -> None:
        """From host memory."""
        target.copy_to_device(host)

    upload = to_device

    def to_host(self, host: Any, source: Any, _stream: int) -> None:
        """To host memory."""
        source.copy_to_host(host)

    def read_later(self, source: Any, _stream: int) -> Any:
        """A function that returns a few numbers as array."""
        values = source.copy_to_host()
        return lambda: values

    def new_stream(self) -> int:
        """There is one."""
        return 0

    def after(self, _stream: int, _other: int) -> None:
        """Everything is in order."""

    def synchronize(self, _stream: int) -> None:
        """Everything is done."""

    def adopt(self, value: Any, _interface: Any, _stream: int) -> Any:
        """An array of the simulator."""
        return cuda.as_cuda_array(value)

    def address(self, array: Any) -> int:
        """Where an array begins."""
        return int(array._ary.ctypes.data)

    def device_of(self, _address: int) -> int:
        """There is one."""
        return self.index

    def launch(self, kernel: Any, blocks: int, threads: int, _stream: int, args: Any) -> None:
        """Run a kernel."""
        kernel[blocks, threads](*args)
