"""What the sampler promises: every interaction once an epoch, never a taken item, counter-based."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse

from sparse_embed.errors import ArgumentError
from sparse_embed.kernels.interactions import permute
from sparse_embed.recommend.sampling import (
    SHARED,
    SPARE,
    TILE,
    Interactions,
    Sampler,
    Triplets,
    as_interactions,
)


@pytest.fixture(scope="module")
def taken() -> np.ndarray:
    """(60 users, 40 items) booleans; user 0 took all items but one, user 1 none, user 2 all."""
    matrix = np.random.default_rng(3).random((60, 40)) < 0.2
    matrix[0] = True
    matrix[0, 17] = False
    matrix[1] = False
    matrix[2] = True
    matrix[3:, 5] = False  # only user 0 and 2 took item 5
    return matrix


def sampler(taken: np.ndarray, seed: int = 0, power: float = 0.5) -> Sampler:
    return Sampler(Interactions.from_csr(scipy.sparse.csr_array(taken)), seed, power)


def as_rows(draw: Sampler, batch: Triplets) -> np.ndarray:
    """(B, 3): user, item taken, item not taken; -1 where the triplet is void."""
    users = np.repeat(batch.users, np.diff(batch.starts))
    items = draw.interactions.catalogue[batch.columns]
    against = np.where(batch.opponents < 0, -1, items[len(batch.taken) :][batch.opponents])
    return np.column_stack([users, items[: len(batch.taken)], against])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("batches", [1, 4, 7])
def test_each_interaction_once_and_no_taken_item(taken, power, batches):
    number = int(taken.sum() - taken[2].sum())  # a user who took everything teaches nothing
    draw = sampler(taken, power=power)
    step = -(-number // batches)
    parts = [draw.triplets(5, start, step) for start in range(0, number, step)]
    sizes = [len(part.taken) for part in parts]
    assert sum(sizes) == number
    assert max(sizes) - min(sizes) <= 1
    users, positive, negative = np.concatenate([as_rows(draw, part) for part in parts]).T
    assert taken[users, positive].all()
    assert len(set(zip(users.tolist(), positive.tolist(), strict=True))) == number
    void = negative < 0
    assert not taken[users[~void], negative[~void]].any()
    assert set(negative[(users == 0) & ~void].tolist()) <= {17}
    assert void[users != 0].mean() < 0.02  # a tile has several to choose from


def test_tiles_share_their_negatives_evenly(taken):
    batch = sampler(taken).triplets(0, 0, 1000)
    edges = np.append(batch.starts[:-1:TILE], len(batch.taken))
    np.testing.assert_array_equal(np.diff(batch.tiles), SPARE + np.diff(edges) // SHARED)
    for t, (begin, end) in enumerate(itertools.pairwise(edges)):
        used = batch.opponents[begin:end]
        low, high = batch.tiles[t], batch.tiles[t + 1]
        assert ((used == -1) | ((low <= used) & (used < high))).all()
        # In turn, but where the user took one.
        turn = low + np.arange(end - begin) % (high - low)
        assert (used == turn).mean() > 0.5


def test_a_batch_depends_on_its_number_alone(taken):
    draw = sampler(taken)
    first = as_rows(draw, draw.triplets(4, 400, 200))
    draw = sampler(taken)
    for start in (0, 400):
        again = as_rows(draw, draw.triplets(4, start, 200))
    np.testing.assert_array_equal(again, first)
    apart = draw.triplets(4, 400, 200, together=False)
    np.testing.assert_array_equal(apart.starts, np.arange(len(first) + 1))
    np.testing.assert_array_equal(as_rows(draw, apart)[:, :2], first[:, :2])


def test_seeds_and_epochs_differ(taken):
    draws = [sampler(taken, seed).triplets(epoch, 0, 300) for seed in (0, 1) for epoch in (0, 1)]
    assert len({drawn.taken.tobytes() for drawn in draws}) == 4
    assert len({drawn.negatives.tobytes() for drawn in draws}) == 4


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_items_are_drawn_by_popularity_to_the_power(power):
    # 64 items taken 1, 2, ... 64 times, by users of one item each.
    counts = np.arange(1, 65)
    columns = np.repeat(np.arange(64), counts)
    rows = np.arange(len(columns))
    matrix = scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(rows), 64))
    draw = Sampler(Interactions.from_csr(matrix), 0, power)
    drawn = np.concatenate([draw.triplets(epoch, 0, len(rows)).negatives for epoch in range(960)])
    expected = counts.astype(float) ** power
    expected *= len(drawn) / expected.sum()
    found = np.bincount(drawn, minlength=64)
    # Six standard deviations of a Poisson count.
    assert (abs(found - expected) < 6 * np.sqrt(expected)).all()


@pytest.mark.parametrize("number", [1, 5, 200])  # users with many items for each; repeated ones
def test_shared_negatives_depend_on_their_block_alone(taken, number):
    draw = Sampler(Interactions.from_csr(scipy.sparse.csr_array(taken)), 0, 0.5, block=8)
    whole = draw.shared(2, 0, 300, number)
    assert whole.shape == (38, number)
    np.testing.assert_array_equal(draw.shared(2, 64, 100, number), whole[8:13])
    users, items, columns = draw.pairs(2, 64, 100)
    catalogue = draw.interactions.catalogue
    np.testing.assert_array_equal(catalogue[columns], items)
    marks = draw.marks(users, whole[8:13])
    others = catalogue[np.repeat(whole[8:13], 8, axis=0)[:36]]
    np.testing.assert_array_equal(marks, taken[users[:, None], others])


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 17, 63, 64, 65, 1000])
def test_permute_is_a_permutation(number):
    half_bits = np.uint64(max(1, (number.bit_length() + 1) // 2))
    with np.errstate(over="ignore"):  # uint64 wraps on purpose
        places = [
            int(permute(np.uint64(t), np.uint64(number), half_bits, np.uint64(99)))
            for t in range(number)
        ]
    assert sorted(places) == list(range(number))


def test_catalogue_is_what_somebody_took():
    matrix = scipy.sparse.csr_array(
        (np.ones(4), ([0, 0, 1, 1], [2**29, 7, 7, 2**30])), shape=(2, 2**31 - 1)
    )
    data = Interactions.from_csr(matrix)
    np.testing.assert_array_equal(data.catalogue, [7, 2**29, 2**30])
    assert len(data) == 4


def test_input_is_not_changed():
    data, columns, indptr = np.array([1.0, 0.0, 2.0]), np.array([2, 0, 2]), np.array([0, 3])
    matrix = scipy.sparse.csr_array((data, columns, indptr), shape=(1, 3))
    clean = as_interactions(matrix)
    assert clean.nnz == 1
    np.testing.assert_array_equal(matrix.indices, [2, 0, 2])
    np.testing.assert_array_equal(matrix.data, [1, 0, 2])


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (np.eye(3), "scipy.sparse CSR"),
        ([[1]], "scipy.sparse CSR"),
        (scipy.sparse.csr_array(np.array([[1, np.nan]])), "NaN"),
        (scipy.sparse.csr_array(np.array([[1, np.inf]])), "infinity"),
        (scipy.sparse.csr_array(np.array([[1, -1]])), "-1"),
        (scipy.sparse.csr_array(np.array([[1j, 0]])), "complex"),
        (scipy.sparse.csr_array((3, 3)), "no interactions"),
        (scipy.sparse.csr_array((0, 3)), "no interactions"),
        (scipy.sparse.csr_array(np.zeros((2, 2))), "no interactions"),
        (scipy.sparse.csr_array(np.ones((2, 3))), "every user took every item"),
        (scipy.sparse.coo_array(np.ones(3)), "two dimensions"),
    ],
)
def test_bad_matrices_are_refused(matrix, said):
    with pytest.raises(ArgumentError, match=said) as raised:
        Interactions.from_csr(matrix)
    assert "user_items" in str(raised.value)


@pytest.mark.parametrize("form", ["csr_matrix", "csc_array", "coo_array", "lil_matrix"])
def test_other_sparse_forms_are_converted(taken, form):
    matrix = getattr(scipy.sparse, form)(taken)
    expected = Interactions.from_csr(scipy.sparse.csr_array(taken))
    np.testing.assert_array_equal(Interactions.from_csr(matrix).columns, expected.columns)
