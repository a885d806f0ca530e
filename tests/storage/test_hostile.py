"""Damaged, truncated, foreign and malicious directories: a named error or an earlier commit, never
garbage, a hang, a crash, or memory beyond what the files hold."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.storage import files, frame, manifest
from sparse_embed.storage.data_file import DataFile
from sparse_embed.storage.layout import Layout

ROWS, DIM = 40, 4
LAST = 4  # commits 1 and 2 are folded, 3 and 4 are in the journal


def state(store: se.Store) -> tuple:
    table = store.tables["t"]
    return (
        store.last_commit,
        table.step,
        table.lookup(np.arange(ROWS)).tobytes(),
        table.state(np.arange(ROWS))["sum"].tobytes(),
        store.arrays["a"].tobytes(),
        json.dumps(store.metadata),
    )


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> tuple[Path, dict[int, tuple]]:
    """A small store, and what each commit that can be shown holds."""
    path = tmp_path_factory.mktemp("hostile") / "m"
    store = se.Store.create(path)
    table = store.create_table(
        "t", num_embeddings=ROWS, embedding_dim=DIM, optimizer=se.RowWiseAdagrad(0.1)
    )
    states = {}
    for n in range(1, LAST + 1):
        table.update(np.full((9, DIM), n, np.float32), np.arange(9) * n)
        store.arrays["a"] = np.arange(n)
        store.metadata["n"] = n
        store.commit()
        states[n] = state(store)
        if n == 2:
            store.checkpoint()
    store.close(checkpoint=False)
    return path, states


@pytest.fixture
def copy(origin, tmp_path) -> Path:
    shutil.copytree(origin[0], tmp_path / "m")
    return tmp_path / "m"


def journal_of(path: Path) -> Path:
    (found,) = path.glob("*.wal")
    return found


def look(path: Path, states: dict[int, tuple], exact_tail: bool = False) -> str:
    """Open for reading: "whole", "earlier" (and said so), or the error's name."""
    began = time.monotonic()
    try:
        store = se.Store.open(path, "r")
    except se.SparseEmbedError as error:
        assert str(path) in str(error) or "commit" in str(error) or "table" in str(error), error  # noqa: PT017
        return type(error).__name__
    finally:
        assert time.monotonic() - began < 20
    try:
        found = state(store)
        assert found == states[store.last_commit]
        if store.last_commit == LAST:
            return "whole"
        if not exact_tail:
            assert store.info()["notes"], "an earlier commit, and nothing is said"
        return "earlier"
    finally:
        store.close()


def flip(path: Path, whole: bytes, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        file.write(bytes([whole[bit // 8] ^ (1 << bit % 8)]))


def flip_all(directory, path, states, bits) -> dict[str, int]:
    whole = path.read_bytes()
    found: dict[str, int] = {}
    for bit in bits:
        flip(path, whole, bit)
        result = look(directory, states)
        found[result] = found.get(result, 0) + 1
        with path.open("r+b") as file:
            file.seek(bit // 8)
            file.write(whole[bit // 8 : bit // 8 + 1])
    assert path.read_bytes() == whole
    return found


def frames_of(path: Path) -> list[tuple[int, frame.FrameHeader]]:
    data = journal_of(path).read_bytes()
    at, found = 4096, []
    while at < len(data):
        header = frame.FrameHeader.decode(data[at : at + 64])
        assert header is not None
        found.append((at, header))
        at += frame.align(header.frame_bytes, 4096)
    return found


def test_the_untouched_store_is_whole(copy, origin):
    assert look(copy, origin[1]) == "whole"


def test_flipped_bits_of_store_json(copy, origin):
    path = copy / "store.json"
    found = flip_all(copy, path, origin[1], range(0, 8 * path.stat().st_size, 3))
    assert found.pop("whole", 0) < 900  # white space between the values
    assert set(found) <= {"CorruptStoreError", "NotAStoreError", "UnsupportedVersionError"}


def test_every_flipped_bit_of_a_data_files_header(tmp_path):
    directory = files.Directory(tmp_path)
    layout = Layout(ROWS, DIM, (("weight", DIM), ("sum", 1)))
    DataFile.create(directory, "t.npy", layout).close()
    path = tmp_path / "t.npy"
    whole = path.read_bytes()
    fd = os.open(path, os.O_RDWR)
    for bit in range(8 * 4096):
        os.pwrite(fd, bytes([whole[bit // 8] ^ (1 << bit % 8)]), bit // 8)
        with pytest.raises(se.CorruptStoreError, match="header"):
            DataFile.open(directory, "t.npy", layout, writable=False)
        os.pwrite(fd, whole[bit // 8 : bit // 8 + 1], bit // 8)
    os.close(fd)
    DataFile.open(directory, "t.npy", layout, writable=False).close()
    directory.close()


def test_flipped_bits_of_the_segment_header(copy, origin):
    bits = [*range(64 * 8), *range(64 * 8, 4088 * 8, 331), *range(4088 * 8, 4096 * 8)]
    found = flip_all(copy, journal_of(copy), origin[1], bits)
    assert set(found) == {"CorruptStoreError"}


def test_every_flipped_bit_of_the_last_commits_header_and_trailer(copy, origin):
    at, header = frames_of(copy)[-1]
    tail = at + header.frame_bytes - 64
    bits = [*range(8 * at, 8 * at + 512), *range(8 * tail, 8 * tail + 512)]
    found = flip_all(copy, journal_of(copy), origin[1], bits)
    assert found == {"earlier": 1024}


def test_flipped_bits_of_the_commit_before(copy, origin):
    at, header = frames_of(copy)[0]
    bits = range(8 * at, 8 * (at + header.frame_bytes), 11)
    found = flip_all(copy, journal_of(copy), origin[1], bits)
    assert set(found) == {"CorruptStoreError"}


def test_flipped_bits_of_meta_and_records(copy, origin):
    at, header = frames_of(copy)[-1]
    bits = range(8 * (at + 64), 8 * (at + header.frame_bytes - 64), 7)
    assert set(flip_all(copy, journal_of(copy), origin[1], bits)) == {"earlier"}


@pytest.mark.slow
def test_every_flipped_bit_of_the_journal_and_store_json(copy, origin):
    for path in (journal_of(copy), copy / "store.json"):
        found = flip_all(copy, path, origin[1], range(8 * path.stat().st_size))
        assert sum(found.values()) == 8 * path.stat().st_size
        assert found["CorruptStoreError"] > 1000


def test_flipped_bits_of_the_arrays(copy, origin):
    (path,) = copy.glob("*.npz")
    for journal in (True, False):  # without the journal, commit 2 is the last
        found = flip_all(copy, path, origin[1], range(0, 8 * path.stat().st_size, 5))
        # The journal's newest commit has arrays of its own; the file is read when there is none.
        assert set(found) == ({"whole"} if journal else {"CorruptStoreError"})
        if journal:
            body = json.loads((copy / "store.json").read_text())
            assert body["folding"] == body["folded"] == 2
            journal_of(copy).unlink()


def test_files_truncated_at_every_64_bytes(copy, origin):
    seen = set()
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for size in range(0, len(whole), 64):
            path.write_bytes(whole[:size])
            aligned = path.suffix == ".wal" and size % 4096 == 0  # nothing is left to tell
            seen.add((path.suffix, look(copy, origin[1], exact_tail=aligned)))
        path.write_bytes(whole)
    assert (".json", "CorruptStoreError") in seen
    assert (".npy", "CorruptStoreError") in seen
    assert (".npy", "whole") not in seen
    assert (".wal", "earlier") in seen
    assert (".wal", "CorruptStoreError") not in seen  # a lost tail is no damage


def test_files_made_longer(copy, origin):
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for extra in (b"\0", b"x" * 64, b"\0" * 4096, b"SEFRAME1" * 512):
            path.write_bytes(whole + extra)
            result = look(copy, origin[1])
            assert result in ("whole", "CorruptStoreError")
        path.write_bytes(whole)


def test_missing_files(copy, origin):
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        result = look(copy, origin[1], exact_tail=True)
        expected = {".json": "NotAStoreError", ".npy": "CorruptStoreError", ".wal": "earlier"}
        assert result == expected.get(path.suffix, "whole")
        path.write_bytes(whole)


def _random_strings(copy, states, count: int) -> dict[str, int]:
    rng = np.random.default_rng(0)
    found: dict[str, int] = {}
    paths = sorted(path for path in copy.iterdir() if path.name != "lock")
    for path in paths:
        whole = path.read_bytes()
        for i in range(count // len(paths)):
            data = rng.bytes(int(rng.integers(0, 200)))
            if i % 4 == 1:  # a true beginning
                data = whole[: int(rng.integers(0, len(whole)))] + data
            elif i % 4 == 2:  # a true file with a random stretch
                at = int(rng.integers(0, len(whole)))
                data = whole[:at] + data + whole[at + len(data) :]
            elif i % 4 == 3:  # the right length
                data = data.ljust(len(whole), b"\0")
            path.write_bytes(data)
            try:
                store = se.Store.open(copy, "r")
            except se.SparseEmbedError as error:
                name = type(error).__name__
            else:
                name = "opened"
                if path.suffix == ".npy":  # rows may differ: data files carry no checksum
                    assert data[:4096] == whole[:4096] and len(data) == len(whole)
                else:
                    assert state(store) == states[store.last_commit]
                store.close()
            found[name] = found.get(name, 0) + 1
        path.write_bytes(whole)
    return found


def test_random_bytes_as_any_file(copy, origin):
    found = _random_strings(copy, origin[1], 2000)
    assert sum(found.values()) == 2000
    assert found["CorruptStoreError"] > 500


@pytest.mark.slow
def test_ten_thousand_random_strings_as_files(copy, origin):
    assert sum(_random_strings(copy, origin[1], 10_000).values()) == 10_000


# ---- something else under a file's name ---------------------------------------------------------


def _put(kind: str, path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        folder = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        listener.close()
        os.close(folder)
    else:
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: reads never end
        except PermissionError:
            pytest.skip("making a device needs root")


@pytest.mark.parametrize(
    "name",
    [
        "store.json",
        "t.npy",
        "journal-000002.wal",
        "arrays-000002.npz",
        "lock",
        "journal-000009.wal",
    ],
)
@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "dangling", "socket", "device"])
def test_other_kinds_of_files(copy, name, kind):
    path = copy / name
    if path.exists():
        path.rename(copy / "elsewhere")
    if name.startswith("arrays"):
        journal_of(copy).unlink()
    _put(kind, path)
    for mode in ("r", "r+"):
        with pytest.raises(se.StoreError) as caught:
            se.Store.open(copy, mode)
        assert isinstance(caught.value, se.CorruptStoreError), caught.value
        assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling", "device"])
@pytest.mark.parametrize("name", ["store.json.tmp", "journal-000003.wal", "arrays-000004.npz.tmp"])
def test_other_kinds_of_files_where_we_write(copy, name, kind):
    """Put there while the store is open: the error is named, the store stays at its commits."""
    store = se.Store.open(copy)
    _put(kind, copy / name)
    table = store.tables["t"]
    table.update(np.ones((1, DIM), np.float32), [1])
    if name.endswith(".wal"):
        with pytest.raises(se.StoreError):
            store.commit()
    else:
        with pytest.raises(se.StoreError):
            store.checkpoint()
    store.rollback()
    assert store.last_commit == LAST
    store.close(checkpoint=False)


def test_a_store_that_is_a_link_to_a_file_or_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "absent", "loop", "x" * 300):
        with pytest.raises(se.StoreError, match="path"):
            se.Store.open(tmp_path / name)


# ---- valid checksums, wrong contents ------------------------------------------------------------


def forge(path: Path, edit) -> None:
    """Rewrite the last frame with edit(meta dict, data bytearray) and honest checksums."""
    journal = journal_of(path)
    data = journal.read_bytes()
    at, header = frames_of(path)[-1]
    start = at + frame.data_start(header.meta_bytes)
    meta = json.loads(data[at + 64 : at + 64 + header.meta_bytes])
    body = bytearray(data[start : at + header.frame_bytes - 64])
    edit(meta, body)
    encoded = json.dumps(meta).encode()
    size = frame.data_start(len(encoded)) + len(body) + 64
    head = frame.FrameHeader(header.commit, size, len(encoded), header.chain, header.salt)
    whole = (head.encode() + encoded).ljust(frame.data_start(len(encoded)), b"\0") + bytes(body)
    digest = frame.FrameDigest(header.salt)
    digest.update(np.frombuffer(whole, np.uint8))
    whole += frame.trailer(header.commit, digest.value())
    journal.write_bytes(data[:at] + whole.ljust(frame.align(len(whole), 4096), b"\0"))


def _set_rows(values):
    def edit(meta, body):
        at = meta["tables"]["t"]["indices_at"]
        count = meta["tables"]["t"]["rows"]
        rows = np.frombuffer(body, "<i8", count, at).copy()
        rows[: len(values)] = values
        body[at : at + 8 * count] = rows.tobytes()

    return edit


def test_a_forged_frame_that_is_honest_is_read(copy, origin):
    forge(copy, lambda meta, body: None)
    assert look(copy, origin[1]) == "whole"


@pytest.mark.parametrize(
    "rows", [[ROWS], [-1], [2**62], [-(2**63)], [2**63 - 1], [0, ROWS]], ids=str
)
def test_row_numbers_outside_the_table(copy, rows):
    forge(copy, _set_rows(rows))
    for mode in ("r", "r+"):
        with pytest.raises(se.CorruptStoreError, match=r"journal-000002\.wal.*names rows"):
            se.Store.open(copy, mode)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 10**15),
        ("rows", 2**63),
        ("rows", -5),
        ("record_bytes", 10**15),
        ("record_bytes", 0),
        ("record_bytes", 16),
        ("indices_at", 10**12),
        ("records_at", 10**12),
        ("records_at", -64),
        ("step", "x"),
        ("lr", "x"),
    ],
)
def test_lengths_beyond_the_frame(copy, origin, field, value):
    forge(copy, lambda meta, body: meta["tables"]["t"].__setitem__(field, value))
    tracemalloc.start()
    result = look(copy, origin[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result in ("earlier", "CorruptStoreError")
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [10**15]),
        ("shape", [2**40, 2**40]),
        ("shape", [0, 2**61]),
        ("shape", [1] * 100),
        ("dtype", "<f3"),
        ("dtype", "|V1000000000000"),
        ("dtype", "|O8"),
        ("dtype", "<U999999999"),
        ("at", 10**12),
        ("name", ["a"]),
    ],
)
def test_arrays_beyond_the_frame(copy, origin, field, value):
    forge(copy, lambda meta, body: meta["arrays"][0].__setitem__(field, value))
    assert look(copy, origin[1]) in ("earlier", "CorruptStoreError")


def test_a_table_that_store_json_does_not_know(copy, origin):
    def edit(meta, body):
        meta["tables"]["u"] = meta["tables"].pop("t")

    forge(copy, edit)
    assert look(copy, origin[1]) == "CorruptStoreError"


def _sign(path: Path, **changes) -> None:
    body = json.loads((path / "store.json").read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        at = body
        for parent in parents:
            at = at[parent]
        at[last] = value
    body.pop("checksum")
    body["checksum"] = manifest._checksum(body)
    (path / "store.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    "changes",
    [
        {"tables__t__num_embeddings": 10**12},
        {"tables__t__num_embeddings": ROWS + 1},
        {"tables__t__fields": []},
        {"tables__t__optimizer": None},
        {"tables__t__optimizer": {"name": "LazyAdam"}},
        {"tables__t__optimizer": {"name": "__import__"}},
        {"tables__t__init": {"name": "os.system"}},
        {"tables__t__init": {}},
        {"folded": 1, "folding": 1},
        {"folded": 2, "folding": 9},
        {"folded": 2**61, "folding": 2**61},
        {"arrays": None, "folded": 10, "folding": 10},
        {"uuid": "00" * 16},
    ],
    ids=str,
)
def test_a_signed_store_json_that_does_not_fit(copy, origin, changes):
    _sign(copy, **changes)
    for _ in range(2):  # and the failed open has let go of the lock
        try:
            with se.Store.open(copy) as store:
                # Journal and data files were folded further than said, or nothing contradicts.
                if "a" in store.arrays:
                    assert state(store)[1:] in [s[1:] for s in origin[1].values()]
                store.close(checkpoint=False)
        except se.SparseEmbedError as error:
            assert not isinstance(error, se.LockedError), error  # noqa: PT017


def test_an_archive_that_lies_about_its_sizes(copy):
    import hashlib
    import io
    import zipfile

    journal_of(copy).unlink()
    name = "arrays-000002.npz"
    bodies = [
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
        + b"\n",
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n"
        + b"x" * 8,
        b"",
        b"junk",
    ]
    archives = [b"", b"PK", b"x" * 100]
    for body in bodies:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("=a.npy", body)
        archives.append(out.getvalue())
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("=a.npy", b"\0" * 10**7)
    archives.append(out.getvalue())
    for data in archives:
        (copy / name).write_bytes(data)
        said = {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _sign(copy, arrays=said)
        tracemalloc.start()
        with pytest.raises(se.CorruptStoreError, match="arrays-000002"):
            se.Store.open(copy)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


def test_a_huge_sparse_segment_is_searched_in_no_time(copy, origin):
    """Holes are skipped: one file of 8 TiB must not cost 2^31 reads."""
    with (copy / "journal-000003.wal").open("wb") as file:
        file.truncate(8 << 40)
    assert look(copy, origin[1]) == "whole"
    os.truncate(copy / "journal-000002.wal", 8 << 40)
    assert look(copy, origin[1]) == "whole"
    (copy / "journal-000003.wal").unlink()


def test_a_huge_store_json_is_refused_before_it_is_read(copy, origin):
    os.truncate(copy / "store.json", 1 << 40)
    assert look(copy, origin[1]) == "CorruptStoreError"


def test_verify_finds_what_open_need_not(copy, origin):
    """Damage in the newest commit while the store is open, and padding that is not zero."""
    store = se.Store.open(copy)
    at, _ = frames_of(copy)[-1]
    journal = journal_of(copy)
    whole = journal.read_bytes()
    flip(journal, whole, 8 * (at + 200))
    with pytest.raises(se.CorruptStoreError, match=r"journal-000002\.wal.*commit 4"):
        store.verify()
    flip(journal, journal.read_bytes(), 8 * (at + 200))
    assert store.verify()["commits_in_journal"] == 2
    os.truncate(journal, at)
    with pytest.raises(se.CorruptStoreError, match="ends at commit 3"):
        store.verify()
    journal.write_bytes(whole)
    with (copy / "t.npy").open("r+b") as file:
        file.seek(4096 + store.info()["tables"]["t"]["record_bytes"] - 1)
        file.write(b"x")
    with pytest.raises(se.CorruptStoreError, match=r"t\.npy.*row 0.*padding"):
        store.verify()
    os.truncate(copy / "t.npy", 5000)
    with pytest.raises(se.CorruptStoreError, match=r"t\.npy.*bytes"):
        store.commit()
    with pytest.raises(se.CorruptStoreError, match=r"t\.npy"):
        store.verify()
    store.close(checkpoint=False)
