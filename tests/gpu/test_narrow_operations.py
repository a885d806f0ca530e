"""Records narrower than float32 on the device: the reference's bits, noise of rounding included."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed import ops, reference
from sparse_embed.dtypes import Precision
from sparse_embed.optim import SGD, Adagrad, LazyAdam, RowWiseAdagrad, RowWiseAdam
from tests.cases import assert_same_bits, narrow_records, twin
from tests.gpu.test_operations import OnDevice, check_reading, of_name

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

BOTH = Precision("bfloat16", "bfloat16", "stochastic")
UPDATES = [  # 4 and 12 columns: 8 bytes a lane, float32 state behind them is not at 16 bytes
    (SGD(0.1, weight_decay=0.01), Precision("float16", "float32", "stochastic"), 12),
    (SGD(0.1), Precision("bfloat16", "float32", "nearest"), 7),
    (LazyAdam(0.01, weight_decay=0.1), BOTH, 7),
    (LazyAdam(0.01), BOTH, 12),
    (LazyAdam(0.01), Precision("float16", "float32", "nearest"), 4),
    (LazyAdam(0.01, clip_norm=0.5), Precision("float16", "bfloat16", "stochastic"), 4),
    (LazyAdam(0.01), Precision("float32", "bfloat16", "stochastic"), 7),
    (Adagrad(0.1, initial_accumulator_value=0.1), BOTH, 1),
    (Adagrad(0.1, initial_accumulator_value=0.1, clip_norm=0.5), BOTH, 7),
    (RowWiseAdagrad(0.1, initial_accumulator_value=0.1, clip_norm=0.7), BOTH, 7),
    (RowWiseAdam(0.01), Precision("float16", "bfloat16", "stochastic"), 4),
    (RowWiseAdam(0.01), BOTH, 7),
]


@pytest.fixture(scope="module")
def device(memory):
    from sparse_embed.cuda.ops import DeviceOps

    return OnDevice(DeviceOps(memory))


@pytest.mark.parametrize("dim", [7, 12])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_reading(device, dtype, dim):
    batch = of_name("weighted, padding -1")
    rec, _ = narrow_records(batch.num_embeddings, dim, None, Precision(dtype))
    check_reading(device, batch, rec)
    grad = np.random.default_rng(0).standard_normal((len(batch.indices), dim))
    args = (rec, batch.slots, batch.indices, grad.astype(np.float32), None, batch.padding_idx)
    assert_same_bits(device.call("dots", *args), reference.dots(*args))


@pytest.mark.parametrize(("optimizer", "precision", "dim"), UPDATES, ids=repr)
def test_updating(device, optimizer, precision, dim):
    batch = of_name("weighted, padding -1")
    rec, layout = narrow_records(batch.num_embeddings, dim, optimizer, precision)
    merged = ops.merge(batch.indices, batch.padding_idx)
    grad = np.random.default_rng(3).standard_normal((2, len(merged), dim)).astype(np.float32)
    grad[:, 0] = 1e-30  # rounds to nothing
    expected, found = twin(rec), device.records(rec)
    rows = device.up(merged.indices)
    for step in (1, 2):
        how = (grad[step - 1], optimizer, step, 0.05)
        with np.errstate(all="ignore"):
            reference.apply(expected, merged.indices, merged.indices, *how)
        device.run.apply(found, rows, rows, device.up(how[0]), *how[1:])
    records = device.down(found.records)
    assert_same_bits(records.view(np.uint32), expected.records.view(np.uint32))
    assert_same_bits(device.down(found.flags), expected.flags)
    assert not records.view(np.uint8)[:, layout.padding()].any()


def test_numbers_that_are_hard_to_round(device):
    """Infinity, NaN, halfway points, the smallest numbers: stored by SGD from a weight of zero."""
    hard = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 1e38, 3.4e38, 2**-24, 2**-25, 6e-8,
            1e-40, -1e-45, 1 + 2**-8, 1 + 3 * 2**-9, 2049, 2051, 0.1, -3.3]  # fmt: skip
    values = np.array(hard, np.float32).reshape(5, 4)
    rows = np.arange(5)
    for dtype in ("float16", "bfloat16"):
        for rounding in ("nearest", "stochastic"):
            rec, layout = narrow_records(5, 4, SGD(1.0), Precision(dtype, "float32", rounding), 0)
            layout.structured(rec.records)["weight"] = 0
            layout.keep_written(rec.records)
            expected, found = twin(rec), device.records(rec)
            with np.errstate(all="ignore"):
                reference.apply(expected, rows, rows, values, SGD(1.0), 3, 1.0)
            device.run.apply(
                found, device.up(rows), device.up(rows), device.up(values), SGD(1.0), 3, 1.0
            )
            records = device.down(found.records)
            assert_same_bits(records.view(np.uint32), expected.records.view(np.uint32))
