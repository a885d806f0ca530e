"""DLPack's capsules by ctypes: one tensor out, one tensor in.

    DLManagedTensor { DLTensor { void *data; {i32 type, i32 id} device; i32 ndim;
                                 {u8 code, u8 bits, u16 lanes} dtype; i64 *shape; i64 *strides;
                                 u64 byte_offset }; void *manager_ctx; void (*deleter)(self) }

A consumer renames the capsule to "used_dltensor" and calls the deleter when it is done.

Source   dmlc/dlpack, include/dlpack/dlpack.h, the unversioned struct
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CPU_DEVICE = (1, 0)
CUDA, CUDA_MANAGED = 2, 13
_KINDS = {"i": 0, "u": 1, "f": 2}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)

_NAME, _USED = b"dltensor", b"used_dltensor"
_alive: dict[int, tuple[Any, ...]] = {}  # what exported tensors stand on, by address


@_Deleter  # type: ignore[untyped-decorator]
def _delete(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _destroy(capsule: int) -> None:
    """The capsule dies; nobody has taken the tensor out if its name is still the first one."""
    if _api.PyCapsule_IsValid(capsule, _NAME):
        pointer = _pointer_of(capsule, _NAME)
        _alive.pop(pointer, None)


_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)


def export(
    owner: Any, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int]
) -> Any:
    """A capsule of a C-contiguous tensor; `owner` lives until the consumer lets go."""
    axes = (ctypes.c_int64 * max(1, len(shape)))(*shape)
    managed = _Managed(
        _Tensor(
            address,
            _Device(*device),
            len(shape),
            _DType(_KINDS[dtype.kind], dtype.itemsize * 8, 1),
            ctypes.cast(axes, ctypes.POINTER(ctypes.c_int64)),
            None,
            0,
        ),
        None,
        _delete,
    )
    place = ctypes.addressof(managed)
    _alive[place] = (owner, axes, managed)
    return _api.PyCapsule_New(place, _NAME, ctypes.cast(_destroy, ctypes.c_void_p))


class Imported:
    """A tensor taken out of a capsule; gives it back when it is collected."""

    def __init__(self, capsule: Any) -> None:
        pointer = _api.PyCapsule_GetPointer(capsule, _NAME)
        self._managed = ctypes.cast(pointer, ctypes.POINTER(_Managed))
        _api.PyCapsule_SetName(capsule, _USED)
        tensor = self._managed.contents.tensor
        self.shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        kinds = {code: kind for kind, code in _KINDS.items()}
        kind = kinds.get(tensor.dtype.code, "V")
        self.dtype = np.dtype(f"{kind}{tensor.dtype.bits * tensor.dtype.lanes // 8}")
        strides = [tensor.strides[i] for i in range(tensor.ndim)] if tensor.strides else None
        size = self.dtype.itemsize
        self.strides_in_bytes = None if strides is None else tuple(n * size for n in strides)
        self.address = int(tensor.data or 0) + int(tensor.byte_offset)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For Numba."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": self.strides_in_bytes,
            "version": 3,
            "stream": None,
        }

    def __del__(self) -> None:
        managed = getattr(self, "_managed", None)
        if managed is not None and managed.contents.deleter:
            managed.contents.deleter(managed)
