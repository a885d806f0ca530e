"""Modules on tables that are stored narrower: float32 comes out, bfloat16 is trained."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import sparse_embed as se  # noqa: E402
from sparse_embed.torch import EmbeddingBag  # noqa: E402


def test_a_bfloat16_table_trains_in_a_module():
    table = se.EmbeddingTable.create(
        None, num_embeddings=50, embedding_dim=4, dtype="bfloat16", optimizer=se.SGD(0.5)
    )
    bag = EmbeddingBag(table, mode="sum")
    before = table.lookup([7])
    out = bag(torch.tensor([[7]]))
    assert out.dtype == torch.float32
    out.sum().backward()
    expected = before - 0.5
    assert np.abs(table.lookup([7]) - expected).max() <= 2**-8


def test_a_dtype_of_torch_is_refused_with_the_way_to_go():
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(se.ArgumentError, match=r"dtype: a lookup gives torch.float32.*create"):
            EmbeddingBag(50, 4, dtype=dtype)
