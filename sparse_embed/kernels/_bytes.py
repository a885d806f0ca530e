"""Reading and copying bytes at an address.  Keys are bytes of any length at any alignment.

Kernels that hash strings get addresses as integers, not arrays: a list of strings, an Arrow buffer
and a view array all become the same call, and no buffer is copied to please a type.
Words are little-endian, as every published hash here defines them (big-endian hosts are refused
by `sparse_embed.keys`).  Nothing is ever read outside [address, address + length).
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

byte_function = numba.njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)
"""A formula on bytes at an address.  Unlike `device_function` it is compiled once per process, not
once for the kernel and once more for the body of its parallel loop (Numba compiles overloads per
set of flags): half a second less before the first hash.  Plain Python cannot read an address; the
twins are in `sparse_embed.reference_hashes`."""


def _loader(bits: int, result: types.Type):
    def load(typing_context, address):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer)
            value.align = 1
            return value

        return result(address), codegen

    return load


load_u8 = intrinsic(_loader(8, types.uint8))
load_u32 = intrinsic(_loader(32, types.uint32))
load_u64 = intrinsic(_loader(64, types.uint64))


@intrinsic
def store_u8(typing_context, address, value):
    """*(uint8_t *)address = value"""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        builder.store(args[1], pointer)
        return context.get_dummy_value()

    return types.void(address, types.uint8), codegen


@intrinsic
def copy_bytes(typing_context, target, source, count):
    """memcpy(target, source, count)"""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(
            builder,
            builder.inttoptr(args[0], byte),
            builder.inttoptr(args[1], byte),
            args[2],
            1,
        )
        return context.get_dummy_value()

    return types.void(target, source, count), codegen


@intrinsic
def prefetch_at(typing_context, address):
    """Ask for the cache line at an address, to be read soon; never faults."""

    def codegen(context, builder, signature, args):
        byte_pointer, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [builder.inttoptr(args[0], byte_pointer), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(address), codegen


@byte_function
def load_few(address, count):
    """The `count` < 8 bytes at `address` as a little-endian integer, in two or three loads."""
    if count >= 4:
        low = np.uint64(load_u32(address))
        high = np.uint64(load_u32(address + count - 4))
        return low | (high << np.uint64((count - 4) * 8))  # the overlap holds the same bits twice
    if count > 0:
        middle = count >> 1
        first = np.uint64(load_u8(address))
        second = np.uint64(load_u8(address + middle)) << np.uint64(middle * 8)
        last = np.uint64(load_u8(address + count - 1)) << np.uint64((count - 1) * 8)
        return first | second | last
    return np.uint64(0)
