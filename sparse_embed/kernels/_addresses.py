"""Pointers from addresses: how one kernel reaches the rows of many tables.

    f32_at(address), u8_at(address), u64_at(address), i64_at(address)      int64 -> pointer
    prefetch_at(address, lanes, write)      a record's first `lanes` float32, a line at a time

The caller keeps the arrays alive.  Address 0 stands for no row; asking for it (prefetch) is free of
danger, reading it is not.
"""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from sparse_embed.kernels._intrinsics import prefetch_lines
from sparse_embed.kernels._jit import device_function


def _pointer_maker(element):
    @intrinsic
    def pointer(typing_context, address):
        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(element)(types.int64), codegen

    return pointer


f32_at = _pointer_maker(types.float32)
u8_at = _pointer_maker(types.uint8)
u64_at = _pointer_maker(types.uint64)
i64_at = _pointer_maker(types.int64)


@device_function
def prefetch_at(address, lanes, write):
    """Ask for the first `lanes` float32 at an address; `lanes` and `write` are compile-time."""
    prefetch_lines(f32_at(address), lanes, write)
