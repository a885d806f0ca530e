"""Tables on NVIDIA GPUs: the operations, batches and results of device="cuda".

Public: `DeviceArray`, what results are when indices lie on the GPU, and `hash_keys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_embed.cuda.arrays import DeviceArray
    from sparse_embed.cuda.hashing import hash_keys

__all__ = ["DeviceArray", "hash_keys"]


def __getattr__(name: str) -> Any:
    """Imports numba-cuda only when it is asked for."""
    if name == "DeviceArray":
        from sparse_embed.cuda.arrays import DeviceArray

        return DeviceArray
    if name == "hash_keys":
        from sparse_embed.cuda.hashing import hash_keys

        return hash_keys
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
