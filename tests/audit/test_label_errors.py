"""Wrong labels: flipped ones come first, their number is estimated, and clean labels are called clean."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from separable import separable_store
from sklearn.metrics import average_precision_score

from featx.audit import label_errors as module
from featx.audit.label_errors import label_errors
from featx.learn.selection import Groups

N = 300
LAYERS = ["good:avg", "poor:avg"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "a.h5"
    return separable_store(path, n=N, noise={"good:avg": 0.7, "poor:avg": 2.0}, d=12)


def flipped(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels of which a share are of another class, which ones)."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(y), bool)
    wrong[rng.permutation(len(y))[: round(share * len(y))]] = True
    others = {name: [other for other in np.unique(y) if other != name] for name in np.unique(y)}
    labels = [rng.choice(others[label]) if is_wrong else label for label, is_wrong in zip(y, wrong, strict=True)]
    return np.array(labels), wrong


def judge(store, y, **options):
    return label_errors(store, y, np.arange(len(store)), LAYERS, **options)


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_flipped_labels_are_first_and_their_number_is_in_the_interval(store, share):
    inside = 0
    for seed in range(4):
        y, wrong = flipped(store.y, share, seed)
        judged = judge(store, y, random_state=seed)
        assert average_precision_score(wrong[judged.rows], judged.probability) > 0.9
        assert (np.diff(judged.probability) <= 1e-12).all() and sorted(judged.rows) == list(range(N))
        inside += judged.interval.low <= wrong.sum() <= judged.interval.high
        is_first = wrong[judged.rows[: wrong.sum() // 2]]
        assert is_first.all()
        found = judged.rows[: wrong.sum() // 2]
        assert (judged.suggested[: wrong.sum() // 2] == store.y[found]).mean() > 0.9
    assert inside >= 3


def test_clean_labels_are_called_clean(store):
    for seed in range(3):
        judged = judge(store, store.y, random_state=seed)
        assert judged.is_clean and judged.n_listed == 0 and judged.interval.high < 0.04 * N


def test_the_better_layer_weighs_more(store):
    judged = judge(store, flipped(store.y, 0.05, 0)[0])
    assert judged.weights["good:avg"] > judged.weights["poor:avg"] >= 0


def test_a_copy_does_not_vouch_for_its_label(tmp_path):
    """Copies with one wrong label would support one another if one was trained on and the other judged."""
    contents = np.repeat(np.arange(N // 2), 2)
    y = np.array(list("abc"))[contents % 3]
    store = separable_store(tmp_path / "a.h5", n=N, y=y, noise=dict.fromkeys(LAYERS, 1.0), d=40, contents=contents)
    wrong = contents % 15 == 0
    given = np.where(wrong, np.array(list("bca"))[contents % 3], y)
    apart = judge(store, given)
    together = judge(store, given, groups=Groups(contents, "different images"))
    scores = [average_precision_score(wrong[judged.rows], -np.arange(N)) for judged in (apart, together)]
    assert scores[1] > scores[0] + 0.1


def test_rows_keep_their_labels_whatever_their_order(store):
    y, _ = flipped(store.y, 0.1, 1)
    chosen = np.sort(np.random.default_rng(0).permutation(N)[:200])
    judged = label_errors(store, y, chosen, LAYERS)
    assert sorted(judged.rows) == chosen.tolist()
    given = judged.log_probabilities[np.arange(200), np.searchsorted(judged.classes, y[judged.rows])]
    assert all(a <= b for a, b in pairwise(given.tolist()))


def test_the_pool_recovers_the_share_of_wrong_labels():
    """Labels drawn from known probabilities, a share of them replaced by another class at random."""
    rng = np.random.default_rng(0)
    n, k, share = 4000, 4, 0.08
    logits = rng.normal(size=(n, k)) * 3
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    codes = np.array([rng.choice(k, p=p) for p in np.exp(logs)])
    wrong = rng.random(n) < share
    codes = np.where(wrong, (codes + rng.integers(1, k, n)) % k, codes)
    pool = module._pool(np.stack([logs, rng.normal(size=(n, k))]), codes)
    assert pool.low < wrong.mean() < pool.high and abs(pool.share - share) < 0.02
    np.testing.assert_allclose(pool.weights, [1.0, 0.0], atol=0.15)


def test_the_derivatives_of_the_likelihood(monkeypatch):
    rng = np.random.default_rng(1)
    logs = np.log(rng.dirichlet(np.ones(3), size=(2, 50)))
    codes = rng.integers(0, 3, 50)
    caught = []
    real = module.minimize
    monkeypatch.setattr(module, "minimize", lambda fun, x, **options: caught.append(fun) or real(fun, x, **options))
    module._pool(logs, codes)
    both, at = caught[0], np.array([0.7, 0.4, -1.5])
    numeric = [(both(at + step)[0] - both(at - step)[0]) / 2e-6 for step in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(both(at)[1], numeric, rtol=1e-5)
