"""Kernels that move records and look through their flags, against plain NumPy."""

import numpy as np
import pytest

from sparse_embed.kernels._jit import new_counter
from sparse_embed.kernels.checksum import xxh64_cpu
from sparse_embed.kernels.records import (
    DIRTY,
    FLAGS_A_CHUNK,
    HOT,
    INFLIGHT,
    UNSAVED,
    count_flagged_cpu,
    gather_blocks_cpu,
    mark_written_cpu,
    select_flagged_cpu,
    settle_cpu,
)


@pytest.mark.parametrize("limit", [0, 1, 1000, FLAGS_A_CHUNK, FLAGS_A_CHUNK + 1, 100_003])
def test_flagged_slots(limit):
    rng = np.random.default_rng(limit)
    flags = rng.choice(np.array([0, DIRTY, INFLIGHT, 28], np.uint8), limit + 10)
    flags[limit // 3 : limit // 2] = 0
    flags[: limit // 4][rng.random(limit // 4) < 0.9] = 0
    for want in (DIRTY, UNSAVED):
        counts = np.empty(-(-limit // FLAGS_A_CHUNK), np.int64)
        count_flagged_cpu()(flags, limit, want, new_counter(), counts)
        slots = np.empty(int(counts.sum()), np.int64)
        ends, words = np.cumsum(counts), flags[: flags.size // 8 * 8].view(np.uint64)
        select_flagged_cpu()(flags, words, want, ends, new_counter(), slots)
        assert np.array_equal(slots, np.flatnonzero(flags[:limit] & want))


def test_the_life_of_flags():
    """DIRTY, then INFLIGHT and HOT; then as before, or without the mark."""
    flags = np.arange(256, dtype=np.uint8)
    before = flags.copy()
    mark_written_cpu()(flags, 255)
    dirty = before & DIRTY
    said = (before & ~np.uint8(DIRTY | HOT)) | np.where(dirty != 0, INFLIGHT | HOT, 0)
    assert np.array_equal(flags[:255], said[:255])
    assert flags[255] == 255
    for put, durable in ((DIRTY, False), (np.uint8(0), True)):
        settled = flags.copy()
        settle_cpu()(settled, 255, put)
        had = (flags & INFLIGHT) != 0
        wanted = (flags & ~INFLIGHT) | np.where(had & (not durable), DIRTY, 0)
        assert np.array_equal(settled[:255], wanted[:255])


@pytest.mark.parametrize("width", [8, 24, 192, 1024])
@pytest.mark.parametrize("begin", [0, 64, 4096 + 32])
def test_gathered_blocks(width, begin):
    """Bytes and digests are those of a copy; blocks begin and end inside of records."""
    rng = np.random.default_rng(width)
    records = rng.standard_normal((500, width)).astype(np.float32)
    slots = np.sort(rng.choice(500, 400, replace=False))
    data = records[slots].view(np.uint8).reshape(-1)[begin:]
    size, blocks = 1024, min((data.size) // 1024, 40)
    memory = np.zeros(size * blocks + 64, np.uint8)
    out = memory[-memory.ctypes.data % 32 :][: size * blocks]  # on 32 bytes, as a page is
    salt, digests = np.uint64(7), np.empty(blocks, np.uint64)
    words = records.view(np.uint64)
    gather_blocks_cpu()(words, slots, begin // 8, salt, new_counter(), out.view(np.uint64), digests)
    assert np.array_equal(out, data[: out.size])
    wanted = [xxh64_cpu()(part, salt) for part in out.view(np.uint64).reshape(blocks, -1)]
    assert np.array_equal(digests, np.array(wanted, np.uint64))
