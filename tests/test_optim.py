"""Optimizers as descriptions: checks, dicts, scalars; all of them train."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from sparse_embed import ops
from sparse_embed.errors import ArgumentError
from sparse_embed.optim import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    LazyAdam,
    RowWiseAdagrad,
    RowWiseAdam,
    optimizer_from_dict,
)
from tests.cases import records

ALL = [
    SGD(0.5),
    SGD(1, weight_decay=0.1, clip_value=2),
    Adagrad(0.1, lr_decay=0.5, clip_norm=1.0),
    RowWiseAdagrad(0.2, eps=1e-6),
    LazyAdam(betas=[0.8, 0.9], eps_mode="outside"),
    RowWiseAdam(weight_decay=0.01),
]


@pytest.mark.parametrize("optimizer", ALL, ids=repr)
def test_dict_round_trip_through_json(optimizer):
    assert optimizer_from_dict(json.loads(json.dumps(optimizer.to_dict()))) == optimizer


@pytest.mark.parametrize("optimizer", ALL, ids=repr)
def test_frozen(optimizer):
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimizer.lr = 1.0


NAN, INF = float("nan"), float("inf")
BAD = [
    (SGD, {"lr": NAN}), (SGD, {"lr": -1}), (SGD, {"lr": INF}), (SGD, {"lr": "1"}),
    (SGD, {"lr": None}), (SGD, {"lr": True}), (SGD, {"lr": 1e39}), (SGD, {"lr": 1j}),
    (SGD, {"lr": 1, "weight_decay": -0.1}), (SGD, {"lr": 1, "clip_value": 0}),
    (SGD, {"lr": 1, "clip_norm": -1}), (SGD, {"lr": 1, "clip_norm": NAN}),
    (Adagrad, {"eps": -1e-9}), (Adagrad, {"lr_decay": NAN}),
    (Adagrad, {"initial_accumulator_value": -1}), (RowWiseAdagrad, {"eps": "small"}),
    (LazyAdam, {"betas": (0.9, 1.0)}), (LazyAdam, {"betas": (-0.1, 0.9)}),
    (LazyAdam, {"betas": 0.9}), (LazyAdam, {"betas": (0.9,)}), (LazyAdam, {"betas": (0.9, NAN)}),
    (LazyAdam, {"eps_mode": "inside"}), (LazyAdam, {"eps_mode": 1}), (RowWiseAdam, {"eps": NAN}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), BAD, ids=str)
def test_bad_values_are_refused_by_name(kind, values):
    with pytest.raises(ArgumentError, match=f"{kind.__name__}.{list(values)[-1]}"):
        kind(**values)


@pytest.mark.parametrize(
    "data",
    [
        None, [], "sgd", {}, {"name": "adam"}, {"name": None}, {"name": ["sgd"]}, {"name": "sgd"},
        SGD(1.0).to_dict() | {"momentum": 0.9},
        {k: v for k, v in SGD(1.0).to_dict().items() if k != "weight_decay"},
        SGD(1.0).to_dict() | {"lr": "1"}, SGD(1.0).to_dict() | {"name": "lazy_adam"},
    ],
)  # fmt: skip
def test_bad_dicts_are_refused(data):
    with pytest.raises(ArgumentError):
        optimizer_from_dict(data)


def test_names_are_the_registry():
    assert {kind.name: kind for kind in OPTIMIZERS.values()} == OPTIMIZERS


def test_state_fields():
    assert SGD(1.0).state_fields(7) == ()
    assert Adagrad(initial_accumulator_value=0.5).state_fields(7) == (("sum", 7, 0.5),)
    assert RowWiseAdagrad().state_fields(7) == (("sum", 1, 0.0),)
    assert LazyAdam().state_fields(7) == (("exp_avg", 7, 0.0), ("exp_avg_sq", 7, 0.0))
    assert RowWiseAdam().state_fields(7) == (("exp_avg", 7, 0.0), ("exp_avg_sq", 1, 0.0))


@pytest.mark.parametrize("step", [1, 2, 1000, 10**6, 10**12])
def test_bias_correction_is_computed_in_float64(step):
    hat, outside = LazyAdam().scalars(step, 0.1), LazyAdam(eps_mode="outside").scalars(step, 0.1)
    correction1, correction2 = 1 - 0.9**step, 1 - 0.999**step
    # rtol: 1 - 0.999^t in float64 is itself good to 1e-13; then one rounding to float32
    np.testing.assert_allclose(hat[0], 0.1 * math.sqrt(correction2) / correction1, rtol=1e-7)
    np.testing.assert_allclose(outside[0], 0.1 / correction1, rtol=1e-7)
    np.testing.assert_allclose(outside[3], 1 / math.sqrt(correction2), rtol=1e-7)
    assert hat.dtype == np.float32


def test_eps_modes_agree_when_eps_is_nothing():
    rng = np.random.default_rng(0)
    rows, values = np.arange(5), rng.standard_normal((5, 7)).astype(np.float32)
    results = []
    for mode in ("hat", "outside"):
        rec = records(5, 7, LazyAdam(), virgin=0.0)
        optimizer = LazyAdam(eps=0.0, eps_mode=mode)
        for step in range(1, 6):
            ops.apply(rec, rows, rows, values, optimizer, step, 0.1)
        results.append(rec.records)
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.1), Adagrad(0.5), RowWiseAdagrad(0.5), LazyAdam(0.05), RowWiseAdam(0.05)],
    ids=repr,
)
def test_a_quadratic_is_minimised_on_touched_rows_only(optimizer):
    """0.5 |w - 1|^2 on rows 0 to 9 of 20, from the first weights on."""
    rec = records(20, 7, optimizer, virgin=1.0)
    rows = np.arange(10)
    for step in range(1, 300):
        weight = ops.lookup(rec, rows, rows, ops.NO_PADDING)
        ops.apply(rec, rows, rows, weight - 1, optimizer, step, optimizer.lr)
    np.testing.assert_allclose(rec.records[:10, :7], 1, atol=0.02)
    assert not rec.records[10:].any()


def test_clipping_by_norm_and_value():
    rows = np.array([0])
    values = np.array([[3.0, 4.0, 0.0]], np.float32)
    for optimizer, moved in (
        (SGD(1.0, clip_norm=1.0), [0.6, 0.8, 0.0]),
        (SGD(1.0, clip_value=3.5), [3.0, 3.5, 0.0]),
        (SGD(1.0, clip_norm=5.0), [3.0, 4.0, 0.0]),
        (SGD(1.0, clip_value=3.0, clip_norm=3.0), np.array([1.0, 1.0, 0.0]) * 3 / math.sqrt(2)),
    ):
        rec = records(1, 3, optimizer, virgin=0.0)
        before = rec.records[0, :3].copy()
        ops.apply(rec, rows, rows, values, optimizer, 1, 1.0)
        np.testing.assert_allclose(before - rec.records[0, :3], moved, rtol=1e-5, atol=1e-6)
