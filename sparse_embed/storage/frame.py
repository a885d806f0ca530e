"""The journal's bytes: segment headers, commit frames, trailers.  Pure: no files here.

A journal is a sequence of segment files `journal-NNNNNN.wal`.  All integers are little-endian u64
unless said otherwise; checksums are XXH64.

Segment header, 4096 bytes at 0
       0  8s   magic 93 "SEWAL" 0D 0A       a text-mode copy or a foreign file shows at once
       8  u32  version          12 u32  1 when the file held an older segment before, else 0
      16  number of the segment             24  first commit that it may hold
      32  16s  uuid of the store            48  salt, random, of this segment
      56  chain: digest of the frame before the first one, 0 when there is none
    4088  checksum of the bytes 0..4087, seed 0

Version 1 has frames only; version 2 may have parts before them, which older readers refuse.

Frame, at a multiple of 4096, one per commit, commit numbers without gaps
       0  magic "SEFRAME1"       8  commit       16  frame_bytes: header to trailer, both included
      24  meta_bytes            32  chain: digest of the previous frame
      40  salt                  48  zero         56  checksum of the bytes 0..55, seed salt
      64  meta: JSON, then zeros to a multiple of 64
          sections, each at a multiple of 64 behind it, at the offsets that meta names (0 is the
          first byte behind meta): arrays; for each table its row numbers (n,) i8, then its records
          (n, record_bytes)
     -64  trailer: magic "SEFRAMEE", commit, digest, zeros

digest = XXH64(seed salt) over the XXH64 (seed salt) of each 1 MiB block of the frame without its
trailer.  So a frame is valid only whole, in its own segment, after its own predecessor: bytes of an
older use of the same disk blocks, or of the same file (spares.py), never pass.

Part, like a frame but for its magic "SEPART01": rows of the commit whose number it has, written
ahead of it in the same segment.  meta has no arrays or metadata; tables are those with rows in it,
and their step and lr say nothing.  Parts are links of the chain like frames: the first one's is the
digest of the previous frame, a frame's that of its last part.  So a commit is whole only with all
its parts, and parts without their frame are an unfinished commit.  Of a row that is in several, the
last one counts.

    meta = {"tables": {NAME: {"step", "lr", "rows", "record_bytes", "indices_at", "records_at"}},
            "arrays": [{"name", "dtype", "shape", "at"}], "metadata": {…}}
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels._jit import new_counter
from sparse_embed.kernels.checksum import block_digests_cpu, block_digests_serial, xxh64_cpu

BLOCK = 4096
HEADER = 64
TRAILER = 64
DIGEST_BLOCK = 1 << 20
SEGMENT_MAGIC = b"\x93SEWAL\r\n"
FRAME_MAGIC = b"SEFRAME1"
PART_MAGIC = b"SEPART01"
TRAILER_MAGIC = b"SEFRAMEE"
VERSION, VERSION_WITH_PARTS = 1, 2
META_LIMIT = 32 << 20

_SEGMENT = struct.Struct("<8sIIQQ16sQQ")
_FRAME = struct.Struct("<8sQQQQQQ")
_TRAILER = struct.Struct("<8sQQ40x")
_NAME = re.compile(r"journal-(\d{6,18})\.wal", re.ASCII)
_DTYPE = re.compile(r"[<>|][biufcSUmM]\d{1,9}(\[\d*[a-zA-Z]+\])?")


def segment_name(number: int) -> str:
    return f"journal-{number:06d}.wal"


def segment_number(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def align(n: int, to: int = 64) -> int:
    return -(-n // to) * to


def checksum(data: bytes, seed: int) -> int:
    """XXH64 of bytes whose length is a multiple of 8."""
    return int(xxh64_cpu()(np.frombuffer(data, np.uint64), np.uint64(seed)))


@dataclass(frozen=True)
class SegmentHeader:
    number: int
    first_commit: int
    uuid: bytes
    salt: int
    chain: int
    reused: bool = False
    parts: bool = False  # may there be any?

    def encode(self) -> bytes:
        body = _SEGMENT.pack(
            SEGMENT_MAGIC,
            VERSION_WITH_PARTS if self.parts else VERSION,
            self.reused,
            self.number,
            self.first_commit,
            self.uuid,
            self.salt,
            self.chain,
        ).ljust(BLOCK - 8, b"\0")
        return body + struct.pack("<Q", checksum(body, 0))

    @staticmethod
    def decode(data: bytes) -> SegmentHeader | int | None:
        """The header; the version number when it is a newer one; None when it is not a header."""
        if len(data) != BLOCK or data[:8] != SEGMENT_MAGIC:
            return None
        if checksum(data[:-8], 0) != int.from_bytes(data[-8:], "little"):
            return None
        _, version, reused, number, first, uuid, salt, chain = _SEGMENT.unpack_from(data)
        if version not in (VERSION, VERSION_WITH_PARTS):
            return int(version)
        parts = version == VERSION_WITH_PARTS
        return SegmentHeader(number, first, uuid, salt, chain, reused == 1, parts)


@dataclass(frozen=True)
class FrameHeader:
    commit: int
    frame_bytes: int
    meta_bytes: int
    chain: int
    salt: int
    part: bool = False

    def encode(self) -> bytes:
        body = _FRAME.pack(
            PART_MAGIC if self.part else FRAME_MAGIC,
            self.commit,
            self.frame_bytes,
            self.meta_bytes,
            self.chain,
            self.salt,
            0,
        )
        return body + struct.pack("<Q", checksum(body, self.salt))

    @staticmethod
    def decode(data: bytes) -> FrameHeader | None:
        if len(data) != HEADER or data[:8] not in (FRAME_MAGIC, PART_MAGIC):
            return None
        magic, commit, frame_bytes, meta_bytes, chain, salt, zero = _FRAME.unpack_from(data)
        if zero or checksum(data[:56], salt) != int.from_bytes(data[56:], "little"):
            return None
        if frame_bytes % 64 or frame_bytes < HEADER + TRAILER or meta_bytes > META_LIMIT:
            return None
        if HEADER + align(meta_bytes) + TRAILER > frame_bytes:
            return None
        return FrameHeader(commit, frame_bytes, meta_bytes, chain, salt, magic == PART_MAGIC)


def trailer(commit: int, digest: int) -> bytes:
    return _TRAILER.pack(TRAILER_MAGIC, commit, digest)


class FrameDigest:
    """The digest of a frame, fed in pieces of whole MiB but for the last."""

    def __init__(self, salt: int) -> None:
        self._salt = np.uint64(salt)
        self._parts: list[NDArray[np.uint64]] = []

    def update(self, data: NDArray[np.uint8], parallel: bool = True) -> None:
        if data.size == 0:
            return
        digests = np.empty(-(-data.size // DIGEST_BLOCK), np.uint64)
        kernel = block_digests_cpu() if parallel else block_digests_serial()
        kernel(data.view(np.uint64), DIGEST_BLOCK // 8, self._salt, digests, new_counter())
        self._parts.append(digests)

    def add(self, digests: NDArray[np.uint64]) -> None:
        """Of the next blocks, taken elsewhere."""
        self._parts.append(digests)

    def value(self) -> int:
        parts = np.concatenate(self._parts) if self._parts else np.empty(0, np.uint64)
        return int(xxh64_cpu()(parts, self._salt))


@dataclass(frozen=True)
class TableSection:
    """Where a frame keeps one table's part; offsets count from the end of meta."""

    step: int
    lr: float
    rows: int
    record_bytes: int
    indices_at: int
    records_at: int


@dataclass(frozen=True)
class ArraySection:
    name: str
    dtype: str
    shape: tuple[int, ...]
    at: int

    @property
    def nbytes(self) -> int:
        size = np.dtype(self.dtype).itemsize
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class Meta:
    tables: dict[str, TableSection]
    arrays: tuple[ArraySection, ...]
    metadata: dict[str, Any]

    def encode(self) -> bytes:
        body = {
            "tables": {name: vars(section) for name, section in self.tables.items()},
            "arrays": [{**vars(a), "shape": list(a.shape)} for a in self.arrays],
            "metadata": self.metadata,
        }
        return json.dumps(body, separators=(",", ":"), sort_keys=True).encode()

    @staticmethod
    def decode(data: bytes, frame_bytes: int) -> Meta:
        """Raises ValueError, KeyError or TypeError for anything that does not fit the frame."""
        body = json.loads(data)
        end = frame_bytes - TRAILER - data_start(len(data))
        tables = {}
        for name, said in body["tables"].items():
            section = TableSection(**said)
            sizes = (section.rows, section.record_bytes, section.indices_at, section.records_at)
            if any(type(n) is not int or n < 0 for n in sizes):
                raise ValueError(f"table {name!r}: sizes {sizes}")
            if section.indices_at + 8 * section.rows > end:
                raise ValueError(f"table {name!r}: row numbers beyond the frame")
            if section.records_at + section.record_bytes * section.rows > end:
                raise ValueError(f"table {name!r}: records beyond the frame")
            if type(section.step) is not int or not 0 <= section.step < 1 << 63:
                raise ValueError(f"table {name!r}: step {section.step!r}")
            if type(section.lr) not in (int, float) or not section.lr - section.lr == 0:
                raise ValueError(f"table {name!r}: lr {section.lr!r}")
            tables[name] = section
        arrays = []
        for said in body["arrays"]:
            array = ArraySection(said["name"], said["dtype"], tuple(said["shape"]), said["at"])
            if type(array.name) is not str:
                raise ValueError(f"array {array.name!r}")
            if any(type(n) is not int or not 0 <= n < 1 << 62 for n in (*array.shape, array.at)):
                raise ValueError(f"array {array.name!r}: shape {array.shape}")
            if not _DTYPE.fullmatch(array.dtype) or array.at + array.nbytes > end:
                raise ValueError(f"array {array.name!r}: {array.dtype!r}, or beyond the frame")
            arrays.append(array)
        if type(body["metadata"]) is not dict:
            raise ValueError("metadata")
        return Meta(tables, tuple(arrays), body["metadata"])


def data_start(meta_bytes: int) -> int:
    """Where the sections begin, counted from the frame's start."""
    return HEADER + align(meta_bytes)


def plan(
    tables: dict[str, tuple[int, float, int, int]],
    arrays: dict[str, NDArray[Any]],
    metadata: dict[str, Any],
) -> tuple[Meta, bytes, int]:
    """Lay a frame out.  tables: NAME -> (step, lr, rows, record_bytes).

    Returns (meta, its encoding, frame_bytes).
    """
    at = 0
    array_sections = []
    for name, array in arrays.items():
        array_sections.append(ArraySection(name, array.dtype.str, array.shape, at))
        at += align(array.nbytes)
    table_sections = {}
    for name, (step, lr, rows, record_bytes) in tables.items():
        records_at = at + align(8 * rows)
        table_sections[name] = TableSection(step, lr, rows, record_bytes, at, records_at)
        at = records_at + align(rows * record_bytes)
    meta = Meta(table_sections, tuple(array_sections), metadata)
    encoded = meta.encode()
    frame_bytes = data_start(len(encoded)) + at + TRAILER
    if len(encoded) > META_LIMIT:
        raise ArgumentError(
            f"metadata: takes {len(encoded)} bytes as JSON, names of arrays included; at most "
            f"{META_LIMIT} fit a commit (large data belongs into arrays)"
        )
    Meta.decode(encoded, frame_bytes)  # what is written can be read: ValueError before any change
    return meta, encoded, frame_bytes
