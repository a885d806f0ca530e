"""The recommender: a fit of BPR and top-k lists, against implicit's and LightFM's on the same data.

Users and items are as skewed as in MovieLens and Gowalla (Zipf, s = 0.6).  Before the race all
models train from scratch; ours must beat the popularity list in recall@20 of held-out items, and
theirs is reported beside it.

    equal epochs          the same number of visits of every interaction, each at its own defaults
    equal quality         theirs at the learning rate and number of epochs of a grid with the best
                          recall@20; ours in the fewest epochs that reach it, all else at its
                          defaults (where none do, in those that come nearest: the facts say so)
    speed at that quality ours at all its defaults, whose recall@20 must not be below implicit's
                          best; theirs as in "equal quality".  Seconds for a million interactions

LightFM's own package no longer installs with setuptools of today.  `pip install rectools-lightfm`
is the same code with a set-up script that does (it needs a C compiler), and is used where it is
installed: WARP at its default learning rate, in those epochs of a grid with the best recall@20.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse

from benchmarks import workloads
from benchmarks.harness import OURS, Case, Competitor, Disagreement, Settings, gate, race
from sparse_embed.recommend import BPR, Popularity, evaluate, leave_one_out

# Theirs, and our epochs: what the race at equal quality chooses from.
RATES, ITERATIONS = (0.01, 0.03, 0.1), (10, 25, 50, 100)
EPOCHS = (5, 10, 15, 20, 25, 30, 40, 60, 80, 100)
VISITS = (5, 10, 20)  # LightFM's epochs
DEFAULTS = "sparse_embed, defaults"
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

ABOUT = "a fit of BPR, and top-k lists; implicit, LightFM"


def run(settings: Settings) -> Iterator[Case]:
    users, items, each = (300, 200, 12) if settings.quick else (30_000, 10_000, 40)
    matrix = interactions(users, items, each)
    train, test = leave_one_out(matrix, seed=0)
    yield _epochs(settings, train, test)
    if not settings.quick:
        matrix = interactions(12_000, 5_000, each)
    yield from _quality(settings, *leave_one_out(matrix, seed=0))
    yield _lists(settings, train)


def interactions(users: int, items: int, each: int, tastes: int = 16) -> Any:
    """(users, items) CSR: every user mostly takes popular items of a few of `tastes` kinds."""
    tastes = min(tastes, items // 5)  # each has some items, however few there are
    rng = np.random.default_rng(0)
    popularity = np.arange(1, items + 1) ** -workloads.USERS
    kind = rng.integers(0, tastes, items)
    likes = rng.integers(0, tastes, (users, 2))
    pool = [np.flatnonzero(kind == k) for k in range(tastes)]
    chances = [popularity[found] / popularity[found].sum() for found in pool]
    rows, columns = [], []
    for user in range(users):
        for k in likes[user]:
            size = min(each // 2, len(pool[k]))
            columns.append(rng.choice(pool[k], size, p=chances[k], replace=False))
            rows.append(np.full(size, user))
    shape = (users, items)
    pairs = (np.concatenate(rows), np.concatenate(columns))
    matrix = scipy.sparse.csr_array((np.ones(len(pairs[0]), np.float32), pairs), shape)
    matrix.data[:] = 1
    return matrix


def _implicit(epochs: int, rate: float = 0.01) -> Any:
    from implicit.bpr import BayesianPersonalizedRanking

    # implicit's defaults, but for the length of vectors, the epochs, and `rate` where one is given.
    return BayesianPersonalizedRanking(
        factors=63, iterations=epochs, learning_rate=rate, random_state=0
    )


def _their_recall(epochs: int, rate: float, matrix: Any, test: Any) -> float:
    """recall@20 of a fit of implicit's."""
    theirs = _implicit(epochs, rate)
    theirs.fit(matrix, show_progress=False)
    lists, _ = theirs.recommend(np.arange(matrix.shape[0]), matrix, N=20)
    return float(np.mean(_hits(lists, test)))


def _epochs(settings: Settings, train: Any, test: Any) -> Case:
    epochs = 1 if settings.quick else 20
    name = f"BPR x 64, equal epochs: {epochs} of {train.nnz:,} interactions"
    quality: dict[str, float] = {}
    absent: dict[str, str] = {}
    base = evaluate(Popularity(train), train, test, k=20)["recall@20"]
    model = BPR(embedding_dim=64, epochs=20, seed=0).fit(train)
    quality["sparse_embed, 20 epochs"] = evaluate(model, train, test, k=20)["recall@20"]
    competitors = [
        Competitor(
            "sparse_embed", lambda i: BPR(embedding_dim=64, epochs=epochs, seed=0).fit(train)
        )
    ]
    try:
        _implicit(1)
    except ImportError as error:
        absent["implicit"] = f"not installed ({error})"
    else:
        matrix = scipy.sparse.csr_matrix(train)
        quality["implicit, 20 epochs"] = _their_recall(20, 0.01, matrix, test)
        competitors.append(
            Competitor("implicit", lambda i: _implicit(epochs).fit(matrix, show_progress=False))
        )
    if quality["sparse_embed, 20 epochs"] < base:
        raise Disagreement(f"recall@20: {quality}, the popularity list has {base:.3f}")
    case = race(name, competitors, settings.count(5, 1), warmup=1, absent=absent)
    case.facts = {"recall@20": quality | {"popularity": base}} | _speeds(
        case, {name: epochs * train.nnz for name in case.samples}
    )
    return case


def _speeds(case: Case, done: dict[str, int]) -> dict[str, Any]:
    """Interactions a second, from those that a run of each competitor visits."""
    speeds = {name: done[name] / case.median(name) for name in case.samples}
    return {"interactions a second": speeds}


def _quality(settings: Settings, train: Any, test: Any) -> Iterator[Case]:
    """Seconds to a recall@20 that is the best of implicit's, and speeds at that quality."""
    rates, iterations, epochs, visits = RATES, ITERATIONS, EPOCHS, VISITS
    if settings.quick:
        rates, iterations, epochs, visits = (0.1,), (1,), (1, 20), (1,)
    matrix = scipy.sparse.csr_matrix(train)
    name = f"BPR x 64, equal quality: {train.nnz:,} interactions"
    try:
        theirs = {
            (count, rate): _their_recall(count, rate, matrix, test)
            for count in iterations
            for rate in rates
        }
    except ImportError as error:
        yield Case(name, absent={"implicit": f"not installed ({error})"})
        return
    count, rate = max(theirs, key=lambda setting: theirs[setting])
    wanted, ours = theirs[count, rate], {}
    for passes in epochs:
        ours[passes] = _our_recall(BPR(embedding_dim=64, epochs=passes, seed=0), train, test)
        if ours[passes] >= wanted:
            break
    chosen = max(ours, key=lambda passes: ours[passes])
    usual = BPR(embedding_dim=64).epochs
    reached = {"implicit": wanted}
    reached[DEFAULTS] = _our_recall(BPR(embedding_dim=64, seed=0), train, test)
    if not settings.quick and reached[DEFAULTS] < wanted:
        raise Disagreement(f"recall@20: {reached[DEFAULTS]:.3f} at defaults, wanted {wanted:.3f}")
    done = {OURS: chosen * train.nnz, DEFAULTS: usual * train.nnz, "implicit": count * train.nnz}
    competitors = [
        Competitor(OURS, lambda i: BPR(embedding_dim=64, epochs=chosen, seed=i).fit(train)),
        Competitor("implicit", lambda i: _implicit(count, rate).fit(matrix, show_progress=False)),
        Competitor(DEFAULTS, lambda i: BPR(embedding_dim=64, seed=i).fit(train)),
    ]
    facts: dict[str, Any] = {}
    absent: dict[str, str] = {}
    try:
        warp = _warp_recalls(visits, train, test)
    except ImportError as error:
        absent["LightFM"] = f"not installed ({error})"
    else:
        best = max(warp, key=lambda passes: warp[passes])
        reached["LightFM"], done["LightFM"] = warp[best], best * train.nnz
        facts["LightFM WARP, recall@20"] = {f"{n} epochs": x for n, x in warp.items()}
        pairs = _pairs(train)
        competitors.append(
            Competitor("LightFM", lambda i: _lightfm().fit(pairs, epochs=best, num_threads=_CORES))
        )
    raced = race(name, competitors, settings.count(3, 1), warmup=0)
    facts = {
        "wanted": wanted,
        "reached": ours[chosen],
        "implicit, recall@20": {f"{n} at {lr:g}": x for (n, lr), x in theirs.items()},
        "ours, recall@20": {f"{n} epochs": x for n, x in ours.items()},
    } | facts
    samples = {n: raced.samples[n] for n in (OURS, "implicit")}
    case = Case(name, samples)
    case.facts = facts | _speeds(case, done)
    yield case
    # The same runs, by what they visit.
    others = [DEFAULTS, *(n for n in raced.samples if n not in (OURS, DEFAULTS))]
    shares = {n: [1e6 * s / done[n] for s in raced.samples[n]] for n in others}
    shares = {OURS if n == DEFAULTS else n: found for n, found in shares.items()}
    name = f"BPR x 64, speed at that quality: a million of {train.nnz:,} interactions"
    epochs_of = {n: done[n] // train.nnz for n in others}
    yield Case(name, shares, absent, {"recall@20": reached, "epochs": epochs_of})


def _our_recall(model: BPR, train: Any, test: Any) -> float:
    return float(evaluate(model.fit(train), train, test, k=20)["recall@20"])


def _lightfm() -> Any:
    from lightfm import LightFM

    return LightFM(no_components=64, loss="warp", random_state=0)


def _pairs(train: Any) -> Any:
    """What LightFM reads: COO with int32 coordinates."""
    pairs = scipy.sparse.coo_array(train)
    rows, columns = (part.astype(np.int32) for part in pairs.coords)
    return scipy.sparse.coo_matrix((pairs.data.astype(np.float32), (rows, columns)), train.shape)


def _warp_recalls(epochs: Sequence[int], train: Any, test: Any) -> dict[int, float]:
    """recall@20 after so many epochs; its learning rate does not depend on how many will come."""
    model, found = _lightfm(), {}
    pairs = _pairs(train)
    for before, count in pairwise((0, *epochs)):
        model.fit_partial(pairs, epochs=count - before, num_threads=_CORES)
        biases, items = model.get_item_representations()
        _, users = model.get_user_representations()
        lists = np.empty((len(users), 20), np.int64)
        for begin in range(0, len(users), 1024):
            scores = users[begin : begin + 1024] @ items.T + biases
            scores[train[begin : begin + 1024].nonzero()] = -np.inf
            lists[begin : begin + 1024] = np.argpartition(-scores, 19, axis=1)[:, :20]
        found[count] = float(np.mean(_hits(lists, test)))
    return found


def _hits(lists: Any, test: Any) -> Any:
    """Of each user with a held-out item: whether the list has it."""
    held = scipy.sparse.csr_array(test)
    users = np.flatnonzero(np.diff(held.indptr))
    return [np.isin(held.indices[held.indptr[u] : held.indptr[u + 1]], lists[u]) for u in users]


def _lists(settings: Settings, train: Any) -> Case:
    """The same vectors on both sides, so the same lists."""
    model = BPR(embedding_dim=64, epochs=2, seed=0).fit(train)
    users = np.arange(min(4096, train.shape[0]))
    name = f"top 10 of {train.shape[1]:,} items for {len(users):,} users, what they took left out"
    taken = train[users]
    competitors = [Competitor("sparse_embed", lambda i: model.recommend(users, taken, k=10))]
    absent: dict[str, str] = {}
    left = model.query_vectors(users)
    right = model.items.lookup(np.arange(train.shape[1]))  # an item's bias comes last
    scores = left.astype(np.float64) @ right.T.astype(np.float64)
    scores[taken.nonzero()] = -np.inf
    wanted = -np.sort(-scores, axis=1)[:, :10]

    def score_of(item_ids: Any) -> Any:
        return np.take_along_axis(scores, np.asarray(item_ids, np.int64), 1)

    competitors[0].check = lambda: score_of(model.recommend(users, taken, k=10)[0])
    try:
        theirs = _implicit(1)
    except ImportError as error:
        absent["implicit"] = f"not installed ({error})"
    else:
        matrix = scipy.sparse.csr_matrix(taken)
        theirs.user_factors, theirs.item_factors = left, right

        def lists(_: int) -> Any:
            return theirs.recommend(users, matrix, N=10)

        competitors.append(Competitor("implicit", lists, lambda: score_of(lists(0)[0])))
    gate(competitors, wanted, 1e-4, name)  # near-equal scores may change places
    return race(name, competitors, settings.count(9, 1), absent=absent)
