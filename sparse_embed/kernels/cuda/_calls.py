"""The calls of CUDA's driver that are made often, by ctypes: about a microsecond each."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

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


def handle_from(call: Any, *args: Any) -> int:
    found = ctypes.c_void_p()
    call(ctypes.byref(found), *args)
    return found.value or 0
