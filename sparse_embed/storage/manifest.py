"""store.json: what a store holds and which commit its data files stand at.

    {"format": "sparse_embed store", "version": 1, "uuid": "…32 hex…",
     "tables": {NAME: {"file", "num_embeddings", "embedding_dim", "dtype", "init", "seed",
                       "optimizer", "fields", "record_bytes",
                       "state_dtype", "rounding" (where not all is float32)}},
     "folded": n,        every commit up to n is in the data files (and in "state")
     "folding": m,       m >= n: a fold up to m may have begun, so no commit in [n, m) can be shown
     "state": {"tables": {NAME: {"step", "lr"}}, "metadata": {…}},   at commit "folded"
     "arrays": null or {"file", "bytes", "sha256"} of the .npz with the store's arrays at "folded",
     "checksum": "sha256:…"}                of the same object without this key, canonical JSON

Replaced whole (temporary file, fsync, rename, directory fsync): at create, when a table is added,
and at a checkpoint.  A reader of this format refuses a larger version and unknown top-level keys.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparse_embed.dtypes import FLOAT32, ROUNDINGS, STATES, STORED, Precision
from sparse_embed.errors import (
    ArgumentError,
    CorruptStoreError,
    NotAStoreError,
    UnsupportedVersionError,
)
from sparse_embed.storage.files import Directory
from sparse_embed.storage.layout import Layout

NAME = "store.json"
FORMAT = "sparse_embed store"
VERSION = 1
_LIMIT = 64 << 20
_LIMIT_ARRAYS = 1 << 40
_LANES = 1 << 20  # more than any record has
_TABLE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def is_table_name(name: object) -> bool:
    """Letters, digits, `_`, `-` and `.`; not starting with a dot; at most 100 characters."""
    return isinstance(name, str) and _TABLE_NAME.fullmatch(name) is not None


def is_arrays_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"arrays-[0-9]{6,18}\.npz", name) is not None


def is_stray_name(name: str) -> bool:
    """What a checkpoint cut short leaves behind, and arrays that store.json no longer names."""
    return name == NAME + ".tmp" or is_arrays_name(name.removesuffix(".tmp"))


@dataclass(frozen=True)
class TableEntry:
    """One table as store.json describes it.  `init` and `optimizer` stay plain dictionaries here:
    storage knows records, not what they mean."""

    num_embeddings: int
    embedding_dim: int
    dtype: str
    init: dict[str, Any]
    seed: int
    optimizer: dict[str, Any] | None
    fields: tuple[tuple[str, int], ...]
    state_dtype: str = "float32"
    rounding: str = ""

    @property
    def precision(self) -> Precision:
        return Precision(self.dtype, self.state_dtype, self.rounding)

    def layout(self) -> Layout:
        fields = (("weight", self.embedding_dim), *self.fields)
        return Layout(self.num_embeddings, self.embedding_dim, fields, self.precision)

    def to_dict(self, name: str) -> dict[str, Any]:
        narrow = {"state_dtype": self.state_dtype, "rounding": self.rounding}
        return {
            "file": file_name(name),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "dtype": self.dtype,
            "init": self.init,
            "seed": self.seed,
            "optimizer": self.optimizer,
            "fields": [list(field) for field in self.fields],
            "record_bytes": self.layout().record_bytes,
        } | (narrow if self.precision != FLOAT32 else {})


@dataclass
class CommitState:
    """What a commit fixes besides rows: per table (step, lr), and the user's metadata."""

    tables: dict[str, tuple[int, float]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        tables = {name: {"step": step, "lr": lr} for name, (step, lr) in self.tables.items()}
        return {"tables": tables, "metadata": self.metadata}


def copy_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of plain JSON data; ArgumentError when it is something else."""
    try:
        copied = json.loads(json.dumps(metadata, allow_nan=False, default=_plain_number))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"metadata: expected what JSON can hold (strings, numbers, lists, dicts), {error}"
        ) from None
    if not isinstance(copied, dict):
        raise ArgumentError(f"metadata: expected a dict, got {type(metadata).__name__}")
    return copied


def _plain_number(value: object) -> object:
    """NumPy's scalars count as numbers: a loss is often one."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"got {type(value).__name__}")


@dataclass(frozen=True)
class ArraysFile:
    """The store's arrays at the folded commit, as a .npz beside store.json."""

    file: str
    bytes: int
    sha256: str


@dataclass
class Manifest:
    uuid: bytes
    tables: dict[str, TableEntry] = field(default_factory=dict)
    folded: int = 0
    folding: int = 0
    state: CommitState = field(default_factory=CommitState)
    arrays: ArraysFile | None = None


def file_name(table: str) -> str:
    return f"{table}.npy"


def encode(manifest: Manifest) -> bytes:
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "uuid": manifest.uuid.hex(),
        "tables": {name: entry.to_dict(name) for name, entry in manifest.tables.items()},
        "folded": manifest.folded,
        "folding": manifest.folding,
        "state": manifest.state.to_dict(),
        "arrays": None if manifest.arrays is None else vars(manifest.arrays),
    }
    body["checksum"] = _checksum(body)
    return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _checksum(body: dict[str, Any]) -> str:
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(plain.encode()).hexdigest()


def read(directory: Directory) -> Manifest:
    """Raises NotAStoreError, UnsupportedVersionError or CorruptStoreError."""
    where = directory.describe(NAME)
    try:
        data = directory.read_small(NAME, _LIMIT)
    except FileNotFoundError:
        raise NotAStoreError(
            errno.ENOENT, f"path: {str(directory.path)!r} is not a store: it has no {NAME}"
        ) from None
    return decode(data, where)


def decode(data: bytes, where: str) -> Manifest:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise CorruptStoreError(errno.EINVAL, f"{where} is not valid JSON") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise NotAStoreError(errno.EINVAL, f'{where} does not say "format": {FORMAT!r}')
    version = body.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UnsupportedVersionError(
            errno.ENOTSUP,
            f"{where} has format version {version}; this package reads up to {VERSION}: upgrade it",
        )
    said = body.pop("checksum", None)
    try:
        fits = said == _checksum(body)
    except RecursionError:
        fits = False
    if not fits:
        raise CorruptStoreError(
            errno.EINVAL, f"{where} fails its checksum; it was damaged or edited"
        )
    try:
        return _parse(body)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptStoreError(
            errno.EINVAL, f"{where} has a wrong or missing field: {error!r}"
        ) from None


def _parse(body: dict[str, Any]) -> Manifest:
    known = {"format", "version", "uuid", "tables", "folded", "folding", "state", "arrays"}
    if set(body) != known:
        raise ValueError(f"keys {sorted(set(body) ^ known)}")
    tables = {}
    for name, entry in body["tables"].items():
        if not is_table_name(name):
            raise ValueError(f"table name {name!r}")
        tables[name] = _parse_table(name, entry)
    state = CommitState(
        {
            str(name): (_count(at["step"]), _finite(at["lr"]))
            for name, at in body["state"]["tables"].items()
        },
        dict(body["state"]["metadata"]),
    )
    folded, folding = _count(body["folded"]), _count(body["folding"])
    if folding < folded:
        raise ValueError("folding < folded")
    arrays = None
    if body["arrays"] is not None:
        arrays = ArraysFile(**body["arrays"])
        if not is_arrays_name(arrays.file) or not 0 <= _count(arrays.bytes) <= _LIMIT_ARRAYS:
            raise ValueError("arrays")
    uuid = bytes.fromhex(body["uuid"])
    if len(uuid) != 16:
        raise ValueError("uuid")
    return Manifest(uuid, tables, folded, folding, state, arrays)


def _parse_table(name: str, entry: dict[str, Any]) -> TableEntry:
    fields = tuple((str(field), _count(lanes)) for field, lanes in entry["fields"])
    if len({field for field, _ in fields} | {"weight"}) != len(fields) + 1:
        raise ValueError(f"fields of table {name!r}")
    parsed = TableEntry(
        num_embeddings=_count(entry["num_embeddings"]),
        embedding_dim=_count(entry["embedding_dim"]),
        dtype=str(entry["dtype"]),
        init=dict(entry["init"]),
        seed=_count(entry["seed"], 1 << 64),
        optimizer=None if entry["optimizer"] is None else dict(entry["optimizer"]),
        fields=fields,
        state_dtype=str(entry.get("state_dtype", "float32")),
        rounding=str(entry.get("rounding", "")),
    )
    if parsed.num_embeddings < 1 or parsed.embedding_dim < 1:
        raise ValueError(f"shape of table {name!r}")
    _check_precision(name, parsed)
    if any(not 1 <= lanes <= _LANES for lanes in (parsed.embedding_dim, *dict(fields).values())):
        raise ValueError(f"embedding_dim or fields of table {name!r}")
    if entry["file"] != file_name(name) or entry["record_bytes"] != parsed.layout().record_bytes:
        raise ValueError(f"file or record_bytes of table {name!r}")
    return parsed


def _check_precision(name: str, entry: TableEntry) -> None:
    """A dtype that a later version may know is no damage; an impossible combination is."""
    if entry.dtype not in STORED or entry.state_dtype not in STATES:
        raise UnsupportedVersionError(
            errno.ENOTSUP,
            f"table {name!r} is stored as {entry.dtype!r} with state in {entry.state_dtype!r}; "
            f"this package knows {', '.join(STORED)} with state in {', '.join(STATES)}",
        )
    narrow = entry.state_dtype != "float32" or entry.dtype in ("float16", "bfloat16")
    if entry.rounding not in (ROUNDINGS if narrow else ("",)):
        raise ValueError(f"rounding of table {name!r}")
    if entry.dtype == "int8" and (entry.fields or entry.state_dtype != "float32"):
        raise ValueError(f"state of int8 table {name!r}")


def _count(value: Any, limit: int = 1 << 62) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"expected a count, got {value!r}")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r}")
    return float(value)


def write(directory: Directory, manifest: Manifest) -> None:
    directory.replace(NAME, encode(manifest))
