"""Arrays of the device as arguments and results: no copies, and refusals by name."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.cuda import dlpack
from tests.cases import assert_same_bits


@pytest.fixture
def on_device(memory):
    return memory.upload


def every_other_column(array, memory):
    """A (4, 2) part of a (4, 4) array of the device, not contiguous."""
    if memory.simulated:
        return array[:, ::2]
    interface = {**array.__cuda_array_interface__, "shape": (4, 2), "strides": (32, 16)}
    return SimpleNamespace(__cuda_array_interface__=interface, keep=array)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_device_arrays_in_and_out(on_device, memory):
    from sparse_embed.cuda.arrays import DeviceArray

    make = {"num_embeddings": 30, "embedding_dim": 4, "optimizer": se.SGD(0.1)}
    table = se.EmbeddingTable.create(None, device="cuda", **make)
    twin = se.EmbeddingTable.create(None, **make)
    indices, offsets = np.array([3, 3, 9, -1, 20]), np.array([0, 2, 5])
    grad = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    how = {"mode": "sqrtn", "padding_idx": -1}
    table.update(on_device(grad), on_device(indices), on_device(offsets), **how)
    twin.update(grad, indices, offsets, **how)
    bags = table.lookup(
        on_device(indices), on_device(offsets[:-1]), **how, include_last_offset=False
    )
    assert isinstance(bags, DeviceArray)
    assert (bags.shape, bags.dtype, bags.device) == ((2, 4), np.float32, memory.name)
    assert_same_bits(np.asarray(bags), twin.lookup(indices, offsets, **how))
    table.update(bags, on_device(indices), offsets, **how)  # a result is an argument as it is
    matrix = np.array([[1, 2], [3, 20]])
    rows = table.lookup(on_device(matrix))
    assert rows.shape == (2, 2, 4)
    pooled = table.lookup(on_device(matrix), mode="max")
    assert_same_bits(np.asarray(pooled), np.asarray(rows).max(axis=1))

    with pytest.raises(se.ArgumentError, match="indices: is on a GPU, but this table is on the"):
        twin.lookup(on_device(indices))
    with pytest.raises(se.ArgumentError, match="indices: expected dtype int64, got int32"):
        table.lookup(on_device(indices.astype(np.int32)))
    with pytest.raises(se.IndexRangeError, match="indices: 1 of 5 are out of range"):
        table.lookup(on_device(indices))
    with pytest.raises(se.ArgumentError, match=r"offsets: .* got 0 to 4 with 0 steps down"):
        table.lookup(on_device(indices), on_device(np.array([0, 4])), padding_idx=-1)
    with pytest.raises(se.ArgumentError, match=r"grad: expected shape \(2, 4\), got \(2, 3\)"):
        table.update(on_device(grad[:, :3].copy()), on_device(indices), offsets, **how)
    with pytest.raises(se.ArgumentError, match="grad: expected dtype float32, got float64"):
        table.update(on_device(grad.astype(np.float64)), on_device(indices), offsets, **how)
    with pytest.raises(se.ArgumentError, match="offsets: is on a GPU, but indices are not"):
        table.lookup(indices, on_device(offsets), padding_idx=-1)
    with pytest.raises(se.ArgumentError, match="indices: expected a C-contiguous array"):
        table.lookup(every_other_column(on_device(np.zeros((4, 4), np.int64)), memory))


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_dlpack_of_a_result(on_device, memory):
    table = se.EmbeddingTable.create(None, num_embeddings=9, embedding_dim=4, device="cuda")
    rows = table.lookup(on_device(np.arange(9)))
    assert rows.__cuda_array_interface__["shape"] == (9, 4)
    if not memory.simulated:
        torch = pytest.importorskip("torch")
        assert_same_bits(torch.from_dlpack(rows).cpu().numpy(), np.asarray(rows))
        assert_same_bits(torch.as_tensor(rows, device="cuda").cpu().numpy(), np.asarray(rows))
        return
    expected = np.asarray(rows)
    view = np.from_dlpack(rows)
    del rows
    assert_same_bits(np.ascontiguousarray(view), expected)


def test_dlpack_out_and_in_on_the_host():
    """The capsules themselves need no device: NumPy makes and takes them too."""
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    address = array.ctypes.data
    capsule = dlpack.export(array, address, array.shape, array.dtype, dlpack.CPU_DEVICE)
    tensor = dlpack.Imported(capsule)
    assert (tensor.address, tensor.shape, tensor.dtype) == (address, (3, 4), np.int64)
    assert tensor.strides_in_bytes is None
    assert len(dlpack._alive) == 1
    del tensor
    assert not dlpack._alive
    del capsule
    capsule = dlpack.export(array, address, array.shape, array.dtype, dlpack.CPU_DEVICE)
    del capsule  # nobody took it
    assert not dlpack._alive
    tensor = dlpack.Imported(array[:, ::2].__dlpack__())
    assert tensor.strides_in_bytes == (32, 16)


def test_asking_for_cuda_without_it_names_what_is_missing(monkeypatch):
    from sparse_embed import device

    if device.cuda_status()["devices"]:
        pytest.skip("there is a GPU, or the simulator")
    with pytest.raises(se.MissingExtraError, match="cuda") as caught:
        device.check_cuda(0)
    assert "\n" not in str(caught.value)
    with pytest.raises(se.ArgumentError, match="device"):
        se.EmbeddingTable.create(None, num_embeddings=2, embedding_dim=2, device="cuda:x")
    from sparse_embed.kernels.cuda import _shim

    monkeypatch.setattr(_shim, "HAS_PACKAGE", False)
    with pytest.raises(se.MissingExtraError, match=r'pip install "sparse-embed\[cuda\]"'):
        se.EmbeddingTable.create(None, num_embeddings=2, embedding_dim=2, device="cuda")


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("wrong", [5 + 2**20, -3])
def test_an_update_is_refused_when_its_merge_is_on_the_way_already(on_device, wrong):
    make = {"num_embeddings": 30, "embedding_dim": 4, "optimizer": se.SGD(0.1)}
    table = se.EmbeddingTable.create(None, device="cuda", **make)
    grad = np.ones((2, 4), np.float32)
    table.update(grad, np.array([5, 7]))
    before = table.lookup(np.arange(30))
    # Keys that agree in the bits that are sorted by, each often enough to be summed in blocks.
    indices = np.tile([5, wrong], 600)
    offsets = np.array([0, 700, 1200])
    with pytest.raises(se.IndexRangeError, match="indices: 600 of 1200 are out of range"):
        table.update(on_device(grad), on_device(indices), on_device(offsets), mode="sum")
    with pytest.raises(se.ArgumentError, match=r"offsets: .* got 0 to 700 with 1 steps down"):
        table.update(
            on_device(grad), on_device(np.tile([5], 1200)), on_device(np.array([0, 1300, 700])),
            mode="sum",
        )  # fmt: skip
    with pytest.raises(se.ArgumentError, match=r"offsets: .* got 0 to 0 with 0 steps down"):
        table.update(
            on_device(grad[:0]), on_device(indices[:1]), on_device(offsets[:1]), mode="sum"
        )
    assert_same_bits(table.lookup(np.arange(30)), before)
    assert table.step == 1
