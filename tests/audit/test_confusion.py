"""Confused classes: the pairs that are taken for one another, with the images between them."""

from __future__ import annotations

import numpy as np
from helpers import store_of

from featx.audit import audit
from featx.audit.confusion import confused_pairs
from featx.audit.label_errors import LabelErrors
from featx.learn.scores import Interval

CLASSES = np.array(["a", "b", "c"])


def judged(probabilities: np.ndarray, rows: np.ndarray | None = None) -> LabelErrors:
    n, k = probabilities.shape
    rows = np.arange(n) if rows is None else rows
    logs = np.log(probabilities)
    return LabelErrors(rows, np.zeros(n), CLASSES[logs.argmax(axis=1)], logs, CLASSES[:k], 0.0, Interval(0, 0), {})


def test_numbers_shares_and_images_between():
    p = np.repeat([[0.9, 0.06, 0.04]], 10, axis=0)  # 10 of class a, of which
    p[:3] = [[0.45, 0.5, 0.05], [0.1, 0.85, 0.05], [0.48, 0.5, 0.02]]  # 3 are taken for b, 2 of them barely
    q = np.repeat([[0.05, 0.9, 0.05]], 20, axis=0)  # 20 of class b, of which
    q[0] = [0.6, 0.3, 0.1]  # one is taken for a
    r = np.repeat([[0.05, 0.05, 0.9]], 5, axis=0)
    labels = np.repeat(CLASSES, [10, 20, 5])
    (pair,) = confused_pairs(judged(np.concatenate([p, q, r])), labels)
    assert (pair.first, pair.second, pair.n_first, pair.n_second, pair.share) == ("a", "b", 3, 1, 0.3)
    assert pair.between.tolist() == [2, 0, 10]  # the least decided first


def test_rows_are_those_of_the_store():
    p = np.array([[0.4, 0.6], [0.4, 0.6], [0.9, 0.1], [0.1, 0.9]])
    labels = np.array(["b", "a", "a", "x", "b", "a"])
    (pair,) = confused_pairs(judged(p, np.array([1, 5, 2, 4])), labels)
    assert (pair.n_first, pair.n_second, pair.between.tolist()) == (2, 0, [1, 5])


def test_one_image_is_no_confusion_and_few_of_many_are_none():
    p = np.repeat([[0.9, 0.1]], 4, axis=0)
    p[[0, 3]] = [0.1, 0.9]
    assert confused_pairs(judged(p), np.array(list("aaab"))) == []
    p = np.repeat([[0.9, 0.1], [0.1, 0.9]], 100, axis=0)
    p[:4] = [0.1, 0.9]
    assert confused_pairs(judged(p), np.repeat(CLASSES[:2], 100)) == []


def test_planted_classes_are_confused_and_separable_ones_are_not(tmp_path):
    rng = np.random.default_rng(0)
    codes = np.arange(240) % 4
    X = 5 * np.eye(4, 8)[codes] + rng.normal(size=(240, 8))
    y = np.array(list("abcd"))[codes]
    assert audit(store_of(tmp_path / "apart.h5", {"a:avg": X}, y)).confused == []
    X[codes == 3] += 5 * np.eye(4, 8)[2] - 4.5 * np.eye(4, 8)[3]  # d moves close to c
    result = audit(store_of(tmp_path / "close.h5", {"a:avg": X}, y))
    pair = result.confused[0]
    assert [(each.first, each.second) for each in result.confused] == [("c", "d")] and pair.n_first and pair.n_second
    assert len(pair.between) and set(y[pair.between]) <= {"c", "d"}
    (finding,) = [each for each in result.findings() if each.kind == "confused"]
    assert finding.reason == f"'c' taken for 'd' {pair.n_first} times, the other way {pair.n_second}"
