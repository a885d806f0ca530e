"""Every CUDA kernel compiles for sm_80 and sm_90, to code that the contract needs.

No GPU and no driver is asked, only the compiler that the extra "cuda" brings.  The simulator runs
code that does not compile; this is the other half.
"""

from __future__ import annotations

import importlib.util
import os
import re

import pytest

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip('no numba-cuda: pip install "sparse-embed[cuda]"', allow_module_level=True)
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator has no compiler", allow_module_level=True)

from tests.gpu import ptx
from tests.gpu.kernel_list import entries

# One kernel of each family on rows that are not a multiple of 4 columns, and wider than a tile.
_OTHER_SHAPES = (
    r"^(gather|pool|backward|columns_lazy_adam|rows_row_wise_adam|(bfloat16|int8)_pool"
    r"|bfloat16_bfloat16_stochastic_lazy_adam|float16_float32_stochastic_lazy_adam)-"
)


def _all():
    whole = entries((64,))
    return whole + [entry for entry in entries((257,)) if re.match(_OTHER_SHAPES, entry.name)]


def _check(entry):
    for architecture, source in ptx.to_ptx(entry.kernel, entry.signature).items():
        lines = ptx.instructions(source)
        assert len(lines) > 10

        def count(pattern, lines=lines):
            return sum(1 for line in lines if re.search(pattern, line))

        assert f".target sm_{architecture}" in source
        assert entry.doubles or not count(r"\.f64\b"), "float64 in a float32 kernel"
        assert not count(r"\bfma\."), "a * b + c was contracted"
        assert not count(r"\.approx|\.ftz"), "an approximate function"
        assert not count(r"\b(add|sub|mul)\.f32"), "without .rn ptxas may contract it"
        assert not count(r"\b(atom|red)\.[a-z.]*f32"), "a float atomic"
        assert not count(r"^call\b"), "a call that was not inlined"
        if entry.name.endswith("-64") and re.match(
            "gather|pool-|columns|rows|backward-", entry.name
        ):
            assert count(r"ld\.global(\.cs)?\.v4\.f32"), "no 16-byte loads"
            assert count(r"st\.global(\.cs)?\.v4\.f32"), "no 16-byte stores"
        threads, blocks = entry.kernel.targetoptions["launch_bounds"] or (256, 1)
        most = min(255, 65536 // (threads * blocks) // 8 * 8)
        code = ptx.assemble(source, architecture, most)
        threads = 1024 if entry.name == "scan" else 256
        assert code["registers"] * threads <= 65536, code
        assert code["spills"] == 0, code
        assert code["stack"] == 0, code


def test_the_compiler_is_told_not_to_contract_until_the_end():
    """What is linked as NVVM's intermediate code is contracted by the linker."""
    for entry in entries((64,)):
        assert entry.kernel.targetoptions["lto"] is False, entry.name


@pytest.mark.parametrize("entry", _all(), ids=lambda entry: entry.name)
def test_compiles_to_what_the_contract_needs(entry):
    _check(entry)


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", [e for d in (3, 1028) for e in entries((d,)) if e.name.endswith(f"-{d}")],
    ids=lambda entry: entry.name,
)  # fmt: skip
def test_compiles_for_other_rows(entry):
    _check(entry)
