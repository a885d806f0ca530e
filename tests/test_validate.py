"""Checks of arguments: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed import _validate as v
from sparse_embed._typing import NO_PADDING
from sparse_embed.errors import ArgumentError, IndexRangeError

E = 100


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8"])
def test_any_integer_dtype_and_shape(dtype):
    indices = np.array([[0, 99, 5], [7, 7, 1]], dtype)
    found = v.as_indices(indices, E)
    assert found.dtype == np.int64
    assert found.dtype.isnative
    assert found.tolist() == indices.tolist()


@pytest.mark.parametrize(
    "indices", [[], (), [[]], np.empty((0, 3), np.int64), np.empty((3, 0), np.uint64)]
)
def test_empty(indices):
    found = v.as_indices(indices, E)
    assert found.dtype == np.int64
    assert found.size == 0


def test_zero_dimensions_and_lists():
    assert v.as_indices(7, E).shape == ()
    assert v.as_indices([1, 2], E).tolist() == [1, 2]
    assert v.as_indices(range(3), E).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "indices",
    [
        [1.0], np.array([], float), [True], np.array([False]), ["1"], [None], [[1], [2, 3]],
        np.array([1], object), [2**70], 1j, b"1", np.array(["2020"], "M8[Y]"),
    ],
)  # fmt: skip
def test_other_dtypes_are_refused(indices):
    with pytest.raises(ArgumentError, match="indices: expected an"):
        v.as_indices(indices, E)


@pytest.mark.parametrize("length", [3, 100_000])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint32])
def test_range_errors_count_and_name_the_extremes(length, dtype):
    indices = np.arange(length, dtype=dtype) % E
    indices[[0, 1, length - 1]] = [100, 5, 120]
    with pytest.raises(IndexRangeError, match=rf"2 of {length} .*from 100 to 120.*= 100; nothing"):
        v.as_indices(indices, E)


@pytest.mark.parametrize("length", [3, 100_000])
@pytest.mark.parametrize("bad", [-1, -(2**63), 100, 2**63 - 1])
def test_no_negative_index_wraps(length, bad):
    indices = np.zeros(length, np.int64)
    indices[-1] = bad
    with pytest.raises(IndexRangeError, match=rf"1 of {length} index is out of range \({bad}\)"):
        v.as_indices(indices, E)


@pytest.mark.parametrize("length", [3, 100_000])
@pytest.mark.parametrize("padding_idx", [-1, 0, 5, 100, -(2**63), 2**63 - 1, 10**30, -(10**30)])
def test_padding_idx_may_be_any_integer(length, padding_idx):
    indices = np.zeros(length, np.int64)
    if -(2**63) <= padding_idx < 2**63:
        indices[1] = padding_idx
    assert v.as_indices(indices, E, padding_idx).tolist() == indices.tolist()
    indices[2] = -3
    with pytest.raises(IndexRangeError, match="-3"):
        v.as_indices(indices, E, padding_idx)


@pytest.mark.parametrize("length", [3, 100_000])
def test_uint64_is_never_taken_for_negative(length):
    indices = np.zeros(length, np.uint64)
    indices[1] = 2**64 - 1
    for padding_idx in (None, -1, 0, 2**63):
        with pytest.raises(IndexRangeError, match=str(2**64 - 1)):
            v.as_indices(indices, E, padding_idx)
    found = v.as_indices(indices, E, 2**64 - 1)
    assert found[1] == v.as_padding_idx(2**64 - 1)
    negative = np.zeros(length, np.int64)
    negative[1] = -1
    with pytest.raises(IndexRangeError, match="-1"):
        v.as_indices(negative, E, 2**64 - 1)


def test_uint64_of_2_63_is_not_the_sentinel():
    indices = np.full(100_000, 2**63, np.uint64)
    with pytest.raises(IndexRangeError, match=f"100000 of 100000 .*{2**63}"):
        v.as_indices(indices, E)


def test_the_largest_table():
    assert v.as_indices([2**63 - 1], 2**63).tolist() == [2**63 - 1]
    with pytest.raises(IndexRangeError):
        v.as_indices(np.array([2**63], np.uint64), 2**63)


@pytest.mark.parametrize("padding_idx", [1.0, "1", True, [1], np.bool_(True)])
def test_bad_padding_idx(padding_idx):
    with pytest.raises(ArgumentError, match="padding_idx"):
        v.as_padding_idx(padding_idx)


def test_padding_idx_none_and_integers():
    assert v.as_padding_idx(None) == NO_PADDING
    assert v.as_padding_idx(np.int8(-3)) == -3


def test_what_comes_out_is_plain():
    array = np.arange(20)[::2]
    array.flags.writeable = False
    found = v.as_indices(array, E)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    plain = np.arange(10)
    assert v.as_indices(plain, E) is plain or np.shares_memory(v.as_indices(plain, E), plain)


def test_a_read_only_array_is_neither_copied_nor_lost():
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    array.flags.writeable = False
    found = v.as_grad(array, (10, 100))
    assert np.shares_memory(found, array)
    assert not array.flags.writeable
    expected = array.copy()
    del array
    np.testing.assert_array_equal(found, expected)


def test_misaligned_and_foreign_byte_order():
    raw = np.zeros(81, np.uint8)
    misaligned = raw[1:].view(np.int64)
    assert v.as_indices(misaligned, E).flags.aligned
    assert v.as_grad(np.ones((2, 2), ">f4"), (2, 2)).dtype.isnative


# ---- offsets ------------------------------------------------------------------------------------


def test_offsets():
    assert v.as_offsets([0, 2, 2, 5], 5).tolist() == [0, 2, 2, 5]
    assert v.as_offsets([0, 2, 2], 5, include_last_offset=False).tolist() == [0, 2, 2, 5]
    assert v.as_offsets([0], 0).tolist() == [0]
    assert v.as_offsets(np.array([0, 5], np.uint8), 5).dtype == np.int64
    assert v.as_offsets([], 0, include_last_offset=False).tolist() == [0]


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "at least one"), ([1, 5], r"offsets\[0\] = 0"), ([0, 4], r"offsets\[-1\] = 4"),
        ([0, 3, 2, 5], r"offsets\[1\] = 3 before offsets\[2\] = 2"), ([0.0, 5.0], "float64"),
        ([[0, 5]], r"\(1, 2\)"), (5, r"\(\)"), ([-1, 5], r"got -1"), ([0, -3, 5], "-3"),
        (np.array([0, 2**64 - 1, 5], np.uint64), str(2**64 - 1)), ([True, False], "bool"),
    ],
)  # fmt: skip
def test_bad_offsets(offsets, message):
    with pytest.raises(ArgumentError, match=message):
        v.as_offsets(offsets, 5)


def test_torchs_offsets_are_recognised():
    with pytest.raises(ArgumentError, match="include_last_offset=False"):
        v.as_offsets([0, 2, 4], 5)


def test_offsets_that_do_not_begin_at_zero_without_the_last():
    with pytest.raises(ArgumentError, match=r"offsets\[0\]"):
        v.as_offsets([], 3, include_last_offset=False)


# ---- floats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.complex64, bool, object])
def test_other_float_dtypes_are_refused_by_name(dtype):
    with pytest.raises(ArgumentError, match=f"grad: expected dtype float32, got {np.dtype(dtype)}"):
        v.as_grad(np.ones((2, 3), dtype), (2, 3))


def test_grad_shape():
    with pytest.raises(ArgumentError, match=r"expected shape \(2, 3\), got \(3, 2\)"):
        v.as_grad(np.ones((3, 2), np.float32), (2, 3))
    assert v.as_grad(np.ones((0, 3), np.float32), (0, 3)).shape == (0, 3)


def test_grad_check_finite_names_the_first_place():
    grad = np.ones((3, 4), np.float32)
    assert v.as_grad(grad, (3, 4), check_finite=True) is not None
    grad[1, 2], grad[2, 0] = np.inf, np.nan
    with pytest.raises(ArgumentError, match=r"got inf at \(1, 2\)"):
        v.as_grad(grad, (3, 4), check_finite=True)
    v.as_grad(grad, (3, 4))


def test_fortran_order_is_copied_right():
    grad = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    found = v.as_grad(grad, (2, 3))
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, grad)


def test_per_sample_weights():
    assert v.as_per_sample_weights(None, (3,), "max") is None
    weights = np.ones(3, np.float32)
    assert v.as_per_sample_weights(weights, (3,), "mean") is not None
    for bad, mode in ((weights, "max"), (np.ones(3), "sum"), (weights[:2], "sum")):
        with pytest.raises(ArgumentError, match="per_sample_weights"):
            v.as_per_sample_weights(bad, (3,), mode)


@pytest.mark.parametrize("mode", ["SUM", None, 0, b"sum", ["sum"]])
def test_bad_modes(mode):
    with pytest.raises(ArgumentError, match="mode: expected one of sum, mean, sqrtn, max"):
        v.as_mode(mode)
    with pytest.raises(ArgumentError, match="metric: expected one of"):
        v.as_metric(mode)


def test_matrix_seed_and_probability():
    assert v.as_matrix(np.ones((4, 3), np.float32), "queries", None, 3).shape == (4, 3)
    for bad in (np.ones(3, np.float32), np.ones((4, 2), np.float32), np.ones((4, 3))):
        with pytest.raises(ArgumentError, match="queries"):
            v.as_matrix(bad, "queries", None, 3)
    assert v.as_seed(2**64 - 1) == 2**64 - 1
    for bad_seed in (-1, 2**64, 1.5, "0", None):
        with pytest.raises(ArgumentError, match="seed"):
            v.as_seed(bad_seed)
    assert v.as_probability("p", 0) == 0
    for bad_p in (1.0, -0.1, float("nan"), "0.5", True, None):
        with pytest.raises(ArgumentError, match="p: expected"):
            v.as_probability("p", bad_p)
