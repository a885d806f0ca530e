"""Arrays, launches and recycled memory of a GPU, as far as they can be seen without one."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import struct
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip('no numba-cuda: pip install "sparse-embed[cuda]"', allow_module_level=True)
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator has arrays of its own", allow_module_level=True)

from sparse_embed.kernels.cuda import _calls, _driver, _launch, _ring


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


class LateDriver(FakeDriver):
    """Copies from the host when somebody waits for an event: as late as a driver may."""

    def __init__(self):
        super().__init__(1 << 30)
        self.asked, self.arrived, self.pinned, self.events = [], {}, [], 0

    def cuMemAllocHost_v2(self, found, nbytes):
        self.pinned.append(ctypes.create_string_buffer(nbytes))
        found._obj.value = ctypes.addressof(self.pinned[-1])

    def cuEventCreate(self, found, _flags):
        self.events += 1
        found._obj.value = self.events

    def cuMemcpyHtoDAsync_v2(self, target, source, nbytes, _stream):
        self.asked.append((target, source, nbytes))

    def cuEventRecord(self, event, _stream):
        self.asked.append(event)

    def cuEventSynchronize(self, event):
        for _ in range(self.asked.index(event) + 1):
            what = self.asked.pop(0)
            if isinstance(what, tuple):
                target, source, nbytes = what
                self.arrived[target] = ctypes.string_at(source, nbytes)


def test_what_is_sent_may_change_at_once(monkeypatch):
    """Copies are made late, and more than the pinned memory holds are under way."""
    fake = LateDriver()
    monkeypatch.setattr(_ring, "driver", lambda: fake)

    def pinned(nbytes):
        address = _calls.handle_from(fake.cuMemAllocHost_v2, nbytes)
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)

    ring = _ring.Ring(pinned)
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(1, _ring.LARGEST // 8, 40), _ring.LARGEST // 8, *[3] * 300]
    wanted = {}
    for number, size in enumerate(sizes):
        array = rng.integers(0, 2**63, int(size))
        wanted[number] = array.tobytes()
        ring.send(number, array, 0)
        array[:] = 0
        del array
    while fake.asked:
        fake.cuEventSynchronize(next(what for what in fake.asked if not isinstance(what, tuple)))
    assert fake.arrived == wanted
    assert fake.events <= 256


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


class Recorder:
    """A card, and marks in its streams, that write down what they are asked."""

    def __init__(self):
        self.asked, self.entered = [], 0

    def __enter__(self):
        self.entered += 1

    def __exit__(self, *_):
        self.entered -= 1

    def after(self, stream, other):
        self.asked.append(f"{stream} after {other}")

    def record(self, stream):
        self.asked.append(f"end of {stream}")

    def synchronize(self):
        self.asked.append("waited")

    def hold(self, stream):
        self.asked.append(f"{stream} after the end")

    def launch(self, kernel, blocks, threads, stream, args):
        self.asked.append(f"{kernel} on {stream}")
        if kernel == "bad":
            raise _calls.CudaCallError("cuLaunchKernel", 700, "CUDA_ERROR_ILLEGAL_ADDRESS")


@pytest.fixture
def recorded(monkeypatch):
    from sparse_embed.device import DeviceMemory
    from sparse_embed.kernels.cuda import _shim, streams

    card = Recorder()
    monkeypatch.setattr(_shim, "open_card", lambda index: card)
    monkeypatch.setattr(streams, "Mark", lambda: card)
    return DeviceMemory(0), card


def test_work_comes_in_the_order_of_the_calls_whatever_their_streams(recorded):
    memory, card = recorded
    for stream in (None, 7, 7, None, 1, 8):  # 1 is the default stream by another name
        with memory.on_stream(stream):
            memory.launch("kernel", 1, 1)
            assert memory.stream_handle == (None if stream in (None, 1) else stream)
    assert card.asked == [
        "kernel on 0",
        "7 after 0", "kernel on 7", "end of 7",
        "7 after the end", "kernel on 7", "end of 7",  # it might be another 7
        "0 after the end", "kernel on 0",
        "kernel on 0",
        "8 after the end", "8 after 0", "kernel on 8", "end of 8",
    ]  # fmt: skip
    assert card.entered == 0
    assert memory.stream == 0


def test_work_without_a_stream_comes_after_that_on_streams(recorded):
    """A commit after a step on somebody's stream."""
    memory, card = recorded
    with memory.on_stream(7):
        memory.launch("step", 1, 1)
    memory.launch("commit", 1, 1)
    memory.launch("commit", 1, 1)
    with memory.aside(5):  # where marks tell what to wait for
        memory.launch("prefetch", 1, 1)
    assert card.asked == [
        "7 after 0", "step on 7", "end of 7", "0 after the end", "commit on 0", "commit on 0",
        "prefetch on 5",
    ]  # fmt: skip


def test_every_stream_waits_for_all_others_whoever_used_one_between(recorded):
    """Thread A: 7 then 8, thread B: the default stream meanwhile."""
    from sparse_embed.device_order import Order

    _, card = recorded
    order = Order(card)
    order.follow(7)
    order.follow(0)  # B's call begins before A's ends
    order.end(7)
    card.asked.clear()
    order.follow(8)
    assert card.asked == ["8 after the end", "8 after 0"]
    for stream in range(100, 300):
        order.follow(stream)
        order.end(stream)
    assert len(order._ends) <= 64


def test_errors_of_cuda_are_named_and_the_thread_left_as_it_was(recorded):
    from sparse_embed.errors import DeviceError

    memory, card = recorded
    with pytest.raises(DeviceError, match=r"cuda:0: \[700\] cuLaunchKernel: CUDA_ERROR_ILLEGAL"):
        memory.launch("bad", 1, 1)
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"), memory.on_stream(7):
        memory.launch("bad", 1, 1)
    with pytest.raises(KeyError), memory.on_stream(7):
        raise KeyError("not CUDA's")
    assert card.entered == 0
    assert memory._chosen.depth == 0
    assert memory.stream == 0


class Small(Recorder):
    """A card with room for so many bytes."""

    def __init__(self):
        super().__init__()
        self.room = 85

    def memory_info(self):
        return self.room, 85

    def empty(self, shape, dtype, stream):
        if shape > self.room:
            raise _calls.CudaCallError("cuMemAlloc_v2", 2, "CUDA_ERROR_OUT_OF_MEMORY")
        self.room -= shape
        array = _launch.Array(4096, (shape,), np.dtype(dtype), Owner(self, shape))
        return array


class Owner:
    def __init__(self, card, count):
        self.card, self.count = card, count

    def __del__(self):
        self.card.room += self.count


def test_a_kept_buffer_gives_its_memory_back_before_it_grows(monkeypatch):
    from sparse_embed.device import DeviceMemory
    from sparse_embed.errors import DeviceMemoryError
    from sparse_embed.kernels.cuda import _shim

    card = Small()
    monkeypatch.setattr(_shim, "open_card", lambda index: card)
    memory = DeviceMemory(0)
    for length, left in ((40, 45), (60, 25), (80, 5), (70, 5)):  # 90 would not fit, 80 do
        shape = memory.work("rows", length, np.uint8).shape
        assert (shape, card.room) == ((length,), left)
    with pytest.raises(
        DeviceMemoryError, match=r"86 bytes for rows, for a batch do not fit; 85 bytes of 85 bytes"
    ):
        memory.work("rows", 86, np.uint8)
    assert memory.work("rows", 10, np.uint8).shape == (10,)


def test_a_context_that_cannot_be_left_is_an_error_of_cuda(recorded, monkeypatch):
    from sparse_embed.errors import DeviceError

    memory, _ = recorded

    def broken(self, *_):
        raise _calls.CudaCallError("cuCtxPopCurrent_v2", 700, "CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(Recorder, "__exit__", broken)
    with pytest.raises(DeviceError, match="cuCtxPopCurrent"):
        memory.launch("kernel", 1, 1)
    assert memory._chosen.depth == 0


def test_threads_that_want_the_same_kernel_prepare_it_once(monkeypatch):
    """Numba fails where two threads load a module at once ("key already in dictionary")."""
    made, inside, together = [], [], []

    class Slow:
        def __init__(self, kernel, args):
            inside.append(self)
            together.append(len(inside))
            time.sleep(0.05)
            inside.remove(self)
            made.append(kernel)

        def start(self, blocks, threads, stream, words):
            made.append((blocks, threads, stream, words))

    monkeypatch.setattr(_driver, "Launcher", Slow)
    monkeypatch.setattr(_driver, "cuda", SimpleNamespace(gpus={0: contextlib.nullcontext()}))
    card = object.__new__(_driver.Card)
    card.index = 0
    kernels = [SimpleNamespace(launchers={}) for _ in range(2)]
    threads = [
        threading.Thread(target=card.launch, args=(kernels[i % 2], 3, 64, 0, (np.int64(i),)))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1, 1]
    assert [made.count(kernel) for kernel in kernels] == [1, 1]
    started = sorted(what[3] for what in made if isinstance(what, tuple))
    assert started == [[np.int64(i)] for i in range(8)]
