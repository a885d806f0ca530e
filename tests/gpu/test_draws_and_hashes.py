"""Draws and hashes on the device are the CPU kernels', bit for bit: integers decide."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed.kernels import interactions
from sparse_embed.kernels._jit import new_counter
from tests.cases import assert_same_bits

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


def test_shared_negatives(memory):
    from sparse_embed.kernels.cuda import sampling

    rng = np.random.default_rng(3)
    thresholds = rng.integers(0, 2**32, 12).astype(np.uint64)
    alias = (thresholds << np.uint64(32)) | rng.integers(0, 12, 12).astype(np.uint64)
    head = (np.uint64(99), np.uint64(2**40))
    expected = np.empty(70, np.int64)
    interactions.sample_shared_cpu()(*head, alias, new_counter(), expected)
    found = memory.empty(70, np.int64)
    memory.each(sampling.sample_shared_cuda(), 70, *head, memory.upload(alias), found)
    assert_same_bits(memory.download(found), expected)


@pytest.mark.parametrize("num_hashes", [1, 3])
def test_ids(memory, num_hashes):
    from sparse_embed.cuda import hash_keys

    keys = np.array([0, 5, -1, 2**62, -(2**63), 17, *range(30)])
    for scheme in ("murmur3", "fmix64"):
        hasher = se.KeyHasher(1_000_003, num_hashes if scheme == "murmur3" else 1, scheme=scheme)
        unsigned = keys.view(np.uint64)
        found = hash_keys(hasher, memory.upload(unsigned))
        assert_same_bits(np.asarray(found), hasher(unsigned))
        if scheme == "murmur3":
            found = hash_keys(hasher, memory.upload(keys))
            assert_same_bits(np.asarray(found), hasher(keys))
        else:
            with pytest.raises(se.ArgumentError, match="keys: expected dtype uint64"):
                hash_keys(hasher, memory.upload(keys))


@pytest.mark.parametrize("seed", [0, 7])
def test_strings(memory, seed):
    from sparse_embed.cuda import hash_keys

    rng = np.random.default_rng(1)
    keys = [bytes(rng.integers(0, 256, n).astype(np.uint8)) for n in [*range(36), 100]]
    hasher = se.KeyHasher(2**40, 2, seed=seed)
    data = np.frombuffer(b"".join(keys), np.uint8).copy()
    offsets = np.cumsum([0] + [len(key) for key in keys])
    found = hash_keys(hasher, memory.upload(data), memory.upload(offsets))
    assert_same_bits(np.asarray(found), hasher(keys))


def test_what_cannot_be_hashed_there_is_refused(memory):
    from sparse_embed.cuda import hash_keys

    up = memory.upload
    with pytest.raises(se.ArgumentError, match="scheme"):
        hash_keys(se.KeyHasher(100, scheme="thinc"), up(np.arange(3)))
    with pytest.raises(se.ArgumentError, match="keys: expected dtype int64 or uint64"):
        hash_keys(se.KeyHasher(100), up(np.zeros(3, np.float32)))
    with pytest.raises(se.ArgumentError, match="offsets"):
        hash_keys(se.KeyHasher(100), up(np.zeros(3, np.uint8)), up(np.array([0, 5])))
    with pytest.raises(se.ArgumentError, match="keys: expected an array of a GPU"):
        hash_keys(se.KeyHasher(100), np.arange(3))
