"""How one row lies in memory and in its data file.

A record is a row's weight and its optimizer's state side by side, little-endian float32:

    weight (D,) | first state field | second state field | ... | zero padding

padded to a multiple of 16 bytes, and to 64 (a cache line) where that costs at most an eighth, so
that a row touches as few lines as it can.  LazyAdam at D = 64 takes 768 bytes.

The data file is a version 1.0 `.npy` of shape (E,) whose structured dtype names these fields; its
header is padded with spaces so that row r starts at byte 4096 + r * record_bytes.  Rows never
written are holes and read as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_embed.errors import ArgumentError

DATA_START = 4096
NPY_PREFIX = b"\x93NUMPY\x01\x00" + (DATA_START - 10).to_bytes(2, "little")


@dataclass(frozen=True)
class Layout:
    """The fields of a record: (name, float32 lanes), weight first."""

    num_embeddings: int
    embedding_dim: int
    fields: tuple[tuple[str, int], ...]

    @property
    def record_bytes(self) -> int:
        size = 4 * sum(lanes for _, lanes in self.fields)
        if size < 128:
            return -(-size // 16) * 16
        line = -(-size // 64) * 64
        return line if (line - size) * 8 <= size else -(-size // 16) * 16

    @property
    def lanes(self) -> int:
        return self.record_bytes // 4

    @property
    def file_bytes(self) -> int:
        return DATA_START + self.num_embeddings * self.record_bytes

    def offset_of(self, name: str) -> int:
        """First lane of a field."""
        at = 0
        for field, lanes in self.fields:
            if field == name:
                return at
            at += lanes
        raise KeyError(name)

    def dtype(self) -> np.dtype[Any]:
        """The structured dtype of the data file."""
        offsets = [4 * self.offset_of(name) for name, _ in self.fields]
        formats = [("<f4", (n,)) if n > 1 or name == "weight" else "<f4" for name, n in self.fields]
        return np.dtype(
            {
                "names": [name for name, _ in self.fields],
                "formats": formats,
                "offsets": offsets,
                "itemsize": self.record_bytes,
            }
        )

    def npy_header(self) -> bytes:
        """The first 4096 bytes of the data file."""
        descr = np.lib.format.dtype_to_descr(self.dtype())
        text = repr({"descr": descr, "fortran_order": False, "shape": (self.num_embeddings,)})
        length = DATA_START - len(NPY_PREFIX)
        body = text.encode("latin1", "replace").ljust(length - 1, b" ") + b"\n"
        if len(body) != length:
            raise ArgumentError("optimizer: its state fields do not fit the data file's header")
        return NPY_PREFIX + body
