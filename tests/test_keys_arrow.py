"""Arrow, pandas and polars columns give the rows that the same Python list gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparse_embed.errors import ArgumentError
from sparse_embed.keys import KeyHasher
from sparse_embed.keys import arrow as arrow_input
from sparse_embed.keys.ngrams import NgramHasher

WORDS = ["", "a", "münchen", "tail\0", "twelve bytes", "thirteen byte", "北海道" * 9, "x" * 300] * 9
HASHER = KeyHasher(1_000_003, 2, missing="skip")


def expected(keys: list[Any]) -> list[list[int]]:
    return HASHER(keys).tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pa() -> Any:
    return pytest.importorskip("pyarrow")


def types_of(pa: Any) -> list[Any]:
    return [
        pa.string(), pa.large_string(), pa.string_view(),
        pa.binary(), pa.large_binary(), pa.binary_view(),
        pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.uint32(), pa.large_string()),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("nulls", [False, True])
def test_every_string_type(pa: Any, number: int, nulls: bool) -> None:
    kind = types_of(pa)[number]
    keys: list[str | None] = list(WORDS)
    if nulls:
        keys[3::5] = [None] * len(keys[3::5])
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    binary = value_type in (pa.binary(), pa.large_binary(), pa.binary_view())
    listed = [None if k is None else k.encode() for k in keys] if binary else keys
    array = pa.array(listed, value_type)
    if pa.types.is_dictionary(kind):
        array = array.dictionary_encode().cast(kind)
    assert HASHER(array).tolist() == expected(keys)
    for begin, end in ((0, 0), (5, 40), (9, 10), (len(keys), len(keys))):
        assert HASHER(array[begin:end]).tolist() == expected(keys[begin:end])
    chunked = pa.chunked_array([array[:10], array[10:10], array[10:13], array[13:]])
    assert HASHER(chunked).tolist() == expected(keys)
    assert HASHER(pa.chunked_array([], kind)).tolist() == []
    if nulls:
        with pytest.raises(ArgumentError, match=r"keys\[3\] is missing"):
            KeyHasher(10)(array)
        ten = pa.chunked_array([array[:3], array[:2]])
        first = pa.array([listed[0]] * 10, value_type)
        if array.type == value_type:
            with pytest.raises(ArgumentError, match=r"keys\[13\] is missing"):
                KeyHasher(10)(pa.chunked_array([first, array]))
        assert HASHER(ten).tolist() == expected(keys[:3] + keys[:2])


def test_strings_are_read_in_place(pa: Any) -> None:
    array = pa.array(WORDS)
    column = arrow_input.from_arrow(array, "keys")
    assert column is not None
    chunk = next(iter(column.chunks))
    assert chunk.base == array.buffers()[2].address  # type: ignore[union-attr]
    assert chunk.starts.ctypes.data == array.buffers()[1].address  # type: ignore[union-attr]


def test_offsets_beyond_2_gib(pa: Any) -> None:
    """Untouched zero pages: 2 GiB of address space, next to no memory."""
    data = np.zeros((1 << 31) + 64, np.uint8)
    data[-64:] = np.arange(64)
    offsets = np.array([(1 << 31) - 5, 1 << 31, (1 << 31) + 40, (1 << 31) + 64], np.int64)
    array = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    raw = bytes(range(64))
    assert HASHER(array).tolist() == expected([bytes(5), raw[:40], raw[40:]])


@pytest.mark.parametrize("code", "bBhHiIlLqQ")
def test_integers_with_nulls(pa: Any, code: str) -> None:
    info = np.iinfo(np.dtype(code))
    keys = [info.min, None, info.max, 3, None, 5]
    array = pa.array(keys, pa.from_numpy_dtype(np.dtype(code)))
    assert HASHER(array).tolist() == expected(keys)
    assert HASHER(array[1:4]).tolist() == expected(keys[1:4])
    assert HASHER(pa.chunked_array([array, array[2:]])).tolist() == expected(keys + keys[2:])


def test_other_layouts(pa: Any) -> None:
    fixed = pa.array([b"abc", None, b"d\0\0"], pa.binary(3))
    assert HASHER(fixed).tolist() == expected([b"abc", None, b"d\0\0"])
    assert HASHER(fixed[1:]).tolist() == expected([None, b"d\0\0"])
    assert HASHER(pa.nulls(3)).tolist() == [[-1, -1]] * 3
    numbers = pa.DictionaryArray.from_arrays(pa.array([1, None, 0, 1]), pa.array([7, 9]))
    assert HASHER(numbers).tolist() == expected([9, None, 7, 9])
    nulls_inside = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))
    assert HASHER(nulls_inside).tolist() == expected(["a", None, "a"])
    assert (
        HASHER(pa.array([None, None], pa.string()).dictionary_encode()).tolist() == [[-1, -1]] * 2
    )


def test_types_without_keys_are_named(pa: Any) -> None:
    for array, message in (
        (pa.array([1.5]), r"keys: floating-point ids \(Arrow type 'g'\)"),
        (pa.array([True]), r"keys: expected an Arrow array of strings, .* got format 'b'"),
        (pa.array([["a"]]), r"got format '\+l'"),
        (pa.array([{"a": 1}]), r"got format '\+s'"),
        (pa.table({"a": ["x"]}), r"got format '\+s'"),
        (pa.chunked_array([], pa.float32()), "floating-point ids"),
        (pa.array([1.5]).dictionary_encode(), "floating-point ids"),
    ):
        with pytest.raises(ArgumentError, match=message):
            KeyHasher(10)(array)


def test_signs_and_ngrams_of_arrow_columns(pa: Any) -> None:
    array = pa.array(["foo", "bar", "foo", None]).dictionary_encode()
    rows, signs = KeyHasher(100, scheme="sklearn", missing="skip").signed(array)
    listed, listed_signs = KeyHasher(100, scheme="sklearn").signed(["foo", "bar", "foo"])
    assert rows.tolist() == [*listed.tolist(), -1]
    assert signs.tolist() == [*listed_signs.tolist(), 1]
    indices, offsets = NgramHasher(100, missing="skip")(array)
    want, want_offsets = NgramHasher(100)(["foo", "bar", "foo"])
    assert indices.tolist() == want.tolist()
    assert offsets.tolist() == [*want_offsets.tolist(), want_offsets[-1]]


def test_pandas_columns() -> None:
    pd = pytest.importorskip("pandas")
    keys = ["a", "münchen", None, "b"]
    for column in (
        pd.Series(keys),
        pd.Series(keys, dtype=object),
        pd.Series(keys, dtype="string"),
        pd.Series(keys, dtype="category"),
        pd.Index(keys),
    ):
        assert HASHER(column).tolist() == expected(keys), column.dtype
    assert HASHER(pd.Series([1, 2, None], dtype="Int64")).tolist() == expected([1, 2, None])
    assert HASHER(pd.Series([1, 2], dtype="int32")).tolist() == expected([1, 2])
    with pytest.raises(ArgumentError, match="floating-point ids"):
        HASHER(pd.Series([1, 2, None]))
    with pytest.raises(
        ArgumentError, match=r"keys\[1\]: expected str, as the first key is, got int"
    ):
        HASHER(pd.Series(["a", 1], dtype=object))


def test_polars_columns() -> None:
    pl = pytest.importorskip("polars")
    keys: list[str | None] = [*WORDS, None, "end"]
    assert HASHER(pl.Series(keys)).tolist() == expected(keys)
    assert HASHER(pl.Series(keys).cast(pl.Categorical)).tolist() == expected(keys)
    assert HASHER(
        pl.concat([pl.Series(keys), pl.Series(keys)], rechunk=False)
    ).tolist() == expected(keys + keys)
    assert HASHER(pl.Series([1, None, 3], dtype=pl.Int16)).tolist() == expected([1, None, 3])


def test_a_column_that_cannot_export_is_read_as_an_array() -> None:
    class Column:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            raise ImportError("pyarrow is not installed")

        def __array__(self, dtype: object = None, copy: object = None) -> Any:
            return np.array(["a", "b"], object)

    assert HASHER(Column()).tolist() == expected(["a", "b"])
