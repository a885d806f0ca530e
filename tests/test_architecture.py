"""The rules of the house, held by reading the sources: layers, docstrings, no prints.

Imports go down only.  A module may import its own layer where no cycle arises.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from pathlib import Path

import pytest

import sparse_embed as se

PACKAGE = Path(se.__file__).parent

LAYERS = [
    {"errors", "_typing"},
    {"kernels", "results"},
    {"device", "device_order", "device_scan"},
    {"_validate", "dtypes", "initializers", "optim", "reference"}
    | {"reference_formats", "reference_hashes", "reference_layers"},
    {"ops", "ops_merge", "keys"},
    {"ops_many"},
    {"sparse_grad", "storage", "batch", "commit"},
    {
        "execution",
        "executing",
        "cuda",
        "making",
        "table",
        "store",
        "bag",
        "layers",
        "export",
        "nearest",
        "quantize",
    },
    {"collection", "collection_batch", "collection_device", "collection_run"},
    {"recommend", "text", "torch", "demo"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Who calls kernels besides ops: hashing has its own, storage moves records, indices are checked by
# one, and recommenders have objectives of their own.  Others may only ask about threads.
DOORS = {
    "ops", "ops_merge", "ops_many", "layers", "keys", "storage", "_validate", "recommend", "text",
    "cuda", "device", "device_order", "device_scan",
}  # fmt: skip

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def names(path: Path) -> str:
    """The module's dotted name below the package."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def top(module: str) -> str:
    return module.split(".")[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


def _for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """Our modules that this one imports; `at_import`: outside of functions and type checking."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.stmt) and _for_types_only(node):
            waiting += node.orelse if isinstance(node, ast.If) else []
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    known = {names(other) for other in MODULES}
    ours: set[str] = set()
    for name in found:
        if name != "sparse_embed" and not name.startswith("sparse_embed."):
            continue
        inner = name.removeprefix("sparse_embed").removeprefix(".")
        while inner and inner not in known:
            inner = inner.rpartition(".")[0]
        ours.add(inner or "__init__")
    return ours


def test_every_module_has_a_layer():
    assert {top(names(path)) for path in MODULES} <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path):
    own = RANK[top(names(path))]
    for other in imported(path):
        assert RANK[top(other)] <= own, f"{path} imports {other}, which lies above it"


def test_no_cycles():
    """Taken with every import that runs when a module is loaded."""
    waits_for = {names(path): imported(path, at_import=True) - {names(path)} for path in MODULES}
    while waits_for:
        free = [name for name, others in waits_for.items() if not others & waits_for.keys()]
        assert free, f"these modules import each other in a circle: {sorted(waits_for)}"
        for name in free:
            del waits_for[name]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_who_may_know_whom(path):
    module, others = names(path), imported(path)
    tops = {top(other) for other in others} - {top(module)}
    if module.startswith("kernels."):
        allowed = {"kernels"} | ({"errors"} if module == "kernels._jit" else set())
        assert tops <= allowed, f"{path}: kernels know arrays only"
    if top(module).startswith("reference"):
        allowed = {"_typing", "reference", "reference_formats", "reference_hashes"}
        assert tops <= allowed, f"{path}: plain NumPy only"
    if top(module) == "storage":
        assert not tops & {"ops", "optim", "initializers"}, f"{path}: storage moves records only"
    if "kernels" in tops and top(module) not in DOORS:
        used = {other for other in others if top(other) == "kernels"}
        assert used <= {"kernels", "kernels._jit"}, f"{path}: kernels are called through ops"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_print_no_star_no_torch(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno}: the library does not print"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}: star"
        if isinstance(node, ast.Import | ast.ImportFrom) and top(names(path)) != "torch":
            text = ast.unparse(node)
            assert "torch" not in text.split(), f"{path}:{node.lineno}: only torch/ knows torch"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_says_what_it_is(path):
    if path.name != "__init__.py" or (PACKAGE / path).stat().st_size:
        assert ast.get_docstring(tree(path)), f"{path}: no docstring"


@pytest.mark.parametrize("name", sorted(se.__all__))
def test_every_public_name_has_a_docstring(name):
    value = getattr(se, name)
    assert inspect.getdoc(value), name
    if not inspect.isclass(value) or issubclass(value, Exception):
        return
    for attribute, member in vars(value).items():
        if attribute.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        assert inspect.getdoc(getattr(value, attribute)), f"{name}.{attribute}"


def test_no_utils():
    assert not [path for path in MODULES if path.stem in ("utils", "util", "helpers", "common")]
