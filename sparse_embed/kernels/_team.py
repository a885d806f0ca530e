"""A kernel's call, made by every thread at once.

    kernel(*args)   =   on each of the threads:  body(*args)

The body draws its share of the work from a counter that all threads see (`next_chunk`), so it makes
no difference how many threads there are, or whether some come late or not at all.  The argument
called `counter` also says how many there is work for: one chunk wakes nobody.

Why not `parallel=True`: Numba then takes loops out of the function, compiles each as a function of
its own and its caller again, and LLVM optimises the body once for each of the layers: two thirds of
the time that everybody waits for a first result.  Here the body is compiled once, as it stands, and
a few lines of LLVM hand it to Numba's threads (TBB, OpenMP or its own), which are used as
`parallel=True` uses them: `numba.set_num_threads`, forks and nested calls behave alike.

On Linux the threads also part (`_part`): a thread that is woken on the processor of the thread that
woke it waits there for the scheduler's next tick, 4 ms at 250 Hz, while another processor is idle.
With TBB on 2 processors that befell every second call, and a call of 2 ms took 3 in the median.
"""

from __future__ import annotations

import ctypes
import sys

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.core.callwrapper import PyCallWrapper
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import NativeLowering
from numba.np.ufunc.parallel import _launch_threads, threading_layer

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = _I8.as_pointer()
_SHARE = ir.FunctionType(
    ir.VoidType(), [_BYTES.as_pointer(), _I64.as_pointer(), _I64.as_pointer(), _BYTES]
)
_PARTING = sys.platform == "linux"
_SET = 128  # bytes of a cpu_set_t; beyond its 1024 processors nothing is moved
_caller_works = ctypes.c_int64(0)  # 1: the calling thread is one of the team


def start_threads() -> None:
    """Numba's threads, and the names by which compiled code finds them; once a process."""
    _launch_threads()
    _caller_works.value = int(threading_layer() != "workqueue")  # there it sleeps meanwhile
    binding.add_symbol("sparse_embed_caller_works", ctypes.addressof(_caller_works))


def _external(module, result, name, *arguments):
    return cgutils.get_or_insert_function(module, ir.FunctionType(result, arguments), name)


def _part(module):
    """void part(home, caller): to different processors, before the work begins.

    The caller, on processor `home`, lets a thread run that was woken there; that thread then goes
    to any other processor that it may use.  What it may use is as before when this returns.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_I64, _I64]), "team.part")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    home, caller = function.args
    everywhere = builder.alloca(ir.ArrayType(_I8, _SET))
    elsewhere = builder.alloca(ir.ArrayType(_I8, _SET))
    size, me = _I64(_SET), _I32(0)
    own = builder.call(_external(module, _I64, "pthread_self"), [])
    with builder.if_then(builder.icmp_signed("==", own, caller)):
        builder.call(_external(module, _I32, "sched_yield"), [])
        builder.ret_void()
    here = builder.sext(builder.call(_external(module, _I32, "sched_getcpu"), []), _I64)
    with builder.if_then(builder.icmp_signed("!=", here, home), likely=True):
        builder.ret_void()
    get = _external(module, _I32, "sched_getaffinity", _I32, _I64, _BYTES)
    put = _external(module, _I32, "sched_setaffinity", _I32, _I64, _BYTES)
    all_of_it, rest = builder.bitcast(everywhere, _BYTES), builder.bitcast(elsewhere, _BYTES)
    failed = builder.call(get, [me, size, all_of_it])
    with builder.if_then(builder.icmp_signed("!=", failed, _I32(0)), likely=False):
        builder.ret_void()
    cgutils.raw_memcpy(builder, rest, all_of_it, size, 1)
    byte = builder.gep(rest, [builder.lshr(home, _I64(3))])
    bit = builder.shl(_I8(1), builder.trunc(builder.and_(home, _I64(7)), _I8))
    builder.store(builder.and_(builder.load(byte), builder.not_(bit)), byte)
    builder.call(put, [me, size, rest])  # fails where there is no other processor
    builder.call(put, [me, size, all_of_it])
    builder.ret_void()
    return function


def _share(module, body, packed):
    """void share(places, sizes, steps, arguments): what a thread runs."""
    function = ir.Function(module, _SHARE, name=body.name + ".share")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    arguments = builder.bitcast(function.args[3], packed.as_pointer())
    *given, status, home, caller = (
        cgutils.gep_inbounds(builder, arguments, 0, i) for i in range(len(packed.elements))
    )
    if _PARTING:
        builder.call(_part(module), [builder.load(home), builder.load(caller)])
    result = builder.alloca(body.function_type.args[0].pointee)  # of a body that returns nothing
    failed = builder.call(body, [result, *(builder.load(place) for place in given)])
    with builder.if_then(cgutils.is_true(builder, failed), likely=False):
        builder.store(failed, status)
    builder.ret_void()
    return function


def _home(module, builder, threads):
    """For `_part`: the processor of the calling thread, and the thread; -1, 0: nothing to do."""
    home, caller = (cgutils.alloca_once_value(builder, _I64(value)) for value in (-1, 0))
    if _PARTING:
        works = ir.GlobalVariable(module, _I64, "sparse_embed_caller_works")
        several = builder.icmp_signed(">", threads, _I64(1))
        with builder.if_then(builder.and_(several, cgutils.is_true(builder, builder.load(works)))):
            here = builder.call(_external(module, _I32, "sched_getcpu"), [])
            builder.store(builder.sext(here, _I64), home)
            builder.store(builder.call(_external(module, _I64, "pthread_self"), []), caller)
    return builder.load(home), builder.load(caller)


def _borrowed(context, builder, kind, value):
    """An argument; an array without its owner, so that LLVM sees nothing to count references of.

    Two threads that counted in one place took twice as long as one; and a call that finds nothing
    to count still costs every row some registers.
    """
    if not isinstance(kind, types.Array):
        return value
    array = context.make_array(kind)(context, builder, value)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    return array._getvalue()


def _at_work(context, builder, fndesc, function):
    """How many threads: as many as are set, but no more than counter[2] (`_jit.new_counter`)."""
    values = context.get_arg_packer(fndesc.argtypes).from_arguments(builder, function.args[2:])
    place = fndesc.args.index("counter")
    counter = context.make_array(fndesc.argtypes[place])(context, builder, values[place])
    most = builder.load(builder.gep(counter.data, [_I64(2)]))
    threads = builder.call(_external(builder.module, _I64, "get_num_threads"), [])
    return builder.select(builder.icmp_signed("<", most, threads), most, threads)


def _call_on_threads(context, module, fndesc, body):
    """A function of the body's signature that has every thread call it."""
    given = body.function_type.args[1:]  # all but the place of the result: the error's, arguments
    packed = ir.LiteralStructType([*given, body.function_type.return_type, _I64, _I64])
    share = _share(module, body, packed)
    function = ir.Function(module, body.function_type, name=body.name + ".team")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    threads = _at_work(context, builder, fndesc, function)
    run = cgutils.get_or_insert_function(
        module, ir.FunctionType(ir.VoidType(), [_BYTES] * 5 + [_I64] * 3), "numba_parallel_for"
    )
    arguments = builder.alloca(packed)
    status = body.function_type.return_type(0)
    home = _home(module, builder, threads)
    for i, value in enumerate([*function.args[1:], status, *home]):
        builder.store(value, cgutils.gep_inbounds(builder, arguments, 0, i))
    nothing = builder.alloca(_BYTES)
    builder.store(_BYTES(None), nothing)
    size, step = builder.alloca(_I64), builder.alloca(_I64)
    builder.store(threads, size)
    builder.store(_I64(0), step)
    pointers = [builder.bitcast(p, _BYTES) for p in (share, nothing, size, step, arguments)]
    alone = builder.icmp_signed("<=", threads, _I64(1))
    with builder.if_else(alone) as (then, otherwise):
        with then:
            places = builder.bitcast(nothing, _SHARE.args[0])
            builder.call(share, [places, size, step, pointers[-1]])
        with otherwise:
            builder.call(run, [*pointers, _I64(0), _I64(1), threads])
    builder.ret(builder.load(cgutils.gep_inbounds(builder, arguments, 0, len(given))))
    return function


class _TeamLower(Lower):
    def extract_function_arguments(self):
        given = super().extract_function_arguments()
        self.fnargs = [
            _borrowed(self.context, self.builder, kind, value)
            for kind, value in zip(self.fndesc.argtypes, given, strict=True)
        ]
        return self.fnargs

    def create_cpython_wrapper(self, release_gil=False):
        """As Lower's, which calls the body itself."""
        start_threads()
        context, fndesc = self.context, self.fndesc
        module = context.create_module("wrapper")
        signature = context.call_conv.get_function_type(fndesc.restype, fndesc.argtypes)
        body = ir.Function(module, signature, fndesc.llvm_func_name)
        PyCallWrapper(
            context, module, _call_on_threads(context, module, fndesc, body), fndesc,
            self.env, call_helper=self.call_helper, release_gil=release_gil,
        ).build()  # fmt: skip
        self.library.add_ir_module(module)


@register_pass(mutates_CFG=True, analysis_only=False)
class _TeamLowering(NativeLowering):
    _name = "team_lowering"

    @property
    def lowering_class(self):
        return _TeamLower

    def run_pass(self, state):
        # No argument is written through another one (`_jit.team_kernel`).  Only now: formulas are
        # compiled once for all kernels whose flags are the same.
        state.flags = state.flags.copy()
        state.flags.noalias = True
        return super().run_pass(state)


class TeamCompiler(CompilerBase):
    """`pipeline_class` of a jitted function whose call is made by every thread."""

    def define_pipelines(self):
        self.state.reload_init.append(start_threads)
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [
            (_TeamLowering if step is NativeLowering else step, text)
            for step, text in pipeline.passes
        ]
        pipeline.finalize()
        return [pipeline]
