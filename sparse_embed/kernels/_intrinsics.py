"""What plain Numba cannot say: raw rows, stack arrays, prefetch, float bits, an atomic counter.

row_pointer(matrix, row)      pointer to the first element of a row of a C-contiguous 2-D array
first(array)                  pointer to the first element of a contiguous 1-D array
p[d], p[d] = x                load and store through it: no bounds, no negative-index test
at(p, lanes)                  the pointer `lanes` further
stack_f32(count)              pointer to `count` float32 on the stack; a compile-time count
prefetch_read(p), _write(p)   ask for one cache line; never faults, whatever the address
stream_4(to, p)               copy four words past the caches; `streams_done` before others look
bits(x), from_bits(u)         float32 <-> uint32, the same 32 bits
next_chunk(counter, i)        counter[i], then counter[i] += 1, atomically (int64 array)
prefetch_lines(p, n, write)   the lines of n float32; n a compile-time int
prefetch(matrix, row, write)  the first cache line of a row
unlikely(condition)           the condition; what it guards is moved out of the loop's way
"""

from __future__ import annotations

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparse_embed.kernels._jit import device_function

_F32 = types.CPointer(types.float32)


@intrinsic
def row_pointer(typing_context, matrix, row):
    """Pointer to `matrix[row, 0]`; `matrix` is a C-contiguous 2-D array."""
    signature = types.CPointer(matrix.dtype)(matrix, types.int64)

    def codegen(context, builder, sig, args):
        array = context.make_array(sig.args[0])(context, builder, args[0])
        (_, columns) = cgutils.unpack_tuple(builder, array.shape, 2)
        return builder.gep(array.data, [builder.mul(args[1], columns)])

    return signature, codegen


@intrinsic
def first(typing_context, array):
    """Pointer to `array[0]`; `array` is a contiguous 1-D array."""

    def codegen(context, builder, sig, args):
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def at(typing_context, pointer, lanes):
    """The pointer `lanes` elements further."""
    signature = pointer(pointer, types.int64)

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return signature, codegen


@intrinsic
def stack_f32(typing_context, count):
    """Pointer to `count` uninitialised float32 on the stack, aligned to a cache line."""
    if not isinstance(count, types.IntegerLiteral):
        raise numba.errors.RequireLiteralValue("stack_f32: `count` must be a compile-time constant")
    lanes = count.literal_value

    def codegen(context, builder, sig, args):
        with builder.goto_entry_block():
            slot = builder.alloca(ir.ArrayType(ir.FloatType(), lanes))
            slot.align = 64
        return builder.bitcast(slot, ir.FloatType().as_pointer())

    return _F32(count), codegen


def _prefetch(builder, pointer, write):
    module = builder.module
    byte_pointer = ir.IntType(8).as_pointer()
    i32 = ir.IntType(32)
    function = cgutils.get_or_insert_function(
        module, ir.FunctionType(ir.VoidType(), [byte_pointer, i32, i32, i32]), "llvm.prefetch.p0"
    )
    address = builder.bitcast(pointer, byte_pointer)
    builder.call(function, [address, i32(write), i32(3), i32(1)])


@intrinsic
def prefetch_read(typing_context, pointer):
    """Ask for the cache line at `pointer`, to be read soon."""

    def codegen(context, builder, sig, args):
        _prefetch(builder, args[0], 0)
        return context.get_dummy_value()

    return types.void(pointer), codegen


@intrinsic
def prefetch_write(typing_context, pointer):
    """Ask for the cache line at `pointer`, to be written soon."""

    def codegen(context, builder, sig, args):
        _prefetch(builder, args[0], 1)
        return context.get_dummy_value()

    return types.void(pointer), codegen


@intrinsic
def stream_4(typing_context, to, source):
    """Copy four uint64 past the caches, which memory that is only written need not go through.

    `to` is a multiple of 32.  Other threads see it for sure after `streams_done`.
    """

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(ir.IntType(64), 4).as_pointer()
        value = builder.load(builder.bitcast(args[1], kind), align=8)
        store = builder.store(value, builder.bitcast(args[0], kind), align=32)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(to, source), codegen


@intrinsic
def streams_done(typing_context):
    """What this thread streamed is in memory."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def bits(typing_context, value):
    """The 32 bits of a float32 as uint32."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def from_bits(typing_context, value):
    """The float32 with these 32 bits."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def next_chunk(typing_context, counter, which):
    """`counter[which]` before an atomic increment: threads draw their chunks' numbers from it.

    Which thread draws which number changes from run to run; what a chunk computes does not.  Who
    draws a number sees everything that was written before smaller ones were drawn.
    """

    def codegen(context, builder, sig, args):
        array = context.make_array(sig.args[0])(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        return builder.atomic_rmw("add", place, ir.IntType(64)(1), "acq_rel")

    return types.int64(counter, types.int64), codegen


@intrinsic
def unlikely(typing_context, condition):
    """The condition, hardly ever true: LLVM keeps its branch out of the registers of the loop."""

    def codegen(context, builder, sig, args):
        i1 = ir.IntType(1)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(i1, [i1, i1]), "llvm.expect.i1"
        )
        return builder.call(function, [args[0], i1(0)])

    return types.boolean(types.boolean), codegen


@device_function
def prefetch(matrix, row, write):
    """Ask for the first cache line of a row of a C-contiguous matrix of any dtype."""
    if write:
        prefetch_write(row_pointer(matrix, row))
    else:
        prefetch_read(row_pointer(matrix, row))


@intrinsic
def prefetch_lines(typing_context, pointer, lanes, write):
    """Ask for the cache lines of `lanes` float32 from `pointer` on, 16 lines at the most; `write`
    is 0 or 1, and both are compile-time ints."""
    if not isinstance(lanes, types.IntegerLiteral):
        raise numba.errors.RequireLiteralValue("prefetch: `lanes` must be a compile-time int")
    lines = min(-(-lanes.literal_value // 16), 16)

    def codegen(context, builder, sig, args):
        for line in range(lines):
            address = builder.gep(args[0], [ir.IntType(64)(16 * line)])
            _prefetch(builder, address, int(write.literal_value))
        return context.get_dummy_value()

    return types.void(pointer, lanes, write), codegen


@device_function
def prefetch_row(matrix, row, lanes):
    """Ask for the first `lanes` float32 of a row, a line at a time, 16 lines at the most.

    `lanes` is a compile-time int.  Further lines are left to the hardware: it has seen the stream
    by then.
    """
    prefetch_lines(row_pointer(matrix, row), lanes, 0)


@device_function
def prefetch_row_write(matrix, row, lanes):
    """As `prefetch_row`, for a row that will be written."""
    prefetch_lines(row_pointer(matrix, row), lanes, 1)


@intrinsic
def add_products_16(typing_context, lanes, a, b):
    """lanes[j] += a[j] * b[j] for j < 16, as one vector (LLVM's SLP pass is off in Numba)."""

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), 16)
        pointers = [builder.bitcast(arg, vector.as_pointer()) for arg in args]
        left, right = builder.load(pointers[1], align=4), builder.load(pointers[2], align=4)
        total = builder.fadd(builder.load(pointers[0], align=64), builder.fmul(left, right))
        builder.store(total, pointers[0], align=64)
        return context.get_dummy_value()

    return types.void(lanes, a, b), codegen
