"""Who runs a table's operations: the CPU, or the GPU that its rows are on."""

from __future__ import annotations

from sparse_embed.execution import Execution
from sparse_embed.storage.store import StoreCore


def make_execution(core: StoreCore, name: str) -> Execution:
    """For the device that the resident rows of this table are on."""
    memory = core.tables[name].rows.memory
    if memory is None:
        return Execution(core, name)
    from sparse_embed.cuda.execution import DeviceExecution

    return DeviceExecution(core, name, memory)
