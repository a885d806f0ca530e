"""Scores and exact top-k, and dropout."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_embed import ops, reference
from tests.cases import assert_same_bits

METRICS = ("cosine", "dot", "euclidean")


@pytest.mark.parametrize("dim", [1, 7, 64, 100, 257])
def test_scores_equal_reference(dim):
    rng = np.random.default_rng(dim)
    block = rng.standard_normal((130, dim)).astype(np.float32)
    queries = rng.standard_normal((5, dim)).astype(np.float32)
    block[3] = 0
    queries[1] = 0
    queries[2] = block[7]
    for metric in METRICS:
        found = ops.scores(block, queries, metric)
        assert_same_bits(found, reference.scores(block, queries, metric))
        if metric == "cosine":
            assert not found[1].any()
            assert not found[:, 3].any()
        if metric == "euclidean":
            assert found[2, 7] == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [0, 1, 3, 40, 100])
def test_top_k_equals_reference(metric, k):
    rng = np.random.default_rng(k)
    scores = rng.integers(-3, 4, (6, 40)).astype(np.float32)  # many ties
    scores[1] = np.nan
    scores[2, ::2] = np.nan
    scores[3, :5] = [np.inf, -np.inf, 0.0, -0.0, np.inf]
    candidates = rng.permutation(1000)[:40]
    found, expected = (m.top_k(scores, candidates, k, metric) for m in (ops, reference))
    assert_same_bits(found[0], expected[0])
    assert_same_bits(found[1], expected[1])


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_in_any_order_give_the_same_best(metric):
    rng = np.random.default_rng(0)
    scores = rng.integers(-9, 9, (3, 60)).astype(np.float32)
    candidates = rng.permutation(60)
    expected = ops.top_k(scores, candidates, 7, metric)
    for order in ([0, 1, 2], [2, 0, 1]):
        best_indices, best_scores = np.full((3, 7), -1), np.zeros((3, 7), np.float32)
        for part in order:
            cut = slice(20 * part, 20 * part + 20)
            block = np.ascontiguousarray(scores[:, cut])
            ops.merge_top_k(block, candidates[cut], metric, best_indices, best_scores)
        assert_same_bits(best_indices, expected[0])
        assert_same_bits(best_scores, expected[1])


@pytest.mark.parametrize("p", [0.0, 0.3, 0.999])
def test_dropout_equals_reference_and_keeps_its_share(p):
    found = ops.dropout_scale(3, 7, 100_000, p)
    assert_same_bits(found, reference.dropout_scale(3, 7, 100_000, p))
    assert set(np.unique(found)) <= {np.float32(0), np.float32(1 / (1 - p))}
    assert abs((found == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / 100_000) + 1e-12


def test_dropout_changes_with_seed_and_step_and_not_with_length():
    one = ops.dropout_scale(3, 7, 1000, 0.5)
    assert_same_bits(ops.dropout_scale(3, 7, 400, 0.5), one[:400])
    assert (ops.dropout_scale(4, 7, 1000, 0.5) != one).any()
    assert (ops.dropout_scale(3, 8, 1000, 0.5) != one).any()
