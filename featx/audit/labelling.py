"""`next_to_label`: which images of a store to label next, and why these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from featx.audit.typiclust import typical_rows
from featx.audit.uncertain import margins, uncertain_rows
from featx.catalogue import ESTIMATORS
from featx.errors import Call, FeatxError, Parameter, StoreError, count, no_column
from featx.learn.estimators import StandardScaler
from featx.learn.features import StoredFeatures
from featx.learn.search import GridSearchCV
from featx.learn.selection import brief, check_integer, check_seed, labels_of, new_estimator
from featx.store import FeatureStore

Strategy = Literal["auto", "typical", "uncertain"]
LABELS_A_CLASS = 20  # from as many on, the classifier's margin chooses better than TypiClust (benchmarks/README.md)
_FOLDS = 5
_C = 0.01  # if a class has too few labels for a cross-validation
_COMPONENTS = 50
_PART_BYTES = 64 * 2**20
_SAMPLE_BYTES = 128 * 2**20  # of the rows that principal components are computed of


@dataclass(frozen=True, eq=False)
class ToLabel:
    """Images to label next, the most useful first.

    Attributes
    ----------
    store : FeatureStore
    layer : str
        The layer by which they were chosen.
    rows : (n,) int64
        Their rows in the store.
    strategy : "typical" or "uncertain"
    why : str
        What the strategy does, and why it was chosen.
    reasons : n str
        Why each image was chosen.
    suggestions : n str
        The most probable label of each; empty for the strategy "typical".
    labels : (N,) masked array
        The labels so far of all images of the store; masked where there is none.
    n_nonfinite : int
        Number of images without a label that were left out because their rows contain NaN or inf.
    """

    store: FeatureStore
    layer: str
    rows: np.ndarray
    strategy: str
    why: str
    reasons: list[str]
    suggestions: list[str]
    labels: np.ma.MaskedArray
    n_nonfinite: int

    @property
    def ids(self) -> np.ndarray:
        """(n,) the images' ids."""
        return self.store.ids[self.rows]


def next_to_label(
    store: FeatureStore,
    n: int = 50,
    y: str | Sequence[object] | np.ndarray | None = None,
    *,
    layer: str | None = None,
    strategy: Strategy = "auto",
    random_state: int = 0,
) -> ToLabel:
    """Choose the images whose labels will improve a classifier most.

    With few labels, these are typical images of clusters that no label covers yet (TypiClust [1]_), since a classifier
    of few labels does not know what it does not know. With many, they are the images about which the classifier is
    least sure, the margin between its two most probable classes, spread over n clusters. Of images with the same
    content one is chosen, and none if one of them has a label.

    Parameters
    ----------
    store : FeatureStore
    n : int
        Number of images.
    y : (N,) labels so far, or a column of the store, optional
        A masked array, as `store.align("so-far.csv", partial=True)` returns it, or a column in which cells are empty.
        By default the store's labels; a store without labels starts with none.
    layer : str, optional
        By default the penultimate layer, or else the last one.
    strategy : "auto", "typical" or "uncertain"
        "auto" is "uncertain" from 20 labels a class on, on average over the classes that have labels.
    random_state : int
        Seed of the clusters.

    Returns
    -------
    ToLabel

    Raises
    ------
    FeatxError
        There are fewer than n images left to label, or fewer than two classes for "uncertain".
    LayerError
        The store has no such layer.

    Notes
    -----
    Clusters are those of 50 principal components of the layer, after its columns are standardised and its rows scaled
    to unit length. The classifier is a logistic regression on the layer, its C chosen by cross-validation. Where
    clusters have little to do with the labels, random images are better than typical ones: textile in
    benchmarks/README.md, by the penultimate layer.

    References
    ----------
    .. [1] G. Hacohen, A. Dekel and D. Weinshall, Active learning on a budget: opposite strategies suit high and low
       budgets, ICML 2022.

    Examples
    --------
    >>> next_to_label(store, 50, store.align("so-far.csv", partial=True)).ids    # doctest: +SKIP
    """
    if not isinstance(store, FeatureStore):
        raise FeatxError(f"store is a featx.FeatureStore; got {brief(store)}; featx.FeatureStore(path) opens one")
    check_integer("n", n, 1)
    check_seed("random_state", random_state)
    if strategy not in ("auto", "typical", "uncertain"):
        raise FeatxError(Parameter("strategy"), f" is auto, typical or uncertain; got {brief(strategy)}")
    labels = _labels_so_far(store, y)
    has_label = ~np.ma.getmaskarray(labels)
    if has_label.all():
        raise FeatxError(
            f"all {len(store):,} images have a label, and none is left to choose; give the labels so far: ",
            Parameter("y", Call("store.align", "'so-far.csv'", Parameter("partial", True))),
        )
    features = StoredFeatures(store, store.recipe.deepest if layer is None else layer).fit()
    is_finite, X = _representation(features, store.X, random_state)
    candidates = is_finite & ~has_label
    for copies in store.duplicates:
        candidates[copies] &= not has_label[copies].any()
        candidates[copies[candidates[copies]][1:]] = False
    if n > candidates.sum():
        raise FeatxError(
            f"{count(int(candidates.sum()), 'image')} can be labelled next, of different content and without NaN or "
            "inf; choose as many or fewer: got ",
            Parameter("n", n),
        )
    usable = np.ma.masked_array(labels, ~is_finite | ~has_label)
    kind, why = _strategy(usable, strategy)
    if kind == "typical":
        chosen, sizes = typical_rows(X, has_label[is_finite], candidates[is_finite], n, random_state)
        reasons = [f"typical of a cluster of {count(int(size), 'image')}" for size in sizes]
        rows, suggestions = np.flatnonzero(is_finite)[chosen], [""] * n
    else:
        model = _classifier(store, features.layer_, usable, random_state)
        left = np.flatnonzero(candidates)
        probabilities = _probabilities(model, store.X[left])
        chosen = uncertain_rows(X[candidates[is_finite]], margins(probabilities), n, random_state)
        rows, of_chosen = left[chosen], probabilities[chosen]
        first, second = np.argsort(-of_chosen, axis=1, kind="stable")[:, :2].T
        suggestions = list(map(str, model.classes_[first]))
        reasons = [
            f"{model.classes_[a]} {p[a]:.2f} or {model.classes_[b]} {p[b]:.2f}"
            for a, b, p in zip(first, second, of_chosen, strict=True)
        ]
    n_nonfinite = int((~is_finite & ~has_label).sum())
    return ToLabel(store, features.layer_, rows, kind, why, reasons, suggestions, labels, n_nonfinite)


def _labels_so_far(store: FeatureStore, y: str | Sequence[object] | np.ndarray | None) -> np.ma.MaskedArray:
    """(N,) labels, masked where there is none."""
    if isinstance(y, str):
        if y not in store.columns:
            raise StoreError(no_column(store.path.name, y, store.columns))
        y = np.ma.masked_array(store.columns[y], store.columns[y] == "")
    if y is None and store.y is None or isinstance(y, np.ma.MaskedArray) and len(y) == len(store) and not y.count():
        return np.ma.masked_all(len(store), "<U1")
    mask = np.ma.getmaskarray(y).copy() if isinstance(y, np.ma.MaskedArray) else np.zeros(len(store), bool)
    return np.ma.masked_array(labels_of(store, y), mask)


def _strategy(labels: np.ma.MaskedArray, strategy: Strategy) -> tuple[str, str]:
    """The strategy, and why."""
    is_numeric = labels.dtype.kind == "f"
    n, n_classes = labels.count(), 0 if is_numeric else len(np.unique(labels.compressed()))
    has = "numbers" if is_numeric else f"{n_classes:,} class{'' if n_classes == 1 else 'es'}"
    if strategy == "uncertain" and n_classes < 2:
        raise FeatxError(
            Parameter("strategy", strategy), f" needs labels of two classes or more; the labels so far are of {has}"
        )
    so_far = f"{count(n, 'label')} so far, of {has}" if n else "no labels so far"
    enough = LABELS_A_CLASS * n_classes
    if strategy == "typical" or strategy == "auto" and (n_classes < 2 or n < enough):
        next_rule = f"; from {LABELS_A_CLASS} labels a class on{f', {enough:,}' if n_classes > 1 else ''}, "
        next_rule += "the images about which a classifier is least sure are chosen instead"
        what = "typical images of clusters that no label covers yet (TypiClust)"
        return "typical", f"{what}: {so_far}{'' if is_numeric or strategy != 'auto' else next_rule}"
    what = "images about which a classifier is least sure, spread over clusters"
    return "uncertain", f"{what}: {so_far}{f', {LABELS_A_CLASS} or more a class' if strategy == 'auto' else ''}"


@threadpool_limits.wrap(limits=1)  # beside other processes several threads wait for each other in every step
def _representation(features: StoredFeatures, keys: np.ndarray, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows in which clusters are looked for; memory is bounded.

    Returns
    -------
    is_finite : (N,) bool, the rows without NaN and inf
    X : (m, 50) float32, of these rows: standardised, of unit length, and projected on their principal components
    """
    scaler = StandardScaler()
    is_finite = np.zeros(len(keys), bool)
    for part, rows in _parts(features, keys):
        is_finite[part] = np.isfinite(rows).all(axis=1)
        if is_finite[part].any():
            scaler.partial_fit(rows[is_finite[part]])
    if not is_finite.any():
        raise StoreError(f"every row of layer {features.layer_!r} contains NaN or inf; choose another with ",
                         Parameter("layer", ...))  # fmt: skip
    finite = np.flatnonzero(is_finite)
    n_sample = max(2 * _COMPONENTS, _SAMPLE_BYTES // (4 * features.n_features_out_))
    sample = np.sort(np.random.default_rng(random_state).permutation(finite)[:n_sample])
    rows = normalize(scaler.transform(_rows(features, keys[sample])))
    pca = PCA(min(_COMPONENTS, *rows.shape), random_state=random_state)
    with np.errstate(invalid="ignore", divide="ignore"):  # all rows equal: the shares of the variance are 0 / 0
        pca.fit(rows)
    X = np.empty((len(finite), pca.n_components_), np.float32)
    start = 0
    for part, rows in _parts(features, keys):
        rows = rows[is_finite[part]]
        if len(rows):
            X[start : start + len(rows)] = pca.transform(normalize(scaler.transform(rows)))
            start += len(rows)
    return is_finite, X


def _parts(features: StoredFeatures, keys: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(slice, (m, d) float32 rows) of all keys, in parts of bounded memory."""
    size = _part_rows(features)
    for start in range(0, len(keys), size):
        part = slice(start, start + size)
        yield part, _rows(features, keys[part])


def _rows(features: StoredFeatures, keys: np.ndarray) -> np.ndarray:
    return np.asarray(features.transform(keys), np.float32)


def _part_rows(features: StoredFeatures) -> int:
    return max(1, _PART_BYTES // (4 * features.n_features_out_))


def _classifier(store: FeatureStore, layer: str, labels: np.ma.MaskedArray, random_state: int) -> Pipeline:
    """A logistic regression of the labels so far; C is chosen by cross-validation if every class has two images."""
    labels = labels.copy()
    for copies in store.duplicates:  # one image of each content, so that no fold has its copy elsewhere
        labels[copies[~np.ma.getmaskarray(labels)[copies]][1:]] = np.ma.masked
    X, y = store.X[~np.ma.getmaskarray(labels)], labels.compressed()
    spec = ESTIMATORS["logistic_regression"]
    steps = [("features", StoredFeatures(store, layer)), ("scaler", StandardScaler())]
    model = Pipeline([*steps, ("estimator", new_estimator(spec).set_params(C=_C))])
    folds = min(_FOLDS, int(np.unique(y, return_counts=True)[1].min()))
    if folds < 2:
        return model.fit(X, y)
    cv = StratifiedKFold(folds, shuffle=True, random_state=random_state)
    return GridSearchCV(model, {f"estimator__{spec.parameter}": spec.values}, cv=cv).fit(X, y).best_estimator_


def _probabilities(model: Pipeline, keys: np.ndarray) -> np.ndarray:
    """(m, k) of image keys, computed in parts."""
    size = _part_rows(model["features"])
    return np.concatenate([model.predict_proba(keys[start : start + size]) for start in range(0, len(keys), size)])
