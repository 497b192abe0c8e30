"""Learning curves of numbers; what is kept of a protocol that is interrupted; what a protocol prints."""

from __future__ import annotations

import numpy as np
import pytest
from separable import separable_store
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featx.catalogue import ESTIMATORS
from featx.errors import FeatxError
from featx.learn import HoldOut, Interrupted, StoredFeatures, few_shot, knn_probe, learning_curves, linear_probe
from featx.learn.scores.intervals import drawn_interval, held_out_interval
from featx.learn.scores.metrics import METRICS

PROTOCOLS = [linear_probe, knn_probe, few_shot, learning_curves]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    noise = {"good:avg": 1.5, "poor:avg": 6.0, "worse:avg": 12.0}
    columns = {"parity": np.array(["even", "odd"] * 75)}
    return separable_store(tmp_path_factory.mktemp("stores") / "a.h5", 150, noise=noise, columns=columns)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    y = np.random.default_rng(0).normal(40, 15, 120)
    noise = {"good:avg": 5.0, "poor:avg": 100.0}
    return separable_store(tmp_path_factory.mktemp("stores") / "n.h5", 120, y=y, noise=noise)


# --- numbers ---


def test_a_learning_curve_of_numbers_is_of_ridge_with_its_alpha_cross_validated(numbers):
    found = learning_curves(numbers, repeats=3)
    assert found.scoring == "r2" and found.classes is None and found.chance == 0
    assert (found.n_train, found.n_test) == (96, 24) and [c.layer for c in found.curves] == ["good:avg", "poor:avg"]
    test = np.sort(np.random.RandomState(0).permutation(120)[:24])  # as train_test_split takes it
    train = np.setdiff1d(np.arange(120), test)
    for curve in found.curves:
        assert [p.x for p in curve.points] == [12, 24, 48, 96] and [len(p.scores) for p in curve.points] == [3, 3, 3, 1]
        X, y = np.array(numbers[curve.layer], float), numbers.y
        pipe = Pipeline([("scaler", StandardScaler()), ("ridge", Ridge())])
        cv = KFold(5, shuffle=True, random_state=0)
        plain = GridSearchCV(pipe, {"ridge__alpha": ESTIMATORS["ridge"].values}, cv=cv).fit(X[train], y[train])
        expected = r2_score(y[test], plain.predict(X[test]))
        assert curve.points[-1].mean == pytest.approx(expected, abs=1e-4)
        (low, high), mean = curve.points[-1].interval, curve.points[-1].mean
        bootstrap = held_out_interval(METRICS["r2"], y[test], plain.predict(X[test]))
        assert (low, high) == pytest.approx(bootstrap, abs=1e-3) and low < mean < high <= 1
    assert found.curves[0].points[-1].mean > 0.8 > found.curves[1].points[-1].mean


def test_intervals_of_every_point_are_of_the_images_and_of_the_draws(store, numbers, monkeypatch):
    from featx.learn.protocols import subsamples

    seen = []
    monkeypatch.setattr(subsamples, "drawn_interval", lambda *args: seen.append(args) or drawn_interval(*args))
    for protocol, data in [(few_shot, store), (learning_curves, store), (learning_curves, numbers)]:
        seen.clear()
        found = protocol(data, layers="good", repeats=4)
        for (metric, y, predictions, groups), point in zip(seen, found.curves[0].points, strict=True):
            assert metric.name == found.scoring and groups is None and len(y) == found.n_test
            assert tuple(metric.score(y, predicted) for predicted in predictions) == point.scores
            assert point.interval == drawn_interval(metric, y, predictions)
            images = [held_out_interval(metric, y, predicted) for predicted in predictions]
            width = min(high - low for low, high in images)
            assert point.interval.high - point.interval.low >= 0.5 * width  # even of draws that agree
            assert point.interval.low <= point.mean <= point.interval.high


def test_groups_of_test_images_count_as_groups(store):
    groups = np.arange(150) // 10
    for protocol in PROTOCOLS:
        alone = protocol(store, layers="poor", holdout=HoldOut(rows=groups % 5 == 0))
        grouped = protocol(store, layers="poor", holdout=HoldOut(rows=groups % 5 == 0), groups=groups)
        intervals = [one.curves[0].test_interval or one.curves[0].points[-1].interval for one in (alone, grouped)]
        assert intervals[0] != intervals[1]  # three groups are fewer than thirty images


@pytest.mark.parametrize(
    "options, text",
    [
        ({"C": 0.1}, "C is of logistic regression, and these labels are numbers; leave it out, got 0.1"),
        ({"sizes": [1, 20]}, r"from 2 to all 96; got \[1, 20\]"),
        ({"sizes": [97]}, "to all 96"),
    ],
)
def test_what_has_no_part_in_numbers_is_refused(numbers, options, text):
    with pytest.raises(FeatxError, match=text):
        learning_curves(numbers, **options)


def test_the_seed_decides_numbers_too(numbers):
    one, again, other = (learning_curves(numbers, layers="good", sizes=[20], random_state=seed) for seed in (1, 1, 2))
    assert one.curves == again.curves != other.curves


def test_labels_may_be_a_column(store):
    for protocol in PROTOCOLS:
        assert protocol(store, "parity", layers="good").classes.tolist() == ["even", "odd"]


# --- interrupted ---


@pytest.fixture
def interrupted(monkeypatch):
    """`interrupted(1)`: Ctrl-C while the second layer is read."""

    def at(number: int) -> None:
        transform, layers = StoredFeatures.transform, []

        def stopped(self, X):
            if self.layer_ not in layers:
                layers.append(self.layer_)
            if len(layers) > number:
                raise KeyboardInterrupt
            return transform(self, X)

        monkeypatch.setattr(StoredFeatures, "transform", stopped)

    return at


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_interrupted_protocol_keeps_the_layers_that_were_done(store, interrupted, monkeypatch, protocol):
    whole = protocol(store)
    for done in (1, 2):
        interrupted(done)
        with pytest.raises(Interrupted) as raised:
            protocol(store)
        monkeypatch.undo()
        left = raised.value.result
        assert left.is_partial and not whole.is_partial and len(left.curves) == done
        assert {curve for curve in left.curves} <= set(whole.curves)
        assert [c for c in whole.curves if c in left.curves] == list(left.curves)  # best first
        assert (left.n_train, left.n_test, left.protocol) == (whole.n_train, whole.n_test, whole.protocol)
        assert (left.best_estimator is None) == (protocol is not linear_probe)
        assert "interrupted" in str(left) and "interrupted" not in str(whole)


def test_interrupted_in_the_first_layer_there_is_nothing_to_keep(store, interrupted):
    interrupted(0)
    for protocol in PROTOCOLS:
        with pytest.raises(KeyboardInterrupt) as raised:
            protocol(store)
        assert not isinstance(raised.value, Interrupted)


# --- in words ---


def test_what_is_printed_is_read_by_a_person(store):
    found = few_shot(store, shots=[2, 5], repeats=3)
    first, *lines = str(found).splitlines()
    assert first == "few-shot, accuracy: 120 training and 30 test images (chance 0.333)" and str(found) == repr(found)
    for line, curve in zip(lines, found.curves, strict=True):
        point = curve.points[-1]
        (low, high), mean = point.interval, f"{point.mean:.3f}"
        place = f"{curve.layer} of torchvision:resnet18, 5 images a class"
        assert line == f"{place}: {mean} [{low:.3f}, {high:.3f}] over 3 draws"
    probe = linear_probe(store, layers="good", C=[0.1])
    (curve,) = probe.curves
    low, high = curve.test_interval
    assert str(probe).splitlines()[1] == (
        f"good:avg of torchvision:resnet18, C = 0.1: validation {curve.chosen.mean:.3f}, test {curve.test:.3f} "
        f"[{low:.3f}, {high:.3f}]"
    )


def test_many_layers_are_counted(tmp_path):
    store = separable_store(tmp_path / "a.h5", noise={f"l{i}:avg": 1.0 for i in range(8)})
    lines = str(knn_probe(store, k=[1])).splitlines()
    assert len(lines) == 7 and lines[-1] == "and 3 more layers"


def test_one_group_of_test_images_tells_no_interval(store):
    groups = np.arange(150) // 10
    result = learning_curves(store, layers="good", groups=groups, holdout=HoldOut(rows=groups == 0), C=0.1, repeats=2)
    assert all(np.isnan(point.interval.low) for point in result.curves[0].points)


def test_few_groups_make_few_folds(store):
    groups = np.arange(150) % 4
    result = learning_curves(store, layers="good", groups=groups, holdout=HoldOut(rows=groups == 0), repeats=2)
    assert len(result.curves[0].points) > 1


def test_images_are_counted_in_whole_numbers(store):
    for sizes in ([10.5], [2.0]):
        with pytest.raises(FeatxError, match="sizes is a list of numbers of training images"):
            learning_curves(store, sizes=sizes)
        with pytest.raises(FeatxError, match="shots is a list of numbers of images per class"):
            few_shot(store, shots=sizes)
