"""Every estimator and transformer as a torch module: the same labels and numbers as scikit-learn's call, on rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.neighbors
import sklearn.neural_network
import sklearn.svm
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import (
    RandomForestClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_selection import SelectFromModel, SelectKBest
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from featx.deploy.program import Program
from featx.errors import ModelError
from featx.learn import (
    SVC,
    SVR,
    KNeighborsClassifier,
    LinearSVC,
    LogisticRegression,
    MLPClassifier,
    MLPRegressor,
    NearestCentroid,
    Ridge,
    RidgeClassifier,
)

K = {"two": 2, "four": 4}


def rows_of(k: int, n: int = 60, d: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (n, d) float32 and other rows, y of k classes that overlap."""
    rng = np.random.default_rng(k)
    y = np.arange(n) % k
    centres = rng.normal(size=(k, d))
    scale = np.logspace(-1, 1, d)
    X, other = (((centres[y] + 1.2 * rng.normal(size=(n, d))) * scale + 3).astype(np.float32) for _ in range(2))
    return X, other, np.array(["ant", "bee", "cat", "dog"])[y]


def predicted(model: Any, X: np.ndarray) -> dict[str, np.ndarray]:
    program = Program(model, "rows")
    with torch.inference_mode():
        return dict(zip(program.outputs, (output.numpy() for output in program(torch.from_numpy(X))), strict=True))


def assert_same(model: Any, *matrices: np.ndarray, atol: float = 5e-5) -> None:
    """Program and model agree on rows: labels, and probabilities, scores or values."""
    for X in matrices:
        got = predicted(model, X)
        if "label" in got:
            assert got["label"].dtype == np.int64
            assert_array_equal(model.classes_[got["label"]], model.predict(X))
        if "probabilities" in got:
            assert_allclose(got["probabilities"], model.predict_proba(X), atol=atol, rtol=0)
        elif "scores" in got and hasattr(model, "decision_function"):
            expected = model.decision_function(X)
            assert got["scores"].shape == expected.shape
            assert_allclose(got["scores"], expected, atol=atol * max(1, np.abs(expected).max()), rtol=0)
        elif "values" in got:
            expected = model.predict(X)
            assert got["values"].shape == expected.shape
            assert_allclose(got["values"], expected, atol=atol * max(1, np.abs(expected).max()), rtol=0)


CLASSIFIERS = {
    "logistic": LogisticRegression(),
    "their logistic": sklearn.linear_model.LogisticRegression(max_iter=200),
    "linear svc": LinearSVC(C=0.1),
    "ridge": RidgeClassifier(),
    "their ridge": sklearn.linear_model.RidgeClassifier(),
    "svc rbf": SVC(),
    "svc linear": SVC(kernel="linear", C=0.1),
    "svc poly": SVC(kernel="poly", coef0=1.0, degree=2, decision_function_shape="ovo"),
    "svc sigmoid": SVC(kernel="sigmoid", gamma=0.01, break_ties=True),
    "their svc": sklearn.svm.SVC(),
    "centroid": NearestCentroid(),
    "centroid, priors": NearestCentroid(priors="empirical", shrink_threshold=0.3),
    "centroid, cosine": NearestCentroid(metric="cosine"),
    "their centroid": sklearn.neighbors.NearestCentroid(),
    "neighbours": KNeighborsClassifier(),
    "neighbours by distance": KNeighborsClassifier(3, weights="distance"),
    "neighbours, cosine": KNeighborsClassifier(7, metric="cosine", weights="distance"),
    "neighbours, manhattan": KNeighborsClassifier(metric="manhattan"),
    "neighbours, p": KNeighborsClassifier(1, p=3),
    "their neighbours": sklearn.neighbors.KNeighborsClassifier(algorithm="kd_tree"),
    "mlp": MLPClassifier((8,), max_iter=30, random_state=0),
    "mlp, linear": MLPClassifier((), max_iter=30, random_state=0),
    "mlp, tanh": MLPClassifier((8, 5), activation="tanh", max_iter=30, random_state=0),
    "their mlp": sklearn.neural_network.MLPClassifier((8,), activation="logistic", max_iter=30, random_state=0),
}


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("k", K.values(), ids=K)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name, k):
    X, other, y = rows_of(k)
    model = make_pipeline(StandardScaler(), CLASSIFIERS[name]).fit(X, y)
    assert_same(model, X, other)


REGRESSORS = {
    "ridge": Ridge(),
    "their ridge": sklearn.linear_model.Ridge(),
    "svr": SVR(C=10),
    "svr, linear": SVR(kernel="linear"),
    "their svr": sklearn.svm.SVR(kernel="poly"),
    "mlp": MLPRegressor(hidden_layer_sizes=(8,), max_iter=30, random_state=0),
}


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(name):
    X, other, y = rows_of(4)
    values = X[:, 3] + 2 * (y == "bee")
    assert_same(make_pipeline(StandardScaler(), REGRESSORS[name]).fit(X, values), X, other)


def test_a_regression_of_several_targets():
    X, other, _ = rows_of(4)
    assert_same(Ridge().fit(X, X[:, :2]), other)


def _log(X: np.ndarray) -> np.ndarray:
    return np.log(X)


STEPS = {
    "standard": StandardScaler(),
    "centred": StandardScaler(with_std=False),
    "min-max": MinMaxScaler((-1, 2), clip=True),
    "robust": RobustScaler(),
    "robust, not centred": RobustScaler(with_centering=False),
    "max-abs": MaxAbsScaler(clip=True),
    "l1": Normalizer("l1"),
    "l2": Normalizer(),
    "max": Normalizer("max"),
    "pca": PCA(5),
    "pca, whitened": PCA(5, whiten=True),
    "svd": TruncatedSVD(4, random_state=0),
    "yeo-johnson": PowerTransformer(),
    "box-cox": make_pipeline(MinMaxScaler((1, 2)), PowerTransformer("box-cox", standardize=False)),
    "strongest": SelectFromModel(LogisticRegression(), max_features=4, threshold=-np.inf),
    "k best": SelectKBest(k=3),
    "identity": FunctionTransformer(),
    "passthrough": "passthrough",
    "union": FeatureUnion([("a", PCA(3)), ("b", StandardScaler())], transformer_weights={"a": 2.0}),
    "nested": make_pipeline(StandardScaler(), make_pipeline(PCA(6), Normalizer())),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_before_an_estimator_that_sees_every_column(name):
    X, other, y = rows_of(4)
    if name == "box-cox":
        other = other.clip(X.min(0), X.max(0))
    assert_same(make_pipeline(STEPS[name], SVC()).fit(X, y), X, other)


@pytest.mark.parametrize("step", [StandardScaler(), RobustScaler(), MinMaxScaler(), MaxAbsScaler()], ids=str)
def test_scaled_rows_are_the_same_to_the_bit(step):
    """Nearest neighbours at distance 0 are so in the program too."""
    X, _, y = rows_of(4)
    model = make_pipeline(step, KNeighborsClassifier(weights="distance")).fit(X, y)
    module = Program(model, "rows").body[0]
    assert_array_equal(module(torch.from_numpy(X)).numpy(), model[0].transform(X))


MEMBERS = [("a", make_pipeline(StandardScaler(), LogisticRegression())), ("b", KNeighborsClassifier())]
NUMERIC = [("a", Ridge()), ("b", make_pipeline(StandardScaler(), SVR()))]
ENSEMBLES = {
    "sigmoid": CalibratedClassifierCV(SVC(), cv=3),
    "sigmoid of all rows": CalibratedClassifierCV(LinearSVC(C=0.01), ensemble=False, cv=3),
    "isotonic": CalibratedClassifierCV(KNeighborsClassifier(), method="isotonic", cv=3),
    "isotonic of scores": CalibratedClassifierCV(RidgeClassifier(), method="isotonic", cv=3),
    "temperature": CalibratedClassifierCV(LogisticRegression(), method="temperature", cv=3),
    "temperature of probabilities": CalibratedClassifierCV(KNeighborsClassifier(), method="temperature", cv=3),
    "soft": VotingClassifier(MEMBERS, voting="soft", weights=[1, 3]),
    "hard": VotingClassifier([*MEMBERS, ("c", LinearSVC(C=0.01))]),
    "stacked": StackingClassifier([*MEMBERS, ("c", SVC())], LogisticRegression(), cv=3),
    "stacked with rows": StackingClassifier(MEMBERS, LogisticRegression(), cv=3, passthrough=True),
    "stacked labels": StackingClassifier(MEMBERS, LogisticRegression(), cv=3, stack_method="predict"),
    "searched": GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=3),
}


@pytest.mark.parametrize("k", K.values(), ids=K)
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles(name, k):
    X, other, y = rows_of(k)
    assert_same(make_pipeline(StandardScaler(), ENSEMBLES[name]).fit(X, y), X, other)


@pytest.mark.parametrize("model", [VotingRegressor(NUMERIC, weights=[2, 1]), StackingRegressor(NUMERIC, Ridge(), cv=3)])
def test_ensembles_of_regressions(model):
    X, other, _ = rows_of(4)
    assert_same(model.fit(X, X[:, 2]), other)


@pytest.mark.filterwarnings("ignore:.*converge")
def test_several_labels_a_row_are_refused():
    X, _, y = rows_of(4)
    several = np.stack([y == "ant", y > "bee"], 1).astype(int)
    for model in (RidgeClassifier(), MLPClassifier((), max_iter=1), sklearn.linear_model.RidgeClassifier()):
        with pytest.raises(ModelError, match="several labels a row cannot be exported; fit one for each label"):
            Program(model.fit(X, several), "rows")


def _halved(distances: np.ndarray) -> np.ndarray:
    return 0.5 + 0 * distances


REFUSED = {
    "RandomForestClassifier cannot be exported; SVC is the nearest that can": RandomForestClassifier(2),
    "GaussianNB cannot be exported; NearestCentroid is the nearest that can": GaussianNB(),
    "QuantileTransformer cannot be exported; PowerTransformer is": make_pipeline(
        QuantileTransformer(n_quantiles=9), Ridge()
    ),
    "weights 'uniform' and 'distance' can": KNeighborsClassifier(weights=_halved),
    "CalibratedClassifierCV(SVC(), ensemble=False) has probabilities": sklearn.svm.SVC(probability=True),
    "linear, poly, rbf and sigmoid can": sklearn.svm.SVC(kernel=lambda a, b: a @ b.T),
    "a FunctionTransformer of a function of yours": make_pipeline(FunctionTransformer(_log), Ridge()),
    "'manhattan' cannot be exported; 'euclidean' and 'cosine' can": sklearn.neighbors.NearestCentroid("manhattan"),
    "LinearRegression cannot be exported; Ridge is the nearest": sklearn.linear_model.LinearRegression(),
    "can: 'CalibratedClassifierCV'": sklearn.linear_model.HuberRegressor(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_exported_is_refused_with_the_nearest_that_can(words):
    X, _, y = rows_of(2)
    numbers = "Regress" in str(REFUSED[words]) or "Ridge" in str(REFUSED[words])
    model = REFUSED[words].fit(abs(X) + 1, X[:, 0] if numbers else y)
    with pytest.raises(ModelError) as refusal:
        Program(model, "rows")
    assert words.removeprefix("can: ") in str(refusal.value), str(refusal.value)


def test_a_class_of_the_user_is_refused_even_with_a_known_name():
    class Own(sklearn.linear_model.Ridge):
        pass

    Own.__name__ = "Ridge"
    X, _, _ = rows_of(2)
    with pytest.raises(ModelError, match="Ridge cannot be exported"):
        Program(Own().fit(X, X[:, 0]), "rows")


def test_a_model_of_rows_reads_rows():
    X, _, y = rows_of(2)
    with pytest.raises(ModelError, match="export it with input='rows'"):
        Program(LogisticRegression().fit(X, y), "pixels")
