"""The README's code runs as it stands, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sparse_embed.cli import cli

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_python_runs(tmp_path, monkeypatch):
    """All blocks in their order, in one namespace and an empty directory."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    found = blocks("python")
    assert len(found) >= 4
    for number, block in enumerate(found):
        exec(compile(block, f"README.md block {number}", "exec"), namespace)
    assert (tmp_path / "words.table" / "rows.npy").exists()
    assert (tmp_path / "model" / "users.npy").exists()
    assert (tmp_path / "taste" / "items.npy").exists()


def test_two_commands_of_one_line():
    first, second = blocks("console")[:2]
    for block in (first, second):
        assert block.count("\n") == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert first.endswith("-m sparse_embed demo\n")
    assert "-m pytest" in second


def test_commands_exist():
    commands = [line for block in blocks("console") for line in block.splitlines()]
    ours = [shlex.split(line)[1:] for line in commands if line.startswith("sparse-embed ")]
    assert ours
    for name, *arguments in ours:
        command = cli.commands[name]
        while isinstance(command, type(cli)):
            command, arguments = command.commands[arguments[0]], arguments[1:]
        # Parses without running: unknown options and missing arguments would raise.
        try:
            command.make_context(name, list(arguments), resilient_parsing=True)
        except Exception as error:
            pytest.fail(f"sparse-embed {name}: {error}")


def test_files_it_names_exist():
    package = README.parent / "sparse_embed"
    table = re.findall(r"^\| (`[^|]*`) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    for cell in table:
        for name in re.findall(r"`(.*?)`", cell):
            assert (package / name).exists(), name
