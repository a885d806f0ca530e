"""The bytes: golden values of the format, round trips, and what decoders refuse."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from sparse_embed.errors import (
    ArgumentError,
    CorruptStoreError,
    NotAStoreError,
    UnsupportedVersionError,
)
from sparse_embed.storage import frame, manifest
from sparse_embed.storage.layout import DATA_START, Layout


def test_xxh64_golden_values():
    # From the specification's own test vectors (lengths that are multiples of 8).
    assert frame.checksum(b"", 0) == 0xEF46DB3751D8E999
    data = bytes(range(64))
    assert frame.checksum(data, 0) == 0xF7C67301DB6713F0
    assert frame.checksum(data, 1) != frame.checksum(data, 0)


def test_segment_header_bytes():
    header = frame.SegmentHeader(7, 12, bytes(range(16)), 0x1122334455667788, 99)
    data = header.encode()
    assert len(data) == 4096
    assert data[:16] == b"\x93SEWAL\r\n\x01\x00\x00\x00\x00\x00\x00\x00"
    assert struct.unpack_from("<QQ", data, 16) == (7, 12)
    assert data[32:48] == bytes(range(16))
    assert struct.unpack_from("<QQ", data, 48) == (0x1122334455667788, 99)
    assert frame.SegmentHeader.decode(data) == header
    assert frame.SegmentHeader.decode(data[:-1]) is None


def test_segment_header_of_a_later_version():
    body = bytearray(frame.SegmentHeader(1, 1, bytes(16), 5, 0).encode())
    body[8] = 9
    body[-8:] = struct.pack("<Q", frame.checksum(bytes(body[:-8]), 0))
    assert frame.SegmentHeader.decode(bytes(body)) == 9


def test_every_flipped_bit_of_a_header_is_noticed():
    segment = frame.SegmentHeader(7, 12, bytes(range(16)), 3, 99).encode()
    head = frame.FrameHeader(4, 640, 100, 5, 6).encode()
    assert frame.FrameHeader.decode(head) == frame.FrameHeader(4, 640, 100, 5, 6)
    for bit in range(8 * len(head)):
        damaged = bytearray(head)
        damaged[bit // 8] ^= 1 << bit % 8
        assert frame.FrameHeader.decode(bytes(damaged)) is None
    for bit in [*range(0, 64 * 8), *range(64 * 8, 4096 * 8, 97), *range(4088 * 8, 4096 * 8)]:
        damaged = bytearray(segment)
        damaged[bit // 8] ^= 1 << bit % 8
        assert frame.SegmentHeader.decode(bytes(damaged)) is None


def _meta(**changes) -> bytes:
    said = {
        "tables": {
            "t": {
                "step": 3,
                "lr": 0.5,
                "rows": 2,
                "record_bytes": 16,
                "indices_at": 0,
                "records_at": 64,
            }
        },
        "arrays": [{"name": "a", "dtype": "<f4", "shape": [2, 3], "at": 128}],
        "metadata": {},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = said
        for key in parents:
            at = at[int(key) if isinstance(at, list) else key]
        at[last] = value
    return json.dumps(said).encode()


def test_meta_that_fits():
    meta = frame.Meta.decode(_meta(), 2048)
    assert meta.tables["t"].rows == 2
    assert meta.arrays[0].nbytes == 24


@pytest.mark.parametrize(
    "changes",
    [
        {"tables__t__rows": 10**6},
        {"tables__t__rows": -1},
        {"tables__t__rows": True},
        {"tables__t__rows": 2.0},
        {"tables__t__rows": 1 << 70},
        {"tables__t__record_bytes": 1 << 40},
        {"tables__t__indices_at": 2000},
        {"tables__t__records_at": -64},
        {"tables__t__step": -1},
        {"tables__t__step": "3"},
        {"tables__t__step": 1 << 63},
        {"tables__t__lr": float("nan")},
        {"tables__t__lr": float("inf")},
        {"tables__t__lr": None},
        {"tables__t__extra": 1},
        {"tables": []},
        {"tables__t": 5},
        {"arrays": {}},
        {"arrays__0__dtype": "O"},
        {"arrays__0__dtype": "|O8"},
        {"arrays__0__dtype": "(1,"},
        {"arrays__0__dtype": "f4,f4"},
        {"arrays__0__dtype": "<f3"},
        {"arrays__0__dtype": "|V8"},
        {"arrays__0__dtype": 4},
        {"arrays__0__shape": [1 << 40, 1 << 40]},
        {"arrays__0__shape": [-1, 3]},
        {"arrays__0__shape": 3},
        {"arrays__0__shape": [2.5]},
        {"arrays__0__at": 1 << 20},
        {"metadata": []},
        {"metadata": None},
    ],
    ids=str,
)
def test_meta_that_does_not_fit_its_frame(changes):
    errors = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
    data = _meta(**changes)
    if changes == {"arrays": {}}:
        assert frame.Meta.decode(data, 2048).arrays == ()
        return
    with pytest.raises(errors):  # noqa: PT012
        meta = frame.Meta.decode(data, 2048)
        meta.arrays[0].nbytes  # noqa: B018 - "<f3" matches the pattern; NumPy refuses it


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"x"', b"{", b"\xff", b"[" * 100_000])
def test_meta_that_is_not_an_object(data):
    errors = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
    with pytest.raises(errors):
        frame.Meta.decode(data, 1 << 20)


def test_layout_is_a_plain_npy_header(tmp_path):
    layout = Layout(1000, 3, (("weight", 3), ("exp_avg", 3), ("sum", 1)))
    assert layout.record_bytes == 32
    header = layout.npy_header()
    assert len(header) == DATA_START
    path = tmp_path / "x.npy"
    path.write_bytes(header.ljust(layout.file_bytes, b"\0"))
    data = np.load(path, mmap_mode="r")
    assert data.shape == (1000,)
    assert data.dtype == layout.dtype()
    assert data["weight"].shape == (1000, 3)
    assert data["sum"].shape == (1000,)


def test_layout_refuses_names_beyond_its_header():
    with pytest.raises(ArgumentError, match="header"):
        Layout(10, 1, (("weight", 1), ("x" * 5000, 1))).npy_header()


def _store_json() -> dict:
    entry = manifest.TableEntry(
        num_embeddings=10,
        embedding_dim=2,
        dtype="float32",
        init={"name": "uniform"},
        seed=2**64 - 1,
        optimizer=None,
        fields=(("sum", 2),),
    )
    state = manifest.CommitState({"t": (3, 0.5)}, {"a": 1})
    arrays = manifest.ArraysFile("arrays-000003.npz", 10, "00")
    whole = manifest.Manifest(bytes(16), {"t": entry}, 3, 4, state, arrays)
    data = manifest.encode(whole)
    assert manifest.decode(data, "x") == whole
    return json.loads(data)


def _signed(body: dict) -> bytes:
    body.pop("checksum", None)
    body["checksum"] = manifest._checksum(body)
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("folded", -1),
        ("folded", 5),
        ("folded", "3"),
        ("folded", True),
        ("folding", 1 << 62),
        ("uuid", "00"),
        ("uuid", 5),
        ("uuid", "zz" * 16),
        ("unknown", 1),
        ("tables", []),
        ("tables/t", None),
        ("tables/t/file", "../t.npy"),
        ("tables/t/num_embeddings", 0),
        ("tables/t/num_embeddings", 1 << 62),
        ("tables/t/num_embeddings", 1.5),
        ("tables/t/embedding_dim", 1 << 40),
        ("tables/t/embedding_dim", 0),
        ("tables/t/dtype", "bfloat16"),
        ("tables/t/rounding", "nearest"),
        ("tables/t/record_bytes", 8),
        ("tables/t/fields", [["sum", 0]]),
        ("tables/t/fields", [["sum", 1 << 50]]),
        ("tables/t/fields", [["weight", 1]]),
        ("tables/t/fields", [["sum", 1], ["sum", 1]]),
        ("tables/t/fields", 3),
        ("tables/t/init", 3),
        ("tables/t/seed", -1),
        ("tables/t/seed", 1 << 64),
        ("state", None),
        ("state/tables/t", {"step": 1}),
        ("state/tables/t/step", -1),
        ("state/tables/t/lr", "x"),
        ("state/tables/t/lr", 10**400),
        ("state/metadata", 7),
        ("arrays", {"file": "a"}),
        ("arrays/file", "../../etc/passwd"),
        ("arrays/bytes", -1),
        ("arrays/bytes", 1 << 50),
        ("arrays", 3),
    ],
)
def test_store_json_with_a_valid_checksum_and_a_wrong_field(path, value):
    body = _store_json()
    at = body
    *parents, last = path.split("/")
    for key in parents:
        at = at[key]
    at[last] = value
    with pytest.raises(CorruptStoreError, match="field"):
        manifest.decode(_signed(body), "store.json")


def test_store_json_of_another_kind():
    with pytest.raises(NotAStoreError, match="format"):
        manifest.decode(b"{}", "x")
    with pytest.raises(NotAStoreError):
        manifest.decode(b"[1]", "x")
    for data in (b"", b"{", b"\xff\xfe", b"[" * 1_000_000):
        with pytest.raises(CorruptStoreError, match="JSON"):
            manifest.decode(data, "x")
    body = _store_json()
    body["version"] = 2
    with pytest.raises(UnsupportedVersionError, match="upgrade"):
        manifest.decode(json.dumps(body).encode(), "x")
    for where, dtype in (("dtype", "float8"), ("state_dtype", "float16")):
        body = _store_json()
        body["tables"]["t"][where] = dtype
        with pytest.raises(UnsupportedVersionError, match=f"{dtype}.*this package knows"):
            manifest.decode(_signed(body), "x")
    body = _store_json()
    body["folded"] = 2
    with pytest.raises(CorruptStoreError, match="checksum"):
        manifest.decode(json.dumps(body).encode(), "x")
    body = _store_json()
    body["state"]["metadata"] = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(CorruptStoreError):
        manifest.decode(json.dumps(body).encode(), "x")


def test_every_flipped_bit_of_store_json_is_noticed():
    data = json.dumps(_store_json(), indent=1).encode()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            same = json.loads(damaged) == json.loads(data)
        except ValueError:
            same = False
        if same:  # white space
            continue
        with pytest.raises((CorruptStoreError, NotAStoreError, UnsupportedVersionError)):
            manifest.decode(bytes(damaged), "store.json")
