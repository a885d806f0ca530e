"""Without torch: the import fails with one line that says what to install."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules["torch"] = None
import sparse_embed
try:
    import sparse_embed.torch
except sparse_embed.MissingExtraError as error:
    assert isinstance(error, ImportError)
    print(error)
"""


def test_import_names_the_extra():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sparse_embed.torch needs PyTorch: pip install 'sparse-embed[torch]'\n"


def test_the_package_itself_does_not_import_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, sparse_embed; assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
