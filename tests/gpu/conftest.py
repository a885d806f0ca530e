"""The tests of this folder marked `cuda` need a GPU or the simulator (NUMBA_ENABLE_CUDASIM=1)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sparse_embed import device
from sparse_embed.errors import SparseEmbedError

POISON = 0xA5

if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    # The simulator has a Python thread for each of CUDA's and waits for them in a loop that holds
    # the interpreter: with the usual 5 ms between switches it takes ten times as long.
    sys.setswitchinterval(5e-5)

    from numba.cuda.simulator import kernelapi

    class _SharedArrays(dict[Any, Any]):
        """What the simulator keeps shared arrays in, without its gap between looking for one and
        making it, in which two threads of a block made one each."""

        def __init__(self) -> None:
            super().__init__()
            self._making = threading.Lock()

        def get(self, key: Any, default: Any = None) -> Any:
            self._making.acquire()
            found = super().get(key)
            if found is not None:
                self._making.release()
            return found

        def __setitem__(self, key: Any, array: Any) -> None:
            super().__setitem__(key, array)
            self._making.release()

    _plain_init = kernelapi.FakeCUDAShared.__init__

    def _init(self: Any, dynshared_size: int) -> None:
        _plain_init(self, dynshared_size)
        self._allocations = _SharedArrays()

    kernelapi.FakeCUDAShared.__init__ = _init


@pytest.fixture(scope="session")
def memory() -> device.DeviceMemory:
    """The first GPU, or the simulator's."""
    try:
        return device.device_memory(0)
    except SparseEmbedError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def poisoned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New device memory is full of rubbish: what a kernel does not write cannot look right."""
    if request.node.get_closest_marker("cuda") is None:
        yield
        return
    plain = device.DeviceMemory.empty

    def empty(self: device.DeviceMemory, *args: Any, **kwargs: Any) -> Any:
        array = plain(self, *args, **kwargs)
        if array.size:
            rubbish = np.full(array.size * array.dtype.itemsize, POISON, np.uint8)
            self.fill(array, rubbish.view(array.dtype).reshape(tuple(array.shape)))
            self.synchronize()
        return array

    monkeypatch.setattr(device.DeviceMemory, "empty", empty)
    memory = device.device_memory(0) if "memory" in request.fixturenames else None
    if memory is not None:
        memory.forget_work()
    yield
