"""Which models a GPU can train; those that it cannot are refused by name."""

from __future__ import annotations

from collections.abc import Mapping

from sparse_embed.device import DeviceMemory
from sparse_embed.errors import ArgumentError


def check_trainable(
    memory: DeviceMemory | None, users_as: str, features: Mapping[str, object]
) -> None:
    """features: of "users" and of "items", None where there are none.

    Raises:
        ArgumentError: bags of features or of a user's items, which are made on the CPU, on a GPU.
    """
    if memory is None:
        return
    if users_as == "items":
        raise ArgumentError(
            f'users_as: expected "own" on {memory.name}, got "items", which is trained on the CPU'
            " only"
        )
    for name, given in features.items():
        if given is not None:
            raise ArgumentError(
                f"{name[:-1]}_features: expected None on {memory.name}; features are trained on the"
                " CPU only"
            )
