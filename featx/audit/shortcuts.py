"""What tells the classes apart without a look at the picture: file size, dimensions, quality, camera, date, columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from sklearn.tree import DecisionTreeClassifier

from featx.learn.scores import Interval, wilson
from featx.learn.selection import Groups, cv_splits
from featx.store import FeatureStore

_FOLDS = 5
_LEAVES = 8
_LEAST_GAIN = 0.05  # of balanced accuracy above chance
_ERROR = 0.05  # probability of a false warning, over all columns
_DISPERSION = 1.3  # of a cross-validated score without a shortcut, in binomial standard errors; measured: 1.05 to 1.27
_MOST_VALUES = 50  # of a column of categories
_OF_CONTENT = ("file size", "brightness", "contrast", "sharpness")  # which a picture's content decides too
_LEAST_OF_CLASS = 0.7  # mean of recall and specificity of one class against all others, which is 0.5 by chance
_LEAST_OF_MODEL = 0.8  # share of the model's gain above chance from which these are a shortcut
_LEAST_MODEL = 0.3  # share of the way from chance to 1 that the model must gain before they are compared with it
_STRATA = 4


class Stratum(NamedTuple):
    """Images with one value, or a range of values, of a column, and the model's accuracy on them."""

    value: str
    rows: np.ndarray
    accuracy: float
    interval: Interval


@dataclass(frozen=True, eq=False)
class Shortcut:
    """How well the label is predicted from one column alone.

    Attributes
    ----------
    column : str
    score : float
        Balanced accuracy, cross-validated.
    interval : Interval
        Its 95 % interval.
    chance : float
    is_warning : bool
        Whether the score is above chance by more than 0.05 and more than chance allows, over all columns tried; or the
        recall and specificity of one class have a mean above 0.7, and more than chance allows. For what a picture's
        content decides too (file size, brightness, contrast, sharpness), whether the score is also more than 0.8 of the
        model's own gain, and that gain is real: 0.3 of the way from chance to 1.
    told : str
        The class that is told from the others best.
    told_score : float
        The mean of its recall and specificity.
    strata : list of Stratum
        The model's accuracy by the values of the column.
    """

    column: str
    score: float
    interval: Interval
    chance: float
    is_warning: bool
    told: str
    told_score: float
    strata: list[Stratum]


def shortcuts(
    store: FeatureStore,
    y: np.ndarray,
    rows: np.ndarray,
    groups: Groups | None,
    right: np.ndarray | None = None,
    model_score: float = 1.0,
    random_state: int = 0,
    leave_out: str = "",
) -> list[Shortcut]:
    """Predict the label from each column alone, the most telling column first.

    Parameters
    ----------
    store : FeatureStore
    y : (n,) class names of the store's images
    rows : (m,) rows to use; every class has five images or more
    groups : Groups of the store's n images, optional
    right : (m,) bool, optional
        Whether a model of the features predicts each of these rows right, out of fold.
    model_score : float
        Its balanced accuracy.
    leave_out : str
        The column of the store that the labels are from, if they are from one.
    """
    labels = y[rows]
    classes, codes = np.unique(labels, return_inverse=True)
    columns = {name: values[rows] for name, values in _columns(store, y, leave_out).items()}
    columns = {name: values for name, values in columns.items() if _varies(values)}
    splits = cv_splits(labels, None if groups is None else groups.of(rows), _FOLDS, 1, random_state)
    chance, found = 1 / len(classes), []
    limit = norm.ppf(1 - _ERROR / max(1, len(columns)))
    for name, values in columns.items():
        features = _as_features(values)
        predicted = np.empty(len(rows), codes.dtype)
        for train, test in splits:
            tree = DecisionTreeClassifier(
                max_leaf_nodes=_LEAVES if features.shape[1] <= 2 else None,
                min_samples_leaf=max(3, len(train) // 100),
                class_weight="balanced",
                random_state=0,
            )
            predicted[test] = tree.fit(features[train], codes[train]).predict(features[test])
        recalls = np.array([(predicted[codes == c] == c).mean() for c in range(len(classes))])
        counts = np.bincount(codes)
        score = float(recalls.mean())
        error = _DISPERSION * float(
            np.sqrt(np.sum(np.maximum(recalls * (1 - recalls), 1 / counts) / counts)) / len(classes)
        )
        enough = score - chance > _LEAST_GAIN and score - chance > limit * error
        specificities = np.array([(predicted[codes != c] != c).mean() for c in range(len(classes))])
        of_class = (recalls + specificities) / 2
        # the largest of k classes, each of two shares of at least counts images
        class_limit = norm.ppf(1 - _ERROR / max(1, len(columns)) / len(classes)) * 0.5 / np.sqrt(counts)
        excess = of_class - np.maximum(_LEAST_OF_CLASS, 0.5 + class_limit)
        told = int(np.argmax(excess))
        told_score = float(of_class[told])
        enough = enough or excess[told] > 0
        if name in _OF_CONTENT:
            model_gain = model_score - chance
            enough = enough and score - chance > _LEAST_OF_MODEL * model_gain > _LEAST_OF_MODEL * _LEAST_MODEL * (
                1 - chance
            )
        interval = Interval(max(0.0, score - 1.96 * error), min(1.0, score + 1.96 * error))
        strata = _strata(values, rows, right)
        found.append(Shortcut(name, score, interval, chance, bool(enough), str(classes[told]), told_score, strata))
    return sorted(found, key=lambda each: (not each.is_warning, -each.score))


def _columns(store: FeatureStore, y: np.ndarray, leave_out: str) -> dict[str, np.ndarray]:
    """{name: (n,)} of everything that is known of the images but their pixels."""
    s, columns = store.statistics, {}
    if s:
        columns = {
            "file size": s["file_bytes"].astype(float),
            "height": s["height"].astype(float),
            "width": s["width"].astype(float),
            "aspect ratio": s["width"] / s["height"],
            "JPEG quality": np.round(s["jpeg_quality"].astype(float), 1),
            "brightness": s["brightness"].astype(float),
            "contrast": s["contrast"].astype(float),
            "sharpness": s["sharpness"].astype(float),
            "date taken": _seconds(s["taken"]),
            "camera": s["camera"].astype(str),
        }
    paths = [str(name).split("/") for name in store.ids]
    ends = np.array([name[-1].rpartition(".")[2].lower() if "." in name[-1] else "" for name in paths])
    columns["file type"] = ends
    for depth in range(max(len(parts) for parts in paths) - 1):
        folder = np.array([parts[depth] if depth < len(parts) - 1 else "" for parts in paths])
        if np.mean(folder == y.astype(str)) <= 0.5:  # class folders are the labels themselves
            columns[f"folder {depth + 1}"] = folder
    for name, values in store.columns.items():
        texts = values.astype(str)
        if name != leave_out:
            columns[f"column {name}"] = _numbers(texts) if len(np.unique(texts)) > _MOST_VALUES else texts
    return columns


def _numbers(texts: np.ndarray) -> np.ndarray:
    """The texts as finite numbers, or dates as seconds, others as NaN; as they are if one is neither."""
    try:
        numbers = np.where(texts == "", "nan", texts).astype(float)
        return np.where(np.isfinite(numbers), numbers, np.nan)
    except ValueError:
        pass
    try:
        return _seconds(texts.astype("datetime64[s]"))
    except ValueError:
        return texts


def _seconds(dates: np.ndarray) -> np.ndarray:
    return np.where(np.isnat(dates), np.nan, dates.astype(np.int64))


def _varies(values: np.ndarray) -> bool:
    is_missing = _is_missing(values)
    return len(np.unique(values[~is_missing])) > 1 or bool(0 < is_missing.sum() < len(values))


def _is_missing(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if values.dtype.kind == "f" else values == ""


def _as_features(values: np.ndarray) -> np.ndarray:
    """(m, columns): a number's rank and whether it is missing; or one column for each of the most frequent texts."""
    distinct, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if values.dtype.kind == "f":  # ranks, because trees round to float32
        return np.stack([codes, np.isnan(values)], axis=1).astype(float)
    frequent = np.argsort(-counts, kind="stable")[:_MOST_VALUES]
    return (codes[:, None] == frequent).astype(float)


def _strata(values: np.ndarray, rows: np.ndarray, right: np.ndarray | None) -> list[Stratum]:
    if right is None:
        return []
    missing = _is_missing(values)
    if values.dtype.kind == "f" and len(np.unique(values[~missing])) > _STRATA:
        ends = np.unique(np.quantile(values[~missing], np.linspace(0, 1, _STRATA + 1)))
        bins = np.clip(np.searchsorted(ends, values, side="right") - 1, 0, len(ends) - 2)
        named = [(f"{ends[i]:.6g} to {ends[i + 1]:.6g}", ~missing & (bins == i)) for i in range(len(ends) - 1)]
    else:
        distinct, counts = np.unique(values[~missing], return_counts=True)
        frequent = distinct[np.argsort(-counts, kind="stable")][: 2 * _STRATA]
        named = [(f"{v:g}" if values.dtype.kind == "f" else str(v), values == v) for v in frequent]
    named.append(("none", missing))
    return [
        Stratum(name, rows[of], float(right[of].mean()), wilson(float(right[of].mean()), int(of.sum())))
        for name, of in named
        if of.any()
    ]
