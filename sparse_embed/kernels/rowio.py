"""Many small reads and writes of one file, without Python between them.

Shapes   offsets (n,) i8: byte offset of each record in the file · data (n, b) u1: the records
Result   (position, code): the first record that failed, or (-1, 0); code is errno, or 0 where the
         file ended early.  pread and pwrite never raise SIGBUS, whatever becomes of the file.
Linux    POSIX_FADV_WILLNEED for every record before the first read lets the device work on as many
         at once as it can: 3x on a cold file, at half the processor time of as many threads.

The C library's functions are resolved by name when a kernel is compiled or loaded from the cache,
so this module imports everywhere and the kernels exist where pread does.
"""

from __future__ import annotations

import functools
import sys

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from sparse_embed.kernels._intrinsics import next_chunk
from sparse_embed.kernels._jit import (
    DIGEST,
    device_function,
    new_counter,
    serial_kernel,
    team_kernel,
)

Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_IO = types.intp(types.int32, types.voidptr, types.uintp, types.int64)
_pread = types.ExternalFunction("pread", _IO)
_pwrite = types.ExternalFunction("pwrite", _IO)
_fadvise = types.ExternalFunction(
    "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
)
_CHUNKS = 16
_WILLNEED = np.int32(3)
_HAS_FADVISE = sys.platform.startswith("linux")


@intrinsic
def _pointer(typingctx, address):
    """An address as a C `void *`."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.uint64), codegen


@intrinsic
def _errno(typingctx):
    """The calling thread's errno (glibc and musl: *__errno_location())."""

    def codegen(context, builder, signature, args):
        name = "__errno_location" if sys.platform.startswith("linux") else "__error"
        kind = ir.FunctionType(ir.IntType(32).as_pointer(), [])
        module = builder.module
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return builder.load(builder.call(function, []))

    return types.int32(), codegen


@device_function
def _run_end(offsets, size, begin, end):
    """The end of the run of records from `begin` that lie one behind the other in the file."""
    j = begin + 1
    while j < end and offsets[j] == offsets[j - 1] + size:
        j += 1
    return j


@device_function
def _read_run(fd, address, total, offset):
    """Read `total` bytes, however the kernel splits them: 0, errno, or -1 where the file ends."""
    done = np.int64(0)
    while done < total:
        where = _pointer(address + np.uint64(done))
        got = _pread(np.int32(fd), where, np.uint64(total - done), offset + done)
        if got < 0:
            return np.int64(_errno())
        if got == 0:
            return np.int64(-1)
        done += got
    return np.int64(0)


@device_function
def _advise(fd, offsets, size, begin, end):
    """Ask for the pages of records [begin, end); does not wait for the device."""
    i = begin
    while i < end:
        j = _run_end(offsets, size, i, end)
        _fadvise(np.int32(fd), offsets[i], np.int64((j - i) * size), _WILLNEED)
        i = j


@functools.cache
def advise_serial():
    """Linux only."""
    digest = DIGEST

    @serial_kernel
    def advise(fd, offsets, size):
        """Ask for the pages of records of `size` bytes, for a background thread."""
        digest  # noqa: B018
        _advise(fd, offsets, size, 0, offsets.shape[0])

    return advise


@functools.cache
def read_cpu():
    digest = DIGEST
    advise = _HAS_FADVISE

    @team_kernel
    def read(fd, offsets, data, counter, failed, codes):
        """failed[c], codes[c]: of the first record of chunk c that failed; else as they were."""
        digest  # noqa: B018 - a closure cell: part of the disk cache's key
        n, size = data.shape
        base = np.uint64(data.ctypes.data)
        if advise:
            while True:
                c = next_chunk(counter, 1)
                if c >= _CHUNKS:
                    break
                _advise(fd, offsets, size, n * c // _CHUNKS, n * (c + 1) // _CHUNKS)
        while True:
            c = next_chunk(counter, 0)
            if c >= _CHUNKS:
                break
            begin, end = n * c // _CHUNKS, n * (c + 1) // _CHUNKS
            i = begin
            while i < end:
                j = _run_end(offsets, size, i, end)
                total = np.int64((j - i) * size)
                code = _read_run(fd, base + np.uint64(i * size), total, offsets[i])
                if code != 0:
                    failed[c], codes[c] = i, max(code, np.int64(0))
                    break
                i = j

    return read


def read_records(fd: int, offsets: Int64, data: Bytes) -> tuple[int, int]:
    """data[i] = the bytes at offsets[i], by all threads; the result as above."""
    failed, codes = np.full(_CHUNKS, -1, np.int64), np.zeros(_CHUNKS, np.int64)
    read_cpu()(fd, offsets, data, new_counter(), failed, codes)
    first = int(np.argmax(failed >= 0))
    return int(failed[first]), int(codes[first])


@functools.cache
def read_serial():
    digest = DIGEST

    @serial_kernel
    def read(fd, offsets, data):
        """As read_cpu, for a background thread."""
        digest  # noqa: B018
        n, size = data.shape
        base = np.uint64(data.ctypes.data)
        i = 0
        while i < n:
            j = _run_end(offsets, size, i, n)
            total = np.int64((j - i) * size)
            code = _read_run(fd, base + np.uint64(i * size), total, offsets[i])
            if code != 0:
                return np.int64(i), max(code, np.int64(0))
            i = j
        return np.int64(-1), np.int64(0)

    return read


@functools.cache
def write_serial():
    digest = DIGEST

    @serial_kernel
    def write(fd, offsets, data):
        """Write each record at its offset; neighbours in the file go out in one call."""
        digest  # noqa: B018
        n, size = data.shape
        base = np.uint64(data.ctypes.data)
        i = 0
        while i < n:
            j = _run_end(offsets, size, i, n)
            done, total = np.int64(0), np.int64((j - i) * size)
            while done < total:
                where = _pointer(base + np.uint64(i * size) + np.uint64(done))
                put = _pwrite(np.int32(fd), where, np.uint64(total - done), offsets[i] + done)
                if put <= 0:
                    return np.int64(i), np.int64(_errno() if put < 0 else 0)
                done += put
            i = j
        return np.int64(-1), np.int64(0)

    return write
