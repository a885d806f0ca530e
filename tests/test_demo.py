"""The demo: names are found in code alone, and it beats popularity, the same every time."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from sparse_embed import demo
from sparse_embed.errors import SparseEmbedError


def test_names_in_code_only():
    source = '''
    """A module about bananas."""
    import os  # apples
    def walk(top, followlinks=r"cherry\\"", *, f'date{x}'):
        """Doc "of" walk."""
        self.__init__(topdown, 0x1F, ab) or \'\'\'eggs \\\'\'\' fig\'\'\'
        return os.path.__wrapped
    '''
    assert demo.names_in(source) == {
        "walk",
        "top",
        "followlinks",
        "self",
        "topdown",
        "path",
        "__wrapped",
    }


def test_read_library(tmp_path):
    for number in range(30):
        shared = "\n".join(f"name_{k} = 1" for k in range(number, number + 6))
        (tmp_path / f"file_{number}.py").write_text(shared + f"\nonly_once_{number} = 2")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text("name_3 = 1")
    (tmp_path / "broken.py").write_bytes(b"\xff\xfe name_3")
    seen = []
    library = demo.read_library(lambda *at: seen.append(at), root=str(tmp_path))
    assert seen[-1] == (31, 31)
    # Names 0, 1, 33 and 34 are in fewer than 3 files: the first and last file fall short of 5.
    assert set(library.files) == {f"file_{number}.py" for number in range(1, 29)}
    assert "name_5" in library.names
    assert "only_once_3" not in library.names
    assert library.pairs.shape == (28, demo.NUM_ROWS)
    row_of = dict(zip(library.names, library.rows.tolist(), strict=True))
    first = library.files.index("file_4.py")
    assert row_of["name_5"] in library.pairs[[first]].indices


def test_a_python_without_sources(tmp_path):
    with pytest.raises(SparseEmbedError, match="without its sources"):
        demo.read_library(root=str(tmp_path))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The demo run twice through its steps, with few epochs."""
    library = demo.read_library()
    train, test = demo.hold_out(library, seed=0)
    found = []
    for name in ("one", "two"):
        path = tmp_path_factory.mktemp("demo") / name
        model = demo.make_model(path, seed=0, epochs=12)
        demo.fit(model, train)
        commits = demo.close(model)
        quality = demo.compare(path, train, test)
        found.append((quality, demo.neighbours(path, library, train), commits, path))
    return found


def test_it_beats_popularity_clearly(results):
    quality = results[0][0]
    popular, ours = quality.values()
    for metric in demo.METRICS:
        assert ours[metric] > 2 * popular[metric]


def test_the_same_every_time(results):
    assert results[0][:3] == results[1][:3]
    assert results[0][2] >= 12  # one an epoch


def test_neighbours_and_disk(results):
    _, neighbours, _, path = results[0]
    assert len(neighbours) >= 3
    assert all(name not in near and len(near) == 5 for name, near in neighbours.items())
    size = demo.disk_usage(path)
    assert size["apparent_bytes"] > 10**10
    assert size["allocated_bytes"] < 10**8
    assert np.load(path / "items.npy", mmap_mode="r")["weight"].shape == (demo.NUM_ROWS, 65)


def test_the_command(tmp_path, monkeypatch, capfd):
    from sparse_embed.cli import main

    monkeypatch.setattr("faulthandler.enable", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sparse-embed", "demo", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, capfd.readouterr()

    path = tmp_path / "kept"
    code, output = run("--json", "--epochs", "2", "--path", str(path))
    assert code in (0, None)
    facts = json.loads(output.out)
    assert facts["path"] == str(path)
    assert (path / "store.json").exists()
    code, output = run("--epochs", "2", "--path", str(path))
    assert code == 1
    assert "error:" in output.err
    assert "Traceback" not in output.err
    code, output = run("--epochs", "2", "--path", str(tmp_path / "gone"), "--temp")
    assert code in (0, None)
    assert "recall@20" in output.out
    assert not (tmp_path / "gone").exists()
