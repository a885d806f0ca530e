"""A disk that is really full: a small tmpfs where we may mount one, and RLIMIT_FSIZE anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import files

DIM = 64
ROWS = 20_000


def make(path, rows=ROWS, cache=None):
    return se.EmbeddingTable.create(
        path, num_embeddings=rows, embedding_dim=DIM, optimizer=se.LazyAdam(0.1), cache_bytes=cache
    )


def train(table, n, count=2000):
    rng = np.random.default_rng(n)
    rows = rng.choice(table.num_embeddings, count, replace=False)
    table.update(rng.standard_normal((count, DIM)).astype(np.float32), rows)


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 64 MiB, and a file on it that leaves only so much room."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(where)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")

    class Disk:
        path = where / "m"

        def leave(self, room: int) -> None:
            """Fill the disk up to `room` free bytes."""
            self.free()
            facts = os.statvfs(where)
            size = facts.f_bavail * facts.f_frsize - room
            with (where / "ballast").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))

        def free(self) -> None:
            (where / "ballast").unlink(missing_ok=True)

    yield Disk()
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_commit_checkpoint_spill_and_create_on_a_full_disk(small_disk, tmp_path):
    table = make(small_disk.path)
    twin = se.EmbeddingTable.create(
        None, num_embeddings=ROWS, embedding_dim=DIM, optimizer=se.LazyAdam(0.1)
    )
    rows = np.arange(ROWS)
    for n in (1, 2):
        train(table, n, 1000)
        train(twin, n, 1000)
        table.commit()
    committed = twin.lookup(rows)

    small_disk.leave(200_000)  # commit
    train(table, 3, 1000)
    train(twin, 3, 1000)
    for wait in (True, False, True):
        with pytest.raises(OSError, match=r"journal.*No space left"):  # noqa: PT012
            table.commit(wait)
            table._core.flight.pending.wait()
            table.commit()
    assert table.last_commit == 2
    assert np.array_equal(table.lookup(rows), twin.lookup(rows))
    reader = se.EmbeddingTable.open(small_disk.path, "r")
    assert np.array_equal(reader.lookup(rows), committed)
    reader.close()
    small_disk.free()
    assert table.commit() == 3

    small_disk.leave(300_000)  # checkpoint
    with pytest.raises(OSError, match="No space left"):
        table.checkpoint()
    assert np.array_equal(table.lookup(rows), twin.lookup(rows))
    with pytest.raises(OSError, match="No space left"):
        table.close()
    with se.EmbeddingTable.open(small_disk.path) as table:  # a full disk is no reason not to open
        assert table.last_commit == 3
        assert np.array_equal(table.lookup(rows), twin.lookup(rows))
        small_disk.free()
        table.checkpoint()
    with se.EmbeddingTable.open(small_disk.path) as table:
        assert np.array_equal(table.lookup(rows), twin.lookup(rows))

    small_disk.leave(0)  # create
    with pytest.raises(OSError, match="No space left"):
        make(small_disk.path.with_name("other"))
    small_disk.free()
    make(small_disk.path.with_name("other")).close()


def test_spill_on_a_full_disk(small_disk, monkeypatch):
    monkeypatch.setattr("sparse_embed.storage.resident._SMALLEST", 1024)
    table = make(small_disk.path, cache=1 << 20)
    train(table, 1, 500)
    table.commit()
    rows = np.arange(ROWS)
    committed = table.lookup(rows)
    small_disk.leave(100_000)
    with pytest.raises(OSError, match=r"scratch.*No space left"):  # noqa: PT012
        for n in range(2, 40):
            train(table, n, 1000)
    table.rollback()
    assert np.array_equal(table.lookup(rows), committed)
    small_disk.free()
    for n in range(2, 6):
        train(table, n, 500)
    table.commit()
    done = table.lookup(rows)
    table.close()
    with se.EmbeddingTable.open(small_disk.path) as table:
        assert np.array_equal(table.lookup(rows), done)


_LIMITED = """
import json, resource, signal, sys
sys.path[:0] = {path!r}
import numpy as np
import sparse_embed as se
from tests.storage.test_full_disk import ROWS, make, train
where = {where!r}
rows = np.arange(ROWS)
facts = {{}}

def limit(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else hard, hard))

def refused(name, call):
    try:
        call()
    except OSError as error:
        facts[name] = str(error)
    else:
        facts[name] = None

limit(1 << 20)
refused("create", lambda: make(where))          # the data file's length is beyond the limit
limit(0)
table = make(where)
train(table, 1, 200)
table.commit()
before = table.lookup(rows)
limit(1 << 20)                                  # a file may have 1 MiB
train(table, 2, 3000)                           # 2.3 MB of records
refused("commit", table.commit)
facts["last_commit"] = table.last_commit
limit(0)
table.commit()
after = table.lookup(rows)
limit(1 << 20)
refused("checkpoint", table.checkpoint)
facts["same"] = bool(np.array_equal(table.lookup(rows), after))
limit(0)
table.close()
with se.EmbeddingTable.open(where) as table:
    facts["reopened"] = bool(np.array_equal(table.lookup(rows), after))
print(json.dumps(facts))
"""


def test_files_limited_in_size(tmp_path):
    """RLIMIT_FSIZE in a process of its own: EFBIG (and SIGXFSZ, which Python ignores)."""
    pytest.importorskip("resource")
    code = _LIMITED.format(path=sys.path, where=str(tmp_path / "m"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "num_embeddings" in facts["create"]
    assert "journal" in facts["commit"] and "File too large" in facts["commit"]
    assert "File too large" in facts["checkpoint"]
    assert facts["last_commit"] == 1
    assert facts["same"] and facts["reopened"]


def test_a_file_system_that_cannot_reserve_space(tmp_path, monkeypatch):
    def refuse(fd, offset, length):
        raise OSError(95, "not supported")

    monkeypatch.setattr(files.os, "posix_fallocate", refuse)
    table = make(tmp_path / "m")
    train(table, 1, 100)
    assert table.commit() == 1
    table.close()


def test_too_large_a_table_is_refused_early(tmp_path):
    if Path(tmp_path).stat().st_dev == 0:
        pytest.skip("unknown file system")
    with pytest.raises(se.StoreError, match="num_embeddings") as caught:
        make(tmp_path / "m", rows=2**60)
    assert caught.value.errno == 27
    assert not (tmp_path / "m").exists()
