"""The field's protocols: what they fit is what anybody would, and the test set is looked at once, at the end."""

from __future__ import annotations

import numpy as np
import pytest
from separable import separable_store
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from featx.errors import FeatxError, LayerError, StoreError
from featx.learn import HoldOut, StoredFeatures, few_shot, knn_probe, learning_curves, linear_probe, load, save
from featx.learn.protocols import learning
from featx.learn.scores.intervals import wilson

PROTOCOLS = [linear_probe, knn_probe, few_shot, learning_curves]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Layers that tell little, so that C and k matter."""
    path = tmp_path_factory.mktemp("stores") / "a.h5"
    columns = {"split": np.array(["train", "val", "train", "test", "train"] * 60)}
    return separable_store(path, 300, noise={"good:avg": 1.5, "poor:avg": 6.0}, d=10, columns=columns)


@pytest.fixture(scope="module")
def split(store):
    """Rows (train, validation, test), as a protocol splits by default."""
    rows = np.arange(300)
    rest, test = map(np.sort, train_test_split(rows, test_size=0.2, stratify=store.y, random_state=0))
    learn, validate = train_test_split(rest, test_size=0.2, stratify=store.y[rest], random_state=0)
    return np.sort(learn), np.sort(validate), test


def test_the_linear_probe_chooses_on_validation_fits_on_both_and_is_scored_on_test(store, split):
    learn, validate, test = split
    found = linear_probe(store)
    assert [curve.layer for curve in found.curves] == ["good:avg", "poor:avg"]
    assert (found.n_train, found.n_validation, found.n_test) == (192, 48, 60)
    for curve in found.curves:
        X = np.array(store[curve.layer], float)  # in float32 scikit-learn is wrong at the smallest C
        assert np.log10([p.x for p in curve.points]) == pytest.approx(np.linspace(-6, 5, 45))
        for point in curve.points[::11]:
            plain = LogisticRegression(C=point.x, max_iter=10_000, tol=1e-8).fit(X[learn], store.y[learn])
            assert abs(point.mean - plain.score(X[validate], store.y[validate])) < 1.5 / 48
            assert point.interval == wilson(point.mean, 48) and point.scores == (point.mean,)
        assert curve.chosen.mean == max(p.mean for p in curve.points)
        both = np.sort(np.r_[learn, validate])
        again = LogisticRegression(C=curve.chosen.x, max_iter=10_000, tol=1e-8).fit(X[both], store.y[both])
        assert abs(curve.test - again.score(X[test], store.y[test])) < 1.5 / 60
        assert curve.test_interval == wilson(curve.test, 60)
    assert accuracy_score(store.y[test], found.best_estimator.predict(store.X[test])) == found.curves[0].test


def test_the_winner_of_a_probe_is_a_model_like_any_other(store, tmp_path):
    found = linear_probe(store, C=[0.1, 1.0])
    save(found.best_estimator, tmp_path / "m.skops")
    assert list(load(tmp_path / "m.skops").classes_) == ["a", "b", "c"]


def test_nearest_neighbours_vote_as_scikit_learns_do(store, split):
    learn, validate, test = split
    found = knn_probe(store, k=(1, 10, 20, 100, 200))
    assert {len(curve.points) for curve in found.curves} == {4}  # 200 are more than there are
    for curve in found.curves:
        X = np.array(store[curve.layer])
        for point in [*curve.points, None]:
            near, far, score = (learn, validate, point) if point else (np.r_[learn, validate], test, None)
            k = int(point.x if point else curve.chosen.x)
            plain = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
            expected = plain.fit(X[near], store.y[near]).score(X[far], store.y[far])
            assert (curve.test if score is None else score.mean) == pytest.approx(expected, abs=1e-9)
    assert found.best_estimator is None


def test_validation_and_test_images_may_be_those_of_a_column(store):
    column = store.columns["split"]
    for protocol in (linear_probe, knn_probe):
        found = protocol(store, holdout=HoldOut(rows=column == "test"), validation_rows=column == "val")
        assert (found.n_train, found.n_validation, found.n_test) == (180, 60, 60)


def test_by_default_as_many_shots_as_the_rarest_class_has(tmp_path):
    y = np.array(["ant"] * 40 + ["bee"] * 9)
    curve = few_shot(separable_store(tmp_path / "a.h5", 49, y=y), repeats=1).curves[0]
    assert [point.x for point in curve.points] == [1, 2, 4]  # 7 bees are learned from


def test_few_shots_are_logistic_regressions_on_so_many_images_of_each_class(store, split, monkeypatch):
    fits = []
    fit_many = learning.LogisticRegression.fit_many

    def recording(self, X, y, given):
        models = fit_many(self, X, y, given)
        fits.extend((X, y, fit, model) for fit, model in zip(given, models, strict=True))
        return models

    monkeypatch.setattr(learning.LogisticRegression, "fit_many", recording)
    found = few_shot(store, layers=["good"], shots=(4, 1), repeats=3)
    (curve,) = found.curves
    assert [p.x for p in curve.points] == [1, 4] and found.varied == "images a class" and found.n_train == 240
    rest, test = np.sort(np.r_[split[0], split[1]]), split[2]
    X = np.array(store["good"])
    X_test = StandardScaler().fit(X[rest]).transform(X[test])
    scores = []
    for X_drawn, y_drawn, fit, model in fits:
        rows = fit.sample_weight > 0
        shots = 1 if rows.sum() == 3 else 4
        assert np.unique(y_drawn[rows], return_counts=True)[1].tolist() == [shots] * 3
        plain = LogisticRegression(C=0.1, tol=1e-8).fit(X_drawn[rows], y_drawn[rows])
        scores.append(model.score(X_test, store.y[test]))
        assert abs(scores[-1] - plain.score(X_test, store.y[test])) < 1.5 / 60
    assert [*curve.points[0].scores, *curve.points[1].scores] == pytest.approx(scores)


def test_a_learning_curve_ends_in_a_fit_of_all_images(store, split):
    found = learning_curves(store, C=0.01, repeats=3)
    rest, test = np.sort(np.r_[split[0], split[1]]), split[2]
    for curve in found.curves:
        assert [p.x for p in curve.points] == [7, 15, 30, 60, 120, 240]
        assert [len(p.scores) for p in curve.points] == [3, 3, 3, 3, 3, 1]
        X = np.array(store[curve.layer])
        scaler = StandardScaler().fit(X[rest])
        plain = LogisticRegression(C=0.01, tol=1e-8).fit(scaler.transform(X[rest]), store.y[rest])
        expected = plain.score(scaler.transform(X[test]), store.y[test])
        assert abs(curve.points[-1].mean - expected) < 1.5 / 60
        assert curve.points[-1].interval == wilson(curve.points[-1].mean, 60)
    assert found.curves[0].points[-1].mean >= found.curves[1].points[-1].mean


def test_more_images_help(store):
    for found in (few_shot(store, layers=["good"]), learning_curves(store, layers=["good"])):
        points = found.curves[0].points
        assert points[-1].mean > points[0].mean + 0.1
        assert all(p.interval.low <= p.mean <= p.interval.high for p in points)


@pytest.mark.parametrize("sizes", [[3], [3, 10, 31]])
def test_images_of_a_size_have_every_class_in_its_share(store, sizes, monkeypatch):
    seen = []
    curve_of = learning.curve_over_subsamples

    def recording(*args, **options):
        seen.append((args[3], args[4]))
        return curve_of(*args, **options)

    monkeypatch.setattr(learning, "curve_over_subsamples", recording)
    y = np.repeat(["a", "b", "c"], [200, 80, 20])
    learning_curves(store, y, layers=["good"], sizes=sizes, repeats=4, C=1.0)
    ((experiment, draws_of),) = seen
    for size, all_rows in draws_of.items():
        for rows in all_rows:
            names, counts = np.unique(experiment.y[rows], return_counts=True)
            assert len(rows) == size and names.tolist() == ["a", "b", "c"]
            shares = [(experiment.y == name).mean() * size for name in names]
            assert (np.abs(counts - shares) <= 2).all()
    for smaller, larger in zip(sizes, sizes[1:], strict=False):
        for few, many in zip(draws_of[smaller], draws_of[larger], strict=True):
            assert set(few) < set(many)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_seed_decides(store, protocol):
    one, again = (protocol(store, layers=["good"], random_state=3).curves for _ in range(2))
    assert one == again


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_test_images_are_read_once_a_layer_and_at_last(store, protocol, monkeypatch):
    asked: list[set[int]] = []
    transform = StoredFeatures.transform

    def recording(self, X):
        asked.append(set(np.asarray(X).ravel().tolist()))
        return transform(self, X)

    monkeypatch.setattr(StoredFeatures, "transform", recording)
    test = store.columns["split"] == "test"
    protocol(store, layers=["good"], holdout=HoldOut(rows=test))
    held_out = set(store.X[test].ravel().tolist())
    assert asked[-1] == held_out and all(not keys & held_out for keys in asked[:-1])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_test_store_layers_side_by_side_progress_and_several_backbones(store, tmp_path, protocol):
    noise = {"good:avg": 1.5, "poor:avg": 6.0}
    other = separable_store(tmp_path / "other.h5", 300, noise={"last:avg": 2.0}, backbone="torchvision:alexnet")
    contents = np.arange(300, 360)  # other images, rows around the same centres
    later = separable_store(tmp_path / "later.h5", 60, noise=noise, d=10, contents=contents)
    told = []
    found = protocol(
        store,
        layers=[["good", "poor"]],
        holdout=HoldOut(store=later),
        on_progress=lambda now, _: told.append((now.done, now.total, now.seconds_left)),
    )
    assert told == [(0, 1, None), (1, 1, 0)] and found.n_test == 60
    assert [(curve.layer, curve.d) for curve in found.curves] == [("good:avg+poor:avg", 20)]
    both = protocol([store, other])
    assert {curve.backbone for curve in both.curves} == {"torchvision:resnet18", "torchvision:alexnet"}


def test_groups_stay_whole_in_every_part(store):
    numbers = np.arange(300) // 6
    column = store.columns["split"]
    with pytest.raises(FeatxError, match="hold out whole groups"):
        linear_probe(store, groups=numbers, holdout=HoldOut(rows=column == "test"))
    validation = np.arange(300) % 3 == 0
    with pytest.raises(
        FeatxError, match="groups are both among the validation images and those .*: put each on one side"
    ):
        linear_probe(store, groups=numbers, validation_rows=validation)
    found = linear_probe(store, groups=numbers, C=[1.0])
    assert found.n_train % 6 == found.n_validation % 6 == found.n_test % 6 == 0


@pytest.mark.parametrize(
    "protocol, options, error, text",
    [
        (linear_probe, {"y": np.linspace(0, 1, 300)}, FeatxError, "the labels are numbers; use learning curves"),
        (
            linear_probe,
            {"holdout": HoldOut(0)},
            FeatxError,
            r"give holdout=HoldOut\(size=0.2\), or another share above 0",
        ),
        (
            few_shot,
            {"y": np.linspace(0, 1, 300)},
            FeatxError,
            r"curves \(featx.learn.learning_curves\) or model selection",
        ),
        (few_shot, {"random_state": -1}, FeatxError, "the seed .* got -1"),
        (knn_probe, {"y": "spilt"}, StoreError, "a.h5 has no column 'spilt'; close: 'split'"),
        (linear_probe, {"C": [0.0]}, FeatxError, "C is a list of one or more positive numbers"),
        (linear_probe, {"validation_size": 0}, FeatxError, "validation_size is the share"),
        (
            linear_probe,
            {"validation_rows": np.ones(3, bool)},
            FeatxError,
            "validation_rows is True or False for each of the 300",
        ),
        (linear_probe, {"validation_rows": np.zeros(300, bool)}, FeatxError, "not all and not none"),
        (linear_probe, {"validation_rows": np.arange(300) % 3 == 0}, FeatxError, "there is none of 'a'"),
        (linear_probe, {"layers": ["god"]}, LayerError, "close: 'good:avg'"),
        (linear_probe, {"groups": "split "}, StoreError, "close: 'split'"),
        (knn_probe, {"k": [500]}, FeatxError, "k is a list of integers from 1 to the 192 images to learn from"),
        (knn_probe, {"k": [0, 5]}, FeatxError, r"k is a list of integers .*; got \[0, 5\]"),
        (few_shot, {"shots": [1, 81]}, FeatxError, "from 1 to the 80 training images of 'a'"),
        (few_shot, {"shots": []}, FeatxError, "shots is a list of numbers of images per class"),
        (few_shot, {"repeats": 0}, FeatxError, "repeats is an integer, 1 or more; got 0"),
        (learning_curves, {"sizes": [2]}, FeatxError, "from one for each of the 3 classes to all 240"),
        (learning_curves, {"sizes": [241]}, FeatxError, "to all 240"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(store, protocol, options, error, text):
    with pytest.raises(error, match=text) as raised:
        protocol(store, **options)
    assert "\n" not in str(raised.value)
