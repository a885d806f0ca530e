"""From what people have (lists, NumPy arrays, Arrow, pandas, polars) to chunks for the kernels.

Strings become their UTF-8 bytes, bytes stay as they are (valid UTF-8 or not), so "é" and
b"\\xc3\\xa9" are the same key.  Embedded NULs count; in NumPy `U` and `S` arrays trailing NULs do
not, because NumPy itself cannot tell them from padding.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels.python_strings import pack_list_serial
from sparse_embed.kernels.utf8 import encode_ucs4_serial, trim_nuls_serial
from sparse_embed.keys.chunks import (
    EMPTY_LENGTHS,
    Bools,
    Chunk,
    Ids,
    KeyColumn,
    Strings,
    is_missing,
    no_key,
)

BLOCK = 65_536
"""Python strings are packed and hashed this many at a time, in one recycled buffer."""

_BLOCK_BYTES = 1 << 24  # .. or this many bytes, if one string is not longer

_WANTED = "str, bytes or int keys of one kind"
_MASK64 = (1 << 64) - 1


def as_column(keys: Any, name: str = "keys") -> KeyColumn:
    """Read keys of any supported kind.

    Args:
        keys: a list or tuple of str, of bytes or of int; a NumPy array of integers, `U`, `S`,
            StringDType or objects, of any shape; an Arrow array or chunked array (string, binary,
            their large and view forms, integers, dictionaries of these) and anything that exports
            one (`__arrow_c_array__`, `__arrow_c_stream__`: pandas, polars); a range.
        name: what error messages call it.

    Raises:
        ArgumentError: a single string, floats, bools, mixed kinds, a lone surrogate, an integer
            beyond 64 bits, nested data.
    """
    if isinstance(keys, str | bytes | bytearray):
        raise ArgumentError(
            f"{name}: got one {type(keys).__name__}, expected a sequence of keys;"
            f" pass a list: [{keys[:20]!r}]"
        )
    if isinstance(keys, np.ndarray):
        return _from_numpy(keys, name)
    if isinstance(keys, tuple):
        keys = list(keys)
    if isinstance(keys, list):
        return KeyColumn((len(keys),), _from_list(keys, name))
    if isinstance(keys, range):
        return _from_numpy(np.asarray(keys, np.int64), name)
    if hasattr(keys, "__arrow_c_array__") or hasattr(keys, "__arrow_c_stream__"):
        from sparse_embed.keys.arrow import from_arrow

        column = from_arrow(keys, name)
        if column is not None:
            return column
    if hasattr(keys, "__array__") or hasattr(keys, "__array_interface__") or _is_buffer(keys):
        return _from_numpy(np.asarray(keys), name)
    raise ArgumentError(
        f"{name}: expected a list, a NumPy array or an Arrow array of {_WANTED},"
        f" got {type(keys).__name__}"
    )


def _is_buffer(keys: object) -> bool:
    try:
        memoryview(keys)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


# ---- NumPy --------------------------------------------------------------------------------------


def _from_numpy(keys: npt.NDArray[Any], name: str) -> KeyColumn:
    kind = keys.dtype.kind
    if isinstance(keys, np.ma.MaskedArray) and kind not in "fcb":
        mask = np.ma.getmaskarray(keys).ravel()
        plain = _from_numpy(np.asarray(keys.filled()), name)
        return KeyColumn(keys.shape, _with_mask(plain, mask))
    flat = keys.reshape(-1)
    if kind in "iu":
        return KeyColumn(keys.shape, iter([ids_of(flat)]))
    if kind == "U":
        return KeyColumn(keys.shape, _from_ucs4(flat, name))
    if kind == "S":
        return KeyColumn(keys.shape, iter([_from_fixed_bytes(flat)]))
    if kind in "OT":  # objects, StringDType
        return KeyColumn(keys.shape, _from_list(flat.tolist(), name))
    if kind == "f":
        found = ", among them NaN" if np.isnan(flat).any() else ""
        raise ArgumentError(
            f"{name}: floating-point ids ({keys.dtype}{found}) lose digits above 2^53;"
            " convert them to int64, and leave missing ones out"
        )
    raise ArgumentError(f"{name}: expected {_WANTED}, got an array of dtype {keys.dtype}")


def _with_mask(column: KeyColumn, mask: Bools) -> Iterator[Chunk]:
    done = 0
    for chunk in column.chunks:
        part = mask[done : done + len(chunk)]
        done += len(chunk)
        if isinstance(chunk, Ids):
            yield Ids(chunk.values, chunk.signed, part)
        elif isinstance(chunk, Strings):
            yield Strings(chunk.base, chunk.starts, chunk.lengths, chunk.keep, part)


def ids_of(values: npt.NDArray[Any], missing: Bools | None = None) -> Ids:
    """Integers of any width and byte order by value, as 64-bit patterns."""
    signed = values.dtype.kind == "i"
    wide = np.ascontiguousarray(values, np.int64 if signed else np.uint64)
    if not wide.flags.writeable:  # one kernel signature for all
        wide = wide.copy()
    return Ids(wide.view(np.uint64), signed, missing)


def _from_ucs4(flat: npt.NDArray[Any], name: str) -> Iterator[Chunk]:
    width = flat.dtype.itemsize // 4
    encode = encode_ucs4_serial()
    rows = max(1, min(BLOCK, (1 << 22) // max(width, 1)))
    for begin in range(0, len(flat), rows):
        part = np.ascontiguousarray(flat[begin : begin + rows], flat.dtype.newbyteorder("="))
        n = len(part)
        codes = part.view(np.uint32).reshape(n, width) if width else np.empty((n, 0), np.uint32)
        if not codes.flags.writeable:
            codes = codes.copy()
        offsets = np.empty(n + 1, np.int64)
        buffer = np.empty(max(1, 4 * codes.size), np.uint8)
        done = encode(codes, offsets, buffer)
        if done < n:
            raise _lone_surrogate(name, begin + done, str(part[done]))
        yield Strings(buffer.ctypes.data, offsets, EMPTY_LENGTHS, buffer)


def _from_fixed_bytes(flat: npt.NDArray[Any]) -> Strings:
    data = np.ascontiguousarray(flat)
    starts = np.empty(len(data), np.int64)
    lengths = np.empty(len(data), np.int64)
    trim_nuls_serial()(data.ctypes.data, data.dtype.itemsize, starts, lengths)
    return Strings(0, starts, lengths, data)


# ---- Python lists -------------------------------------------------------------------------------


def _from_list(keys: list[Any], name: str) -> Iterator[Chunk]:
    first = next((key for key in keys if not is_missing(key)), None)
    if first is None:  # empty, or all missing: no key is read
        if keys:
            yield Ids(np.zeros(len(keys), np.uint64), False, np.ones(len(keys), np.bool_))
    elif isinstance(first, str):
        yield from _from_str_list(keys, name, of_bytes=False)
    elif isinstance(first, bytes):
        yield from _from_str_list(keys, name, of_bytes=True)
    elif isinstance(first, int | np.integer) and not isinstance(first, bool):
        yield _from_int_list(keys, name)
    elif isinstance(first, float | np.floating):
        raise ArgumentError(
            f"{name}: floating-point ids ({first!r}) lose digits above 2^53; convert them to int"
        )
    else:
        raise no_key(name, keys.index(first), first, _WANTED)


def _from_int_list(keys: list[Any], name: str) -> Ids:
    missing: Bools | None = None
    for kind in set(map(type, keys)):
        if not issubclass(kind, int | np.integer) or issubclass(kind, bool):
            missing = np.fromiter((is_missing(key) for key in keys), np.bool_, len(keys))
            break
    if missing is not None:
        for position, key in enumerate(keys):
            if not missing[position] and (
                not isinstance(key, int | np.integer) or isinstance(key, bool)
            ):
                raise no_key(name, position, key, "an int, as the others are")
        keys = [0 if gone else key for key, gone in zip(keys, missing, strict=True)]
    try:
        return ids_of(np.array(keys, np.int64), missing)
    except OverflowError:
        pass
    low, high = min(keys), max(keys)
    if low < -(1 << 63) or high > _MASK64:
        beyond = low if low < -(1 << 63) else high
        raise ArgumentError(f"{name}[{keys.index(beyond)}]: {beyond} does not fit 64 bits")
    if low < 0:
        raise ArgumentError(
            f"{name}: holds negative ids ({low}) and ids of 2^63 or more ({high}); as 64-bit"
            " patterns these would be the same keys: use one of the two ranges"
        )
    return ids_of(np.array(keys, np.uint64), missing)


@functools.cache
def _c_api() -> bool:
    """Whether strings can be read through CPython's C API (else by join and encode)."""
    if sys.implementation.name != "cpython":
        return False
    import ctypes

    return all(
        hasattr(ctypes.pythonapi, function)
        for function in (
            "PyGILState_Ensure",
            "PyErr_Clear",
            "PyList_GetItem",
            "PyUnicode_AsUTF8AndSize",
            "PyBytes_AsStringAndSize",
        )
    )


def _from_str_list(keys: list[Any], name: str, *, of_bytes: bool) -> Iterator[Chunk]:
    if not _c_api():
        for begin in range(0, len(keys), BLOCK):
            yield _joined(keys[begin : begin + BLOCK], name, begin, of_bytes=of_bytes)
        return
    pack = pack_list_serial(of_bytes)
    buffer = np.empty(1 << 21, np.uint8)
    offsets = np.empty(min(len(keys), BLOCK) + 1, np.int64)
    result = np.empty(2, np.intp)
    begin = 0
    while begin < len(keys):
        block, start = keys, begin
        n, done, end = min(BLOCK, len(keys) - begin), 0, 0
        missing: Bools | None = None
        while done < n:
            done, end = pack(id(block), start, done, n, end, offsets, buffer, result)
            if done == n:
                break
            key = block[start + done]
            if is_missing(key) and missing is None:
                block, start = keys[begin : begin + n], 0
                missing = np.fromiter((is_missing(item) for item in block), np.bool_, n)
                empty: str | bytes = b"" if of_bytes else ""
                block = [empty if gone else k for k, gone in zip(block, missing, strict=True)]
                continue
            size = len(_encoded(key, name, begin + done, of_bytes=of_bytes))
            if done > 0 and end + size > _BLOCK_BYTES:
                n = done  # a block of long strings ends early
                break
            larger = np.empty(max(2 * len(buffer), end + size), np.uint8)
            larger[:end] = buffer[:end]
            buffer = larger
        view = offsets[: n + 1]
        mask = None if missing is None else missing[:n]
        yield Strings(buffer.ctypes.data, view, EMPTY_LENGTHS, (buffer, view), mask)
        begin += n


def _encoded(key: object, name: str, position: int, *, of_bytes: bool) -> bytes:
    """One key's bytes, or the error that names what it is."""
    if of_bytes:
        if not isinstance(key, bytes):
            raise no_key(name, position, key, "bytes, as the first key is")
        return key
    if not isinstance(key, str):
        raise no_key(name, position, key, "str, as the first key is")
    try:
        return key.encode()
    except UnicodeEncodeError:
        raise _lone_surrogate(name, position, key) from None


def _joined(keys: list[Any], name: str, begin: int, *, of_bytes: bool) -> Strings:
    """The slow way that any Python can go."""
    missing = np.fromiter((is_missing(key) for key in keys), np.bool_, len(keys))
    parts = [
        b"" if gone else _encoded(key, name, begin + i, of_bytes=of_bytes)
        for i, (key, gone) in enumerate(zip(keys, missing, strict=True))
    ]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    data = np.frombuffer(b"".join(parts), np.uint8)
    return Strings(
        data.ctypes.data, offsets, EMPTY_LENGTHS, data, missing if missing.any() else None
    )


def _lone_surrogate(name: str, position: int, key: str) -> ArgumentError:
    code = next((ord(c) for c in key if 0xD800 <= ord(c) < 0xE000), None)
    what = "a code point beyond Unicode" if code is None else f"the lone surrogate U+{code:04X}"
    return ArgumentError(
        f"{name}[{position}]: {key[:40]!a} holds {what}, which UTF-8 cannot encode;"
        " pass bytes, or encode with errors='surrogatepass' yourself"
    )
