"""Compile kernels to PTX, and PTX to machine code, without a GPU."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

from sparse_embed.kernels.cuda._shim import without_contraction

ARCHITECTURES = ("80", "90")


def to_ptx(kernel: Any, signature: Any) -> dict[str, str]:
    """PTX of a kernel as it is launched, by architecture.

    Numba's half, which takes longest, runs once.  Compiling a device function asks the current
    device for its capability: one stub.
    """
    from numba.cuda import compiler, dispatcher
    from numba.cuda.cudadrv import nvvm

    found: dict[str, str] = {}
    device = mock.Mock(compute_capability=(9, 0))
    stub = mock.patch.object(dispatcher, "get_current_device", return_value=device)
    with stub, without_contraction():
        compile_ir = nvvm.compile_ir

        def compile_for_all(source: Any, **options: Any) -> Any:
            for architecture in ARCHITECTURES:
                code = compile_ir(source, **{**options, "arch": f"compute_{architecture}"})
                found[architecture] = code.decode() if isinstance(code, bytes) else str(code)
            return code

        with mock.patch.object(nvvm, "compile_ir", compile_for_all):
            compiler.compile(
                kernel.py_func, signature, device=False, cc=(9, 0), abi="numba", output="ptx"
            )
    return found


def instructions(ptx: str) -> list[str]:
    """The instructions' lines: no directives, no names of kernels and parameters."""
    lines = [line.strip() for line in ptx.splitlines()]
    return [line for line in lines if re.match(r"(@!?%p\d+ )?[a-z]+[a-z0-9_.]*\s", line)]


def assemble(ptx: str, architecture: str, registers: int = 255) -> dict[str, int]:
    """What ptxas says of a kernel's machine code: registers, bytes of stack and of spills."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{architecture}", "-verbose", f"-maxrregcount={registers}"]
    handle = nvjitlink.create(len(options), options)
    try:
        source = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, source, len(source), "kernel")
        nvjitlink.complete(handle)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    text = log.decode(errors="replace")

    def number(pattern: str) -> int:
        match = re.search(pattern, text)
        assert match, text
        return int(match.group(1))

    return {
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
    }
