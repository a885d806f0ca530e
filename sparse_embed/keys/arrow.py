"""Arrow data through the Arrow C interface: no pyarrow needed, no string copied.

Anything with `__arrow_c_array__` or `__arrow_c_stream__` (pyarrow, polars, pandas, nanoarrow) hands
over the addresses of its buffers; the kernels read them in place.  Understood: utf8, large utf8,
utf8 views, binary in the same three forms, fixed-size binary, integers, nulls, and dictionaries of
these.  The buffers are trusted as the Arrow specification defines them.

Source   https://arrow.apache.org/docs/format/CDataInterface.html, CStreamInterface.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels._jit import counter_of_items
from sparse_embed.kernels.arrow_views import spans_of_views_cpu
from sparse_embed.keys.chunks import EMPTY_LENGTHS, Bools, Chunk, Coded, Ids, KeyColumn, Strings

_INTEGERS = {
    b"c": np.int8, b"C": np.uint8, b"s": np.int16, b"S": np.uint16,
    b"i": np.int32, b"I": np.uint32, b"l": np.int64, b"L": np.uint64,
}  # fmt: skip
_FLOATS = (b"e", b"f", b"g")
_NO_MASK = np.empty(0, np.bool_)


class _Schema(ctypes.Structure):
    """struct ArrowSchema"""


_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_void_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.POINTER(_Schema)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(_Schema))),
    ("private_data", ctypes.c_void_p),
]


class _Array(ctypes.Structure):
    """struct ArrowArray"""


_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.POINTER(_Array)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(_Array))),
    ("private_data", ctypes.c_void_p),
]


class _Stream(ctypes.Structure):
    """struct ArrowArrayStream"""


_Stream._fields_ = [
    ("get_schema", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Schema))),
    ("get_next", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Array))),
    ("get_last_error", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    ("private_data", ctypes.c_void_p),
]


class _Owned:
    """A structure that a stream gave us; released when the last chunk that reads it is gone."""

    def __init__(self, structure: Any) -> None:
        self.structure = structure

    def __del__(self) -> None:
        if self.structure.release:
            self.structure.release(ctypes.byref(self.structure))


class _Buffer:
    """`count` values at an address, for np.asarray; keeps the owner alive."""

    def __init__(self, address: int, dtype: Any, count: int, keep: object) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "typestr": np.dtype(dtype).str,
            "shape": (count,),
        }
        self.keep = keep


def from_arrow(keys: Any, name: str) -> KeyColumn | None:
    """The keys of an Arrow array or stream; None when the object cannot export itself after all
    (pandas without pyarrow), so that the caller reads it another way.

    Raises:
        ArgumentError: a type that holds no keys (floats, structs, times, ...), a broken stream.
    """
    try:
        if hasattr(keys, "__arrow_c_array__"):
            schema_capsule, array_capsule = keys.__arrow_c_array__()
            stream_capsule = None
        else:
            stream_capsule = keys.__arrow_c_stream__()
    except Exception:  # whatever the exporter raises: it has another face (`__array__`) to try
        return None
    if stream_capsule is not None:
        return _from_stream(stream_capsule, name)
    schema = _pointer(schema_capsule, b"arrow_schema", _Schema)
    array = _pointer(array_capsule, b"arrow_array", _Array)
    chunk = _chunk(schema, array, (schema_capsule, array_capsule, keys), name)
    return KeyColumn((array.length,), iter([chunk]))


def _pointer(capsule: Any, what: bytes, structure: Any) -> Any:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return structure.from_address(get(capsule, what))


def _from_stream(capsule: Any, name: str) -> KeyColumn:
    stream = _pointer(capsule, b"arrow_array_stream", _Stream)
    address = ctypes.addressof(stream)

    def check(status: int) -> None:
        if status != 0:
            said = stream.get_last_error(address) or b""
            raise ArgumentError(f"{name}: the Arrow stream failed: {said.decode(errors='replace')}")

    schema = _Schema()
    check(stream.get_schema(address, ctypes.byref(schema)))
    owned_schema = _Owned(schema)
    arrays = []
    while True:
        array = _Array()
        check(stream.get_next(address, ctypes.byref(array)))
        if not array.release:
            break
        arrays.append(_Owned(array))
    _refuse_type(schema, name)
    total = sum(owned.structure.length for owned in arrays)

    def chunks() -> Iterator[Chunk]:
        for owned in arrays:
            yield _chunk(schema, owned.structure, (owned_schema, owned, capsule), name)

    return KeyColumn((total,), chunks())


def _refuse_type(schema: Any, name: str) -> None:
    """Raise for a type without keys, also when there is no array to read."""
    kind = schema.format
    if schema.dictionary:
        _refuse_type(schema.dictionary.contents, name)
    elif kind in _FLOATS:
        raise ArgumentError(
            f"{name}: floating-point ids (Arrow type {kind.decode()!r}) lose digits above 2^53;"
            " cast them to int64"
        )
    elif not (kind in _INTEGERS or kind in _VARIABLE or kind == b"n" or kind.startswith(b"w:")):
        raise ArgumentError(
            f"{name}: expected an Arrow array of strings, binary, integers or a dictionary of"
            f" these, got format {kind.decode()!r}"
        )


def _chunk(schema: Any, array: Any, keep: object, name: str) -> Chunk:
    _refuse_type(schema, name)
    missing = _missing(array, keep)
    if schema.dictionary:
        return _coded(schema, array, missing, keep, name)
    kind = schema.format
    if kind == b"n":
        n = array.length
        return Ids(np.zeros(n, np.uint64), False, np.ones(n, np.bool_))
    if kind in _INTEGERS:
        from sparse_embed.keys.input import ids_of

        return ids_of(_buffer(array, 1, _INTEGERS[kind], keep), missing)
    if kind.startswith(b"w:"):
        width = int(kind[2:])
        first = (array.buffers[1] or 0) + array.offset * width
        starts = first + width * np.arange(array.length)
        return Strings(0, starts, np.full(array.length, width, np.int64), keep, missing)
    return _VARIABLE[kind](array, missing, keep)


def _buffer(array: Any, number: int, dtype: Any, keep: object, extra: int = 0) -> npt.NDArray[Any]:
    """Values offset .. offset + length + extra of a buffer, in place where it is aligned."""
    address = array.buffers[number]
    if not address or array.length == 0:
        return np.zeros(extra, dtype)
    start = address + array.offset * np.dtype(dtype).itemsize
    values = np.asarray(_Buffer(start, dtype, array.length + extra, keep))
    return values if values.flags.aligned else values.copy()


def _missing(array: Any, keep: object) -> Bools | None:
    """The inverted validity bitmap, or None without nulls."""
    if array.null_count == 0 or array.n_buffers == 0 or not array.buffers[0]:
        return None
    begin, end = array.offset, array.offset + array.length
    packed = np.asarray(_Buffer(array.buffers[0], np.uint8, (end + 7) // 8, keep))
    bits = np.unpackbits(packed[begin // 8 :], bitorder="little")
    missing: Bools = bits[begin % 8 : begin % 8 + array.length] == 0
    return missing


def _offsets_32(array: Any, missing: Bools | None, keep: object) -> Strings:
    offsets = _buffer(array, 1, np.int32, keep, extra=1)
    return Strings(array.buffers[2] or 0, offsets, EMPTY_LENGTHS, keep, missing)


def _offsets_64(array: Any, missing: Bools | None, keep: object) -> Strings:
    offsets = _buffer(array, 1, np.int64, keep, extra=1)
    return Strings(array.buffers[2] or 0, offsets, EMPTY_LENGTHS, keep, missing)


def _views(array: Any, missing: Bools | None, keep: object) -> Strings:
    starts = np.empty(array.length, np.int64)
    lengths = np.empty(array.length, np.int64)
    # the last buffer holds the lengths of the data buffers between
    buffers = np.array([array.buffers[i] or 0 for i in range(2, array.n_buffers - 1)], np.int64)
    views = (array.buffers[1] or 0) + array.offset * 16
    mask = _NO_MASK if missing is None else missing
    counter = counter_of_items(array.length)
    spans_of_views_cpu()(views, buffers, mask, counter, starts, lengths)
    return Strings(0, starts, lengths, keep, missing)


_VARIABLE = {
    b"u": _offsets_32, b"z": _offsets_32,
    b"U": _offsets_64, b"Z": _offsets_64,
    b"vu": _views, b"vz": _views,
}  # fmt: skip


def _coded(schema: Any, array: Any, missing: Bools | None, keep: object, name: str) -> Coded:
    """A dictionary array: the distinct keys are hashed once, nulls among them become missing."""
    codes = _buffer(array, 1, _INTEGERS[schema.format], keep).astype(np.int64)
    distinct = _chunk(schema.dictionary.contents, array.dictionary.contents, keep, name)
    if isinstance(distinct, Coded):
        raise ArgumentError(f"{name}: a dictionary of dictionaries holds no keys")
    if missing is not None:
        codes[missing] = 0
    outside = (codes < 0) | (codes >= len(distinct))
    if missing is not None:
        outside &= ~missing
    if outside.any():
        raise ArgumentError(f"{name}: a dictionary code lies outside the dictionary")
    if distinct.missing is not None and len(distinct):
        gone = distinct.missing[codes]
        missing = gone if missing is None else missing | gone
    plain: Strings | Ids
    if isinstance(distinct, Ids):
        plain = Ids(distinct.values, distinct.signed)
    else:
        plain = Strings(distinct.base, distinct.starts, distinct.lengths, distinct.keep)
    return Coded(plain, codes, missing)
