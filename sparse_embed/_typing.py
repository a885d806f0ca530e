"""Names of array types.  The shapes stand in the docstrings; letters as in the design:

B bags · L positions (indices of a batch) · E rows · D columns · U unique indices · S slots
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
IndexArray: TypeAlias = NDArray[np.int64]
ByteArray: TypeAlias = NDArray[np.uint8]
AnyArray: TypeAlias = NDArray[Any]

MODES: tuple[str, ...] = ("sum", "mean", "sqrtn", "max")
METRICS: tuple[str, ...] = ("cosine", "dot", "euclidean")
INITIALIZERS: tuple[str, ...] = ("uniform", "normal", "zeros")

NO_PADDING: int = -(2**63)
"""`padding_idx` of calls without padding; validation lets no index have this value then."""
