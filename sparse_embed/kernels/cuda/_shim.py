"""What imports CUDA: numba-cuda, or what stands in its place under `numba.cuda`.

Its kernels keep to what numba-cuda, its successor and Numba's built-in target share, and the
simulator (NUMBA_ENABLE_CUDASIM=1) too.  What differs is levelled here:

    cuda_kernel        `cuda.jit` without contraction of a * b + c to fma: no public option says
                       so, hence one NVVM option is added while a kernel of ours is compiled
    word_at, word_of   the bits of a row's first float, or of another
    load4, store4      16-byte accesses (`ld.global.v4.f32`); one by one in the simulator
    load4_once, store4_once    the same, first to leave the caches (`ld.global.cs`)
    load2, store2      8 bytes, as words; store_half: 2 bytes
    sync_block         syncthreads, for functions that kernels of other modules call
    sync_lanes(mask)   __syncwarp; in the simulator, where a block is one group, its syncthreads
    ballot_lanes       the votes of a warp; in the simulator a warp is one thread
    open_card          memory, copies and launches: `_driver`, or `_simulated`

Square roots and divisions are NVVM's default, correctly rounded, as on the CPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import threading
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import cuda, types
from numba.core import cgutils
from numba.extending import intrinsic

from sparse_embed.kernels._jit import device_function

SIMULATED: bool = bool(numba.config.ENABLE_CUDASIM)
HAS_PACKAGE: bool = importlib.util.find_spec("numba_cuda") is not None or SIMULATED

WARP = 32
THREADS = 4 if SIMULATED else 256
"""Threads of a block."""
ITEMS = 16 if SIMULATED else 8
"""Entries of a thread in sorts and scans, consecutive ones."""
LANES = 1 if SIMULATED else WARP
"""Lanes that `ballot_lanes` asks: a warp, of one thread in the simulator."""
IN_FLIGHT = 4
"""Gradients that a group of lanes has asked for before it adds the first."""
BLOCKS = 2 if SIMULATED else 132 * 16
"""Blocks of a grid at the most; kernels go on in strides of the grid."""


def blocks_for(items: int, per_block: int) -> int:
    """Blocks of a grid for this many items."""
    return max(1, min(BLOCKS, -(-items // per_block)))


if SIMULATED:

    def load4(matrix, row, column):
        """Four floats from a 16-byte boundary."""
        assert column % 4 == 0 and matrix.shape[1] % 4 == 0
        return tuple(matrix[row, column + v] for v in range(4))

    def store4(matrix, row, column, a, b, c, d):
        """Four floats to a 16-byte boundary."""
        assert column % 4 == 0 and matrix.shape[1] % 4 == 0
        for v, value in enumerate((a, b, c, d)):
            matrix[row, column + v] = value

    load4_once, store4_once = load4, store4

    def sync_lanes(mask):
        """All lanes of the group have come here, and see each other's stores."""
        threading.current_thread().syncthreads()

    def load2(matrix, row, column):
        """The bits of two floats from an 8-byte boundary."""
        assert column % 2 == 0 and matrix.shape[1] % 2 == 0
        return tuple(matrix[row, column + v].view(np.uint32) for v in range(2))

    def store2(matrix, row, column, a, b):
        """The bits of two floats to an 8-byte boundary."""
        assert column % 2 == 0 and matrix.shape[1] % 2 == 0
        for v, value in enumerate((a, b)):
            matrix._ary.view(np.uint32)[row, column + v] = value

    def store_half(matrix, row, place, half):
        """The half of this number in a row."""
        matrix._ary.view(np.uint16)[row, place] = half

    def word_of(matrix, row, column):
        """The bits of a float."""
        return matrix[row, column].view(np.uint32)

    def word_at(matrix, row):
        """The bits of a row's first float."""
        return word_of(matrix, row, 0)

    def ballot_lanes(flag):
        """The lanes of the warp that say yes, as bits."""
        return np.uint32(1 if flag else 0)

    def sync_warp():
        """All lanes of the warp have come here, and see each other's stores."""

    def sync_block():
        """All threads of the block have come here, and see each other's stores."""
        threading.current_thread().syncthreads()

else:
    _WORD = ir.IntType(32)
    _FOUR, _TWO = ir.VectorType(ir.FloatType(), 4), ir.VectorType(_WORD, 2)

    def _pointer(context, builder, array_type, array, row, column, kind):
        struct = context.make_array(array_type)(context, builder, array)
        columns = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
        place = builder.add(builder.mul(row, columns), column)
        return builder.bitcast(builder.gep(struct.data, [place]), kind.as_pointer())

    @intrinsic
    def load4(typing_context, matrix, row, column):
        """Four floats from a 16-byte boundary."""
        signature = types.UniTuple(types.float32, 4)(matrix, types.int64, types.int64)

        def codegen(context, builder, sig, args):
            place = _pointer(context, builder, sig.args[0], *args, _FOUR)
            vector = builder.load(place, align=16)
            lanes = [builder.extract_element(vector, _WORD(v)) for v in range(4)]
            return context.make_tuple(builder, sig.return_type, lanes)

        return signature, codegen

    @intrinsic
    def load2(typing_context, matrix, row, column):
        """The bits of two floats from an 8-byte boundary."""
        signature = types.UniTuple(types.uint32, 2)(matrix, types.int64, types.int64)

        def codegen(context, builder, sig, args):
            place = _pointer(context, builder, sig.args[0], *args, _TWO)
            vector = builder.load(place, align=8)
            words = [builder.extract_element(vector, _WORD(v)) for v in range(2)]
            return context.make_tuple(builder, sig.return_type, words)

        return signature, codegen

    @intrinsic
    def store2(typing_context, matrix, row, column, a, b):
        """The bits of two floats to an 8-byte boundary."""
        u4 = types.uint32
        signature = types.void(matrix, types.int64, types.int64, u4, u4)

        def codegen(context, builder, sig, args):
            vector = ir.Constant(_TWO, ir.Undefined)
            for v in range(2):
                vector = builder.insert_element(vector, args[3 + v], _WORD(v))
            place = _pointer(context, builder, sig.args[0], *args[:3], _TWO)
            builder.store(vector, place, align=8)
            return context.get_dummy_value()

        return signature, codegen

    @intrinsic
    def store_half(typing_context, matrix, row, place, half):
        """The half of this number in a row."""
        signature = types.void(matrix, types.int64, types.int64, types.uint16)

        def codegen(context, builder, sig, args):
            begin = _pointer(
                context, builder, sig.args[0], *args[:2], ir.IntType(64)(0), ir.IntType(16)
            )
            builder.store(args[3], builder.gep(begin, [args[2]]), align=2)
            return context.get_dummy_value()

        return signature, codegen

    @intrinsic
    def word_of(typing_context, matrix, row, column):
        """The bits of a float."""
        signature = types.uint32(matrix, types.int64, types.int64)

        def codegen(context, builder, sig, args):
            place = _pointer(context, builder, sig.args[0], *args, _WORD)
            return builder.load(place, align=4)

        return signature, codegen

    @intrinsic
    def word_at(typing_context, matrix, row):
        """The bits of a row's first float; its address is the row's."""
        signature = types.uint32(matrix, types.int64)

        def codegen(context, builder, sig, args):
            place = _pointer(context, builder, sig.args[0], *args, ir.IntType(64)(0), _WORD)
            return builder.load(place, align=4)

        return signature, codegen

    @intrinsic
    def store4(typing_context, matrix, row, column, a, b, c, d):
        """Four floats to a 16-byte boundary."""
        f4 = types.float32
        signature = types.void(matrix, types.int64, types.int64, f4, f4, f4, f4)

        def codegen(context, builder, sig, args):
            vector = ir.Constant(_FOUR, ir.Undefined)
            for v in range(4):
                vector = builder.insert_element(vector, args[3 + v], _WORD(v))
            place = _pointer(context, builder, sig.args[0], *args[:3], _FOUR)
            builder.store(vector, place, align=16)
            return context.get_dummy_value()

        return signature, codegen

    @intrinsic
    def load4_once(typing_context, matrix, row, column):
        """As `load4`."""
        signature = types.UniTuple(types.float32, 4)(matrix, types.int64, types.int64)

        def codegen(context, builder, sig, args):
            place = _pointer(context, builder, sig.args[0], *args, _FOUR)
            kind = ir.FunctionType(ir.LiteralStructType([ir.FloatType()] * 4), [place.type])
            code = "ld.global.cs.v4.f32 {$0, $1, $2, $3}, [$4];"
            asm = ir.InlineAsm(kind, code, "=f,=f,=f,=f,l,~{memory}", side_effect=True)
            found = builder.call(asm, [place])
            lanes = [builder.extract_value(found, v) for v in range(4)]
            return context.make_tuple(builder, sig.return_type, lanes)

        return signature, codegen

    @intrinsic
    def store4_once(typing_context, matrix, row, column, a, b, c, d):
        """As `store4`."""
        f4 = types.float32
        signature = types.void(matrix, types.int64, types.int64, f4, f4, f4, f4)

        def codegen(context, builder, sig, args):
            place = _pointer(context, builder, sig.args[0], *args[:3], _FOUR)
            kind = ir.FunctionType(ir.VoidType(), [place.type, *[ir.FloatType()] * 4])
            code = "st.global.cs.v4.f32 [$0], {$1, $2, $3, $4};"
            asm = ir.InlineAsm(kind, code, "l,f,f,f,f,~{memory}", side_effect=True)
            builder.call(asm, [place, *args[3:]])
            return context.get_dummy_value()

        return signature, codegen

    @device_function
    def sync_lanes(mask):
        """All lanes of the group have come here, and see each other's stores."""
        cuda.syncwarp(mask)

    @device_function
    def ballot_lanes(flag):
        """The lanes of the warp that say yes, as bits."""
        return np.uint32(cuda.ballot_sync(0xFFFFFFFF, flag))

    @device_function
    def sync_warp():
        """All lanes of the warp have come here, and see each other's stores."""
        cuda.syncwarp(0xFFFFFFFF)

    @device_function
    def sync_block():
        """All threads of the block have come here, and see each other's stores."""
        cuda.syncthreads()


@contextlib.contextmanager
def without_contraction():
    """What is compiled inside is compiled with NVVM's -fma=0.

    Holds the compiler's lock meanwhile, so that nobody else's kernel can be compiled inside.
    """
    if SIMULATED:
        yield
        return
    from numba.cuda.cudadrv import nvvm

    try:
        from numba.cuda.core.compiler_lock import global_compiler_lock
    except ImportError:  # the built-in target shares Numba's
        from numba.core.compiler_lock import global_compiler_lock

    with global_compiler_lock:
        compile_ir = nvvm.compile_ir

        def compile_exactly(source, **options):
            return compile_ir(source, **{**options, "fma": False})

        nvvm.compile_ir = compile_exactly
        try:
            yield
        finally:
            nvvm.compile_ir = compile_ir


def cuda_kernel(function: Any, resident: int = 1) -> Any:
    """A kernel, compiled when it is first launched, by `Card.launch`.

    resident: blocks of THREADS that a multiprocessor shall hold at a time, which limits registers.

    Refuses nothing at import: without a driver the first launch fails.
    """
    if SIMULATED:
        return cuda.jit(function)
    options: dict[str, Any] = {"cache": True}
    known = inspect.signature(cuda.jit).parameters
    if resident > 1 and "launch_bounds" in known:
        options["launch_bounds"] = (THREADS, resident)
    if "lto" in known:
        options["lto"] = False  # the linker would generate the code, and contract
    if "digest" not in function.__code__.co_freevars:
        raise TypeError(f"{function.__qualname__} must close over `digest`: see kernels/_jit.py")
    # jit(**options)(function) would drop "lto" on the way (numba-cuda 0.30).
    try:
        kernel = cuda.jit(function, **options)
    except RuntimeError:  # no writable directory for the cache: compile in every process
        kernel = cuda.jit(function, **{**options, "cache": False})
    compile_plainly = kernel.compile

    def compile_exactly(signature: Any) -> Any:
        with without_contraction():
            return compile_plainly(signature)

    kernel.compile = compile_exactly
    kernel.launchers = {}
    return kernel


def open_card(index: int) -> Any:
    """A GPU, or the simulator's."""
    if SIMULATED:
        from sparse_embed.kernels.cuda import _simulated

        return _simulated.Card(index)
    from sparse_embed.kernels.cuda import _driver

    return _driver.Card(index)


def driver_facts() -> dict[str, Any]:
    """Driver, toolkit and devices, or under "problem" why there are none."""
    try:
        if not cuda.is_available():
            from numba.cuda.cudadrv import driver

            error = getattr(driver.driver, "initialization_error", None)
            reason = str(error).strip().splitlines()[0] if error else "no GPU is visible"
            return {"devices": [], "problem": reason.rstrip(": ")}
        facts: dict[str, Any] = {"devices": []}
        with contextlib.suppress(Exception):
            facts["toolkit"] = ".".join(map(str, cuda.runtime.get_version()))
        with contextlib.suppress(Exception):
            from numba.cuda.cudadrv.driver import driver

            facts["driver"] = ".".join(map(str, driver.get_version()))
        for gpu in cuda.list_devices():
            name = gpu.name.decode() if isinstance(gpu.name, bytes) else str(gpu.name)
            capability = ".".join(map(str, gpu.compute_capability))
            facts["devices"].append(f"{name} (compute capability {capability})")
        return facts
    except Exception as error:
        return {"devices": [], "problem": f"{type(error).__name__}: {error}".splitlines()[0]}
