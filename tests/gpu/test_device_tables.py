"""Tables on a GPU: the bits, files and errors of tables on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import sparse_embed as se
from sparse_embed import device as devices
from sparse_embed.errors import DeviceError, DeviceMemoryError
from tests.cases import assert_same_bits

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("memory"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

ROWS, DIM = 40, 4
ALL = np.arange(ROWS)
SMALL = 1  # cache_bytes: the least that a table may have is more


def create(path, device, **more):
    given = {"optimizer": se.LazyAdam(0.01), "seed": 3, "num_embeddings": ROWS} | more
    return se.EmbeddingTable.create(path, embedding_dim=DIM, device=device, **given)


def steps(table, first, last, commit=True):
    """The same steps whatever the table."""
    for step in range(first, last):
        rng = np.random.default_rng(step)
        indices = rng.integers(0, table.num_embeddings, 12)
        mode = ("mean", "sum", "max")[step % 3]
        grad = rng.standard_normal((3, DIM)).astype(np.float32)
        table.update(grad, indices, [0, 5, 5, 12], mode=mode)
        if commit:
            table.commit()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Rows and state after 2 and 4 steps on the CPU."""
    path = tmp_path_factory.mktemp("cpu") / "table"
    found = {}
    with create(path, "cpu") as table:
        for first, last in ((0, 2), (2, 4)):
            steps(table, first, last)
            found[last] = table.lookup(ALL), table.state(ALL), table.trained_indices()
    return found


def check(table, expected):
    rows, state, _ = expected
    assert_same_bits(np.asarray(table.lookup(ALL)), rows)
    for name, values in table.state(ALL).items():
        assert_same_bits(values, state[name])


def test_train_on_one_device_and_go_on_on_the_other(tmp_path, expected):
    """create, commit, close, open, rollback; the files are the CPU's."""
    path = tmp_path / "table"
    with create(path, "cuda") as table:
        steps(table, 0, 2)
        check(table, expected[2])
        steps(table, 7, 8, commit=False)
        table.rollback()
        check(table, expected[2])
        table.close(checkpoint=False)
    with se.EmbeddingTable.open(path) as table:
        check(table, expected[2])
    with se.EmbeddingTable.open(path, device="cuda:0") as table:
        assert table.step == 2
        assert table.info()["resident"] == "identity"
        steps(table, 2, 4)
        assert table.trained_indices().tolist() == expected[4][2].tolist()
    data = np.load(path / "rows.npy", mmap_mode="r")
    with se.EmbeddingTable.open(path, "r", device="cuda") as table:
        check(table, expected[4])
        trained = table.trained_indices()
        assert_same_bits(np.ascontiguousarray(data["weight"][trained]), expected[4][0][trained])


def test_a_table_larger_than_its_cache(tmp_path):
    """1024 slots, the fewest there are, for 3000 rows: evictions, scratch, batches in parts."""
    tables = {}
    rng = np.random.default_rng(5)
    batches = [rng.choice(3000, 1100, replace=False) for _ in range(2)]
    grads = [rng.standard_normal((1100, DIM)).astype(np.float32) for _ in range(2)]
    for device in ("cpu", "cuda"):
        path = tmp_path / device
        table = create(path, device, num_embeddings=3000, cache_bytes=SMALL, optimizer=se.SGD(0.1))
        for indices, grad in zip(batches, grads, strict=True):
            table.update(grad, indices)
        table.commit()
        tables[device] = table
    assert tables["cuda"].info()["resident"] == "indexed"
    some = batches[1][:30]
    assert_same_bits(tables["cuda"].lookup(some), tables["cpu"].lookup(some))
    bags = tables["cuda"].lookup(batches[0], [0, 1090, 1100], mode="max")
    assert_same_bits(bags, tables["cpu"].lookup(batches[0], [0, 1090, 1100], mode="max"))
    for table in tables.values():
        table.close()
    every = []
    for device in tables:
        with se.EmbeddingTable.open(tmp_path / device) as table:
            every.append(table.lookup(np.arange(3000)))
    assert_same_bits(*every)


def test_rows_are_read_from_the_file_when_they_are_asked_for(tmp_path, expected):
    path = tmp_path / "table"
    with create(path, "cpu") as table:
        steps(table, 0, 2)
    with se.EmbeddingTable.open(path, device="cuda") as table:
        table.prefetch(ALL[:7])
        check(table, expected[2])


def test_arguments_are_checked_before_anything_changes():
    table = create(None, "cuda")
    before = table.lookup(ALL)
    grad = np.ones((2, DIM), np.float32)
    for indices in ([3, ROWS], [-1, 2]):
        with pytest.raises(se.IndexRangeError, match="indices"):
            table.update(grad, indices)
    with pytest.raises(se.ArgumentError, match="grad"):
        table.update(grad[:1], [1, 2])
    assert table.step == 0
    assert_same_bits(table.lookup(ALL), before)
    with pytest.raises(se.ArgumentError, match="cuda:99"):
        create(None, "cuda:99")


def test_backward_apply_weights_nearest_assign_reset(tmp_path):
    found, wanted = create(None, "cuda"), create(None, "cpu")
    indices, offsets = np.array([1, 2, 2, 7, -1, 9]), [0, 2, 6]
    weights = np.array([1, 2, -1, 0.5, 9, 1], np.float32)
    grad = np.arange(8, dtype=np.float32).reshape(2, 4) - 3
    how = {"mode": "mean", "per_sample_weights": weights, "padding_idx": -1}
    results = []
    for table in (found, wanted):
        table.assign([7, 30], np.eye(2, 4, dtype=np.float32))
        table.reset([30])
        merged = table.backward(grad, indices, offsets, **how)
        slopes = table.per_sample_weights_grad(grad, indices, offsets, **how)
        table.apply(merged)
        nearest = table.nearest(np.ones((2, 4), np.float32), 3, rows="all")
        results.append([merged.indices, merged.values, slopes, *nearest, table.lookup(ALL)])
    for ours, theirs in zip(*results, strict=True):
        assert_same_bits(np.asarray(ours), theirs)
    table = create(None, "cuda")
    with pytest.raises(se.ArgumentError, match="stream"):
        wanted.lookup([1], stream=7)
    assert table.lookup(np.empty(0, np.int64)).shape == (0, DIM)


# ---- faults ------------------------------------------------------------------------------------


def test_out_of_device_memory_names_it_and_leaves_the_table(monkeypatch):
    table = create(None, "cuda")
    before = table.lookup(ALL)
    plain = devices.DeviceMemory.empty
    limit = {"calls": 0}

    def empty(self, shape, dtype, what="a batch"):
        limit["calls"] -= 1
        if limit["calls"] == 0:
            raise DeviceMemoryError(f"{self.name}: 9.00 GiB for {what} do not fit; 1 is free")
        return plain(self, shape, dtype, what)

    monkeypatch.setattr(devices.DeviceMemory, "empty", empty)
    grad = np.ones((3, DIM), np.float32)
    refused = 0
    for call in range(1, 40):
        table._run.memory.forget_work()
        limit["calls"] = call
        try:
            table.update(grad, [1, 2, 2], mode=None)
        except DeviceMemoryError:
            refused += 1
            limit["calls"] = 0
            assert table.step == 0
            if call < 4:
                assert_same_bits(table.lookup(ALL[:9]), before[:9])
        else:
            break
    assert refused > 5
    assert table.step == 1
    limit["calls"] = 0
    assert_same_bits(table.lookup([5]), before[[5]])


def test_a_lost_device_closes_the_store_at_its_last_commit(tmp_path, expected, monkeypatch):
    path = tmp_path / "table"
    table = create(path, "cuda")
    steps(table, 0, 2)

    def lost(self, *args):
        raise DeviceError(f"{self.name}: [700] an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(devices.DeviceMemory, "launch", lost)
        with pytest.raises(DeviceError, match="illegal memory access"):
            steps(table, 2, 3)
    with pytest.raises(se.StoreClosedError, match="closed at commit 2, because a GPU failed"):
        table.lookup([1])
    with se.EmbeddingTable.open(path) as table:
        assert table.last_commit == 2
        check(table, expected[2])


def test_a_narrow_table_has_the_cpus_bits_and_files(tmp_path):
    how = {"dtype": "bfloat16", "state_dtype": "bfloat16"}
    theirs, ours = [create(tmp_path / device, device, **how) for device in ("cpu", "cuda")]
    for table in (theirs, ours):
        steps(table, 0, 2)
        table.assign([1, 30], np.eye(2, DIM, dtype=np.float32) / 3)
    check(ours, (theirs.lookup(ALL), theirs.state(ALL), None))
    for table in (theirs, ours):
        table.rollback()
        steps(table, 2, 3)
        table.close()
    files = [(tmp_path / device / "rows.npy").read_bytes() for device in ("cpu", "cuda")]
    assert files[0] == files[1]
    with se.EmbeddingTable.open(tmp_path / "cpu", device="cuda") as table:
        assert table.dtype == "bfloat16"
        with se.EmbeddingTable.open(tmp_path / "cuda") as other:
            check(table, (other.lookup(ALL), other.state(ALL), None))


def test_int8_copies_are_looked_up_there(tmp_path):
    with create(tmp_path / "table", "cpu") as table:
        steps(table, 0, 2)
        table.quantize("int8", tmp_path / "int8").close()
    indices, offsets = np.array([1, 5, 7, 39, 2]), [0, 3, 5]
    results = []
    for device in ("cpu", "cuda"):
        with se.EmbeddingTable.open(tmp_path / "int8", device=device) as table:
            asked = np.ones((1, DIM), np.float32)
            results.append([
                table.lookup(ALL), table.lookup(indices, offsets, mode="mean"),
                *table.nearest(asked, 3),
            ])  # fmt: skip
            with pytest.raises(se.ArgumentError, match="int8 table is a quantised copy"):
                table.update(np.ones((1, DIM), np.float32), [1])
    for expected, found in zip(*results, strict=True):
        assert_same_bits(np.asarray(found), expected)


def test_quantized_copies_of_a_table_on_a_gpu_are_the_cpus(tmp_path):
    with create(tmp_path / "table", "cuda") as table:
        table.assign([3, 4], np.eye(2, DIM, dtype=np.float32))
        with table.quantize("int8") as copy:
            assert copy.device == "cpu"
            assert_same_bits(copy.lookup([3, 4]), np.eye(2, DIM, dtype=np.float32))
