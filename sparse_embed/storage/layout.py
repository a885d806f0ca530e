"""How one row lies in memory and in its data file.

A record is a row's weight and its optimizer's state side by side, little-endian:

    weight (D,) | first state field | second state field | ... | zero padding

each field from a multiple of 4 bytes on, padded to a multiple of 16 bytes, and to 64 (a cache line)
where that costs at most an eighth, so that a row touches as few lines as it can.  LazyAdam at
D = 64 takes 768 bytes in float32, and 384 in bfloat16 with state in bfloat16.

    dtype      weight in the data file
    float32    "<f4" (D,)
    float16    "<f2" (D,)
    bfloat16   "<u2" (D,): the upper 16 bits of a float32 (NumPy has no bfloat16)
    int8       "scale" "<f4", "bias" "<f4", then "weight" "|u1" (D,):  weight * scale + bias

State is "<f4", or "<u2" like the weight with state_dtype bfloat16; a field of one number a row is
"<f4" always.  In memory a record is float32 lanes, whatever they hold.

Virgin: a record is one of a row never written when its first number in this dtype (of int8 its
scale) has all bits zero.  Whoever writes +0.0 there writes -0.0.

The data file is a version 1.0 `.npy` of shape (E,) whose structured dtype names these fields; its
header is padded with spaces so that row r starts at byte 4096 + r * record_bytes.  Rows never
written are holes and read as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_embed.dtypes import FLOAT32, Precision, numpy_format
from sparse_embed.errors import ArgumentError

DATA_START = 4096
NPY_PREFIX = b"\x93NUMPY\x01\x00" + (DATA_START - 10).to_bytes(2, "little")


class Place(NamedTuple):
    """Where a field of a record is: NumPy's format, how many numbers, from which byte on."""

    name: str
    dtype: str
    numbers: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """The fields of a record: (name, numbers), weight first; and what their numbers are."""

    num_embeddings: int
    embedding_dim: int
    fields: tuple[tuple[str, int], ...]
    precision: Precision = FLOAT32

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The fields as they lie, in order."""
        at, found = 0, []
        for name, numbers in self._stored():
            dtype = self.field_dtype(name, numbers)
            found.append(Place(name, dtype, numbers, at))
            size = numbers * np.dtype(numpy_format(dtype)).itemsize
            at += -(-size // 4) * 4
        return tuple(found)

    def _stored(self) -> tuple[tuple[str, int], ...]:
        if self.precision.dtype == "int8":
            return (("scale", 1), ("bias", 1), *self.fields)
        return self.fields

    def field_dtype(self, name: str, numbers: int) -> str:
        """Of a field's numbers."""
        return self.precision.dtype if name == "weight" else self.precision.of_field(numbers)

    @cached_property
    def record_bytes(self) -> int:
        last = self.places[-1]
        end = last.offset + last.numbers * np.dtype(numpy_format(last.dtype)).itemsize
        size = -(-end // 4) * 4
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

    def dtype(self) -> np.dtype[Any]:
        """The structured dtype of the data file."""
        formats: list[Any] = []
        for place in self.places:
            number = numpy_format(place.dtype)
            many = place.numbers > 1 or place.name == "weight"
            formats.append((number, (place.numbers,)) if many else number)
        return np.dtype(
            {
                "names": [place.name for place in self.places],
                "formats": formats,
                "offsets": [place.offset for place in self.places],
                "itemsize": self.record_bytes,
            }
        )

    def structured(self, records: NDArray[Any]) -> NDArray[Any]:
        """C-contiguous (n, W) records as (n,) of `dtype()`: the same memory."""
        return records.view(self.dtype()).reshape(len(records))

    def _first_word(self, records: NDArray[Any]) -> NDArray[Any]:
        words = records.view("<u2" if self.places[0].dtype in ("float16", "bfloat16") else "<u4")
        return words[:, 0]

    def written(self, records: NDArray[Any]) -> NDArray[np.bool_]:
        """(n,) which of these C-contiguous (n, ...) records are not virgin."""
        found: NDArray[np.bool_] = self._first_word(records) != 0
        return found

    def keep_written(self, records: NDArray[Any]) -> None:
        """-0.0 for +0.0 in front, in place: these records are not virgin."""
        first = self._first_word(records)
        first[first == 0] = 1 << (8 * first.itemsize - 1)

    def padding(self) -> NDArray[np.bool_]:
        """(record_bytes,) the bytes that belong to no field, and are zero."""
        unused = np.ones(self.record_bytes, np.bool_)
        for place in self.places:
            size = place.numbers * np.dtype(numpy_format(place.dtype)).itemsize
            unused[place.offset : place.offset + size] = False
        return unused

    def npy_header(self) -> bytes:
        """The first 4096 bytes of the data file."""
        descr = np.lib.format.dtype_to_descr(self.dtype())
        text = repr({"descr": descr, "fortran_order": False, "shape": (self.num_embeddings,)})
        length = DATA_START - len(NPY_PREFIX)
        body = text.encode("latin1", "replace").ljust(length - 1, b" ") + b"\n"
        if len(body) != length:
            raise ArgumentError("optimizer: its state fields do not fit the data file's header")
        return NPY_PREFIX + body
