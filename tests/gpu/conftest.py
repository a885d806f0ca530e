"""The tests of this folder marked `cuda` need a GPU or the simulator (NUMBA_ENABLE_CUDASIM=1)."""

from __future__ import annotations

import os
import sys
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
            array.copy_to_device(rubbish.view(array.dtype).reshape(tuple(array.shape)))
        return array

    monkeypatch.setattr(device.DeviceMemory, "empty", empty)
    memory = device.device_memory(0) if "memory" in request.fixturenames else None
    if memory is not None:
        memory.forget_work()
    yield
