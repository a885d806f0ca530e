"""Recommenders trained on a GPU: the bits of those trained on the CPU, and the same files."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import sparse_embed as se
from sparse_embed.recommend import BPR, CCL, Logistic, SampledSoftmax, evaluate, leave_one_out, load
from tests.cases import assert_same_bits

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("memory"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

KINDS = {
    "bpr": (BPR, {"dropout": 0.25}),
    "logistic": (Logistic, {"num_negatives": 5}),
    "softmax": (SampledSoftmax, {"num_negatives": 4, "correction": 1.0, "regularization": 0.1}),
    "in_batch": (SampledSoftmax, {"num_negatives": 4, "in_batch": True, "cosine": False}),
    "ccl": (CCL, {"num_negatives": 4, "margin": 0.0, "dropout": 0.25}),
}


@pytest.fixture(scope="module")
def taken() -> scipy.sparse.csr_array:
    """20 interactions; user 3 took nothing."""
    users, items = np.indices((8, 9))
    chosen = ((users * items) % 3 == 1) | (users + items == 7)
    chosen[3] = False
    return scipy.sparse.csr_array(chosen)


def make(kind, device="cuda", **changes):
    maker, own = KINDS[kind]
    given = {"embedding_dim": 5, "epochs": 1, "batch_size": 10, "seed": 1, "device": device} | own
    return maker(**given | changes)


def check_same(found, expected):
    for name in ("users", "items"):
        ours, theirs = found.store.tables[name], expected.store.tables[name]
        rows = theirs.trained_indices()
        assert ours.trained_indices().tolist() == rows.tolist()
        assert_same_bits(np.asarray(ours.lookup(rows)), theirs.lookup(rows))
        state = theirs.state(rows)
        for field, values in ours.state(rows).items():
            assert_same_bits(values, state[field])


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_the_cpu(kind, taken):
    losses = {}
    models = {}
    for device in ("cpu", "cuda"):
        seen = losses[device] = []
        models[device] = make(kind, device).fit(
            taken, progress=lambda at, s=seen: s.append(at.loss)
        )
    assert models["cuda"].users.device == "cuda:0"
    check_same(models["cuda"], models["cpu"])
    # The logarithm of softmax's sum is float64's, of another library there.
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-12)


def test_files_resume_serving(taken, tmp_path):
    """Stopped on the GPU, resumed on the CPU; stopped on the CPU, resumed on the GPU."""

    class Stop(Exception):
        pass

    def stop(at):
        if at.epoch == 2:
            raise Stop

    how = {"epochs": 2, "batch_size": 32, "commit_interval": 0, "dropout": 0.0}
    expected = make("bpr", "cpu", **how).fit(taken)
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        path = tmp_path / first
        stopped = make("bpr", first, path=path, **how)
        with pytest.raises(Stop):
            stopped.fit(taken, progress=stop)
        stopped.close()
        with make("bpr", second, path=path, **how).fit(taken, resume=True) as model:
            check_same(model, expected)
    with load(tmp_path / "cuda", device="cuda") as served:
        assert served.items.device == "cuda:0"
        for ours, theirs in zip(
            served.recommend([0, 3], taken[[0, 3]], k=3),
            expected.recommend([0, 3], taken[[0, 3]], k=3),
            strict=True,
        ):
            assert_same_bits(ours, theirs)
    model = make("bpr", **how | {"epochs": 1}).fit(taken)
    model.save(tmp_path / "saved")
    with BPR.load(tmp_path / "saved") as copy:
        assert copy.users.device == "cpu"
        check_same(copy, model)


def test_partial_fit_and_evaluation(taken):
    train, test = leave_one_out(taken, seed=0, min_interactions=3)
    found, expected = (
        make("bpr", device, batch_size=32).fit(train, eval_set=test) for device in ("cuda", "cpu")
    )
    assert found.store.metadata["metrics"] == expected.store.metadata["metrics"]
    for model in (found, expected):
        model.partial_fit(test, seed=5)
    check_same(found, expected)
    assert evaluate(found, train, test, k=3) == evaluate(expected, train, test, k=3)


def test_what_a_gpu_does_not_train_is_refused_by_name(taken):
    with pytest.raises(se.ArgumentError, match='users_as: expected "own" on cuda:0, got "items"'):
        make("ccl", users_as="items").fit(taken)
    features = scipy.sparse.eye_array(9, format="csr")
    with pytest.raises(se.ArgumentError, match="item_features: expected None on cuda:0"):
        make("bpr").fit(taken, item_features=features)
    with pytest.raises(se.ArgumentError, match='device: expected "cpu", "cuda"'):
        make("bpr", "gpu")
    with pytest.raises(se.ArgumentError, match=r'device: expected .* got "cuda:7"'):
        make("bpr", "cuda:7")


def test_tables_larger_than_their_cache(taken, monkeypatch):
    from sparse_embed.storage import device_index

    monkeypatch.setattr(device_index, "_SMALLEST", 6)
    found = make("bpr", cache_bytes=1).fit(taken)
    assert found.items.info()["resident"] == "indexed"
    assert found.items.info()["resident_capacity"] == 6
    check_same(found, make("bpr", "cpu").fit(taken))
