"""Who runs a table's operations: the CPU, or the GPU that its rows are on."""

from __future__ import annotations

from sparse_embed.dtypes import FLOAT32
from sparse_embed.errors import ArgumentError
from sparse_embed.execution import Execution
from sparse_embed.storage.store import StoreCore


def make_execution(core: StoreCore, name: str) -> Execution:
    """For the device that the resident rows of this table are on.

    Raises:
        ArgumentError: a GPU, and the table is not all float32.
    """
    memory = core.tables[name].rows.memory
    if memory is None:
        return Execution(core, name)
    if (found := core.tables[name].entry.precision) != FLOAT32:
        raise ArgumentError(
            f"device: on a GPU expected a float32 table, got {found.dtype} with state in "
            f'{found.state_dtype}; open it with device="cpu"'
        )
    from sparse_embed.cuda.execution import DeviceExecution

    return DeviceExecution(core, name, memory)
