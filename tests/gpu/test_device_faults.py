"""What goes wrong on a GPU, and what is left of the table; some of it needs a real one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.errors import DeviceMemoryError
from tests.cases import assert_same_bits

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("memory"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.fixture
def real(memory):
    if memory.simulated:
        pytest.skip("the simulator has the host's memory and no faults of its own")
    return memory


def make(**more):
    given = {"num_embeddings": 30, "embedding_dim": 4, "optimizer": se.SGD(0.1)} | more
    return se.EmbeddingTable.create(None, device="cuda", **given)


def test_more_than_the_card_has(real):
    _, total = real.memory()
    with pytest.raises(DeviceMemoryError, match=r"GiB for resident rows do not fit; .* are free"):
        make(num_embeddings=total // 16, cache_bytes=2 * total)


def test_a_batch_that_does_not_fit_leaves_the_table(real):
    table = make(num_embeddings=1000, embedding_dim=1024)
    before = np.asarray(table.lookup(np.arange(9)))
    rows = real.zeros(real.memory()[1] // 4096, np.int64)  # 1024 columns each: the whole card
    with pytest.raises(DeviceMemoryError, match="for looked up rows do not fit"):
        table.lookup(rows)
    assert table.step == 0
    assert_same_bits(np.asarray(table.lookup(np.arange(9))), before)
    table.update(np.ones((2, 1024), np.float32), [1, 2])
    assert table.step == 1


FAULT = """
import sys
import numpy as np
import sparse_embed as se
from sparse_embed.device import device_memory
from sparse_embed.errors import DeviceError, StoreClosedError
from sparse_embed.kernels.cuda.records import scatter_records_cuda

table = se.EmbeddingTable.create(sys.argv[1], num_embeddings=99, embedding_dim=4, device="cuda",
                                 optimizer=se.SGD(0.1))
table.update(np.ones((3, 4), np.float32), [1, 2, 3])
table.commit()
table.update(np.ones((3, 4), np.float32), [4, 5, 6])
memory = device_memory(0)
slots, data = memory.upload(np.array([1 << 44])), memory.zeros((1, 4), np.float32)
memory.each(scatter_records_cuda(), 4, table._table.rows.resident.records, slots, data)
try:
    np.asarray(table.lookup([1]))
except DeviceError as error:
    print("lost:", error)
try:
    table.lookup([1])
except StoreClosedError as error:
    print("closed:", error)
"""


def test_an_illegal_access_closes_the_store_at_its_last_commit(real, tmp_path):
    """In a process of its own: CUDA's error is there for good."""
    path = tmp_path / "table"
    ran = subprocess.run(
        [sys.executable, "-c", FAULT, str(path)], capture_output=True, text=True, check=False
    )
    assert "lost: cuda:0:" in ran.stdout, ran.stderr
    assert "closed at commit 1, because a GPU failed" in ran.stdout, ran.stdout
    with se.EmbeddingTable.open(path) as table:
        assert table.last_commit == 1
        assert table.trained_indices().tolist() == [1, 2, 3]


def test_an_array_of_another_gpu(memory):
    from sparse_embed.cuda.arrays import DeviceArray

    class Other:
        name = "cuda:1"

    table = make()
    with pytest.raises(se.ArgumentError, match="indices: expected an array of cuda:0, got one of"):
        table.lookup(DeviceArray(Other(), memory.upload(np.arange(3))))
    grad = DeviceArray(Other(), memory.upload(np.ones((3, 4), np.float32)))
    with pytest.raises(se.ArgumentError, match="grad: expected an array of cuda:0, got one of"):
        table.update(grad, memory.upload(np.arange(3)))
    assert table.step == 0


@pytest.mark.parametrize("change", ["dtype", "layout", "shape"])
def test_an_array_that_does_not_fit(memory, change):
    table = make()
    given = {
        "dtype": np.ones((3, 4), np.float16),
        "layout": np.ones((4, 3), np.float32).T,
        "shape": np.ones((3, 5), np.float32),
    }[change]
    said = {
        "dtype": "grad: expected dtype float32, got float16",
        "layout": "grad: expected a C-contiguous array",
        "shape": r"grad: expected shape \(3, 4\), got \(3, 5\)",
    }[change]
    given = _foreign(memory, given) if change == "layout" else memory.upload(given)
    with pytest.raises(se.ArgumentError, match=said):
        table.update(given, memory.upload(np.arange(3)))
    assert table.step == 0


def _foreign(memory, array):
    """Somebody else's array of the device, in Fortran's order."""
    if memory.simulated:
        from numba import cuda

        return cuda.to_device(np.asfortranarray(array))
    flat = memory.upload(np.ascontiguousarray(array.T))

    class Foreign:
        def __init__(self):
            theirs = flat.__cuda_array_interface__
            self.__cuda_array_interface__ = {**theirs, "shape": array.shape, "strides": (4, 12)}
            self.keep = flat

    return Foreign()
