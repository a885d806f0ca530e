"""Arrays, launches and recycled memory of a GPU, as far as they can be seen without one."""

from __future__ import annotations

import importlib.util
import os
import struct

import numpy as np
import pytest

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip('no numba-cuda: pip install "sparse-embed[cuda]"', allow_module_level=True)
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator has arrays of its own", allow_module_level=True)

from sparse_embed.kernels.cuda import _calls, _driver, _launch


def array(shape, dtype=np.float32, address=4096):
    return _launch.Array(address, shape, np.dtype(dtype), None)


def test_an_array_is_given_to_kernels_as_numba_gives_its_own():
    # meminfo, parent, number, bytes of one, address, shape, strides
    assert array((5,), np.int64).words == (0, 0, 5, 8, 4096, 5, 8)
    assert array((5, 3)).words == (0, 0, 15, 4, 4096, 5, 3, 12, 4)
    assert array((0, 3)).words == (0, 0, 0, 4, 4096, 0, 3, 12, 4)


def test_parts_and_axes_of_an_array():
    whole = array((6, 4))
    part = whole[2:5]
    assert (part.address, part.shape, part.size) == (4096 + 2 * 16, (3, 4), 12)
    assert whole[6:].shape == (0, 4)
    assert whole.reshape((24,)).words == array((24,)).words
    assert whole.reshape((3, -1)).shape == (3, 8)
    assert whole.view(np.uint32).kind == array((1, 1), np.uint32).kind != whole.kind
    with pytest.raises(ValueError, match=r"\(6, 4\) cannot be \(5, 5\)"):
        whole.reshape((5, 5))
    with pytest.raises(ValueError, match="float32 cannot be seen as int64"):
        whole.view(np.int64)
    with pytest.raises(IndexError, match="runs of the first axis"):
        whole[::2]


def test_every_argument_takes_places_of_eight_bytes():
    given = (
        array((5, 3)), (1, 0, 1), (np.float32(1.5),) * 2, True, np.uint8(3), np.uint64(2**64 - 1),
        -7, np.float32(-2.0),
    )  # fmt: skip
    letters = [_launch._type_and_format(value)[1] for value in given]
    assert [struct.calcsize("<" + part) for part in letters] == [72, 24, 16, 8, 8, 8, 8, 8]
    packed = struct.pack("<" + letters[-1], given[-1])
    assert packed == np.float32(-2.0).tobytes() + bytes(4)


class FakeDriver:
    """Memory at made-up addresses, of which there is only so much."""

    def __init__(self, room):
        self.room, self.next, self.taken = room, 1 << 20, {}

    def cuMemAlloc_v2(self, found, nbytes):
        if nbytes > self.room:
            raise _calls.CudaCallError("cuMemAlloc_v2", 2, "CUDA_ERROR_OUT_OF_MEMORY")
        self.room -= nbytes
        self.taken[self.next] = nbytes
        found._obj.value = self.next
        self.next += 1 << 20

    def cuMemFree_v2(self, address):
        self.room += self.taken.pop(address)


class FakeCard:
    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def test_memory_is_recycled_in_the_order_of_its_stream(monkeypatch):
    fake = FakeDriver(1 << 20)
    monkeypatch.setattr(_driver, "driver", lambda: fake)
    pool = _driver.Pool(FakeCard())
    block = pool.take(1000, stream=0)
    first = block.address
    assert block.nbytes == 1024
    del block
    assert pool.take(1000, stream=7).address != first  # another stream may be at work with it
    block = pool.take(900, stream=0)
    assert block.address == first
    assert pool.take(0, stream=0).nbytes == 512
    del block
    pool.trim()
    assert fake.taken == {}
    assert fake.room == 1 << 20


def test_memory_that_waits_is_given_back_before_an_array_is_refused(monkeypatch):
    fake = FakeDriver(4096)
    monkeypatch.setattr(_driver, "driver", lambda: fake)
    pool = _driver.Pool(FakeCard())
    pool.take(3000, stream=0)
    large = pool.take(4000, stream=0)
    assert fake.taken == {large.address: 4096}
    with pytest.raises(_calls.CudaCallError, match="OUT_OF_MEMORY"):
        pool.take(600, stream=0)
