"""Every score of a search or protocol as CSV or JSON, for other programs.

One row per candidate, outer split of a nested cross-validation or point of a protocol, always in these columns:

kind : "cross-validation", "nested", or the protocol: "linear-probe", "knn", "few-shot", "learning-curve"
rank : from 1, best first; or the number of the outer split, or the rank of a protocol's layer
chosen : 1 for what was chosen: the candidate that was fitted, an outer split's winner, a layer's best x; else 0
partial : 1 if the search, the nested cross-validation or the protocol was interrupted, so that rows are missing; else 0
backbone, layer, features, layer_features : names, the number of features that the estimator is fitted on, and that of
    the layer, from which a choice of features or a PCA may have made fewer
estimator, parameter, value : the model; for protocols, what x is and its value
scoring : the name of scikit-learn's scorer; larger is better
mean, std, low, high : of the scores, with the 95 % interval of the mean
mae : mean absolute error over the splits, where the labels are numbers
fit_seconds : mean time of a fit
held_out, held_out_low, held_out_high : for the chosen row, the score on images that played no part in the choice, with
    its 95 % interval; for an outer split, the score on its test images
score_1, score_2 ... : one per split or subsample (in JSON, one list: scores)

Values that do not apply are empty (in JSON, null). `interchange` describes how CSV quotes texts that look like
formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.report.interchange import csv_text, json_text

if TYPE_CHECKING:
    from featx.learn.scores import Interval
    from featx.learn.selection import Candidate, Nested, ProtocolResult, Selection

_COLUMNS = (
    *(
        "kind",
        "rank",
        "chosen",
        "partial",
        "backbone",
        "layer",
        "features",
        "layer_features",
        "estimator",
        "parameter",
        "value",
    ),
    *("scoring", "mean", "std", "low", "high", "mae", "fit_seconds", "held_out", "held_out_low", "held_out_high"),
)


def results_csv(result: Selection | Nested | ProtocolResult) -> str:
    """Write a result as CSV: a header line, then a line per candidate, outer split or point of a protocol.

    Parameters
    ----------
    result : Selection, Nested or ProtocolResult

    Returns
    -------
    str
        The columns are listed at the top of this module. Numbers keep their full precision.
    """
    rows = list(_rows(result))
    most = max((len(row["scores"]) for row in rows), default=0)
    cells: list[list[Any]] = [[*_COLUMNS, *(f"score_{i}" for i in range(1, most + 1))]]
    for row in rows:
        cells.append([*(row[name] for name in _COLUMNS), *row["scores"], *[None] * (most - len(row["scores"]))])
    return csv_text(cells)


def results_json(result: Selection | Nested | ProtocolResult) -> str:
    """A JSON object: the settings of the run and, as "results", the rows of `results_csv`, with "scores" as a list."""
    return json_text({**_run(result), "results": list(_rows(result))}, indent=1)


def _run(result: Selection | Nested | ProtocolResult) -> dict[str, Any]:
    from featx.learn.selection import Nested, Selection

    if isinstance(result, Nested):
        low, high = _ends(result.interval)
        return {"kind": "nested", "folds": result.folds, "scoring": result.scoring} | {
            "mean": _finite(result.mean), "low": low, "high": high
        }  # fmt: skip
    data = result.training if isinstance(result, Selection) else result
    stores = [{"path": str(store.path), "identity": store.identity} for store in data.stores]
    classes = None if data.classes is None else data.classes.tolist()
    if not isinstance(result, Selection):
        return {
            "kind": result.protocol,
            "varied": result.varied,
            "scoring": result.scoring,
            "repeats": result.repeats,
            "chance": _finite(result.chance),
            "n_train": result.n_train,
            "n_validation": result.n_validation,
            "n_test": result.n_test,
            "is_partial": result.is_partial,
            "classes": classes,
            "stores": stores,
        }
    low, high = _ends(result.held_out_interval)
    nested_low, nested_high = _ends(None if result.nested is None else result.nested.interval)
    return {
        "kind": "cross-validation",
        "scoring": result.settings.scoring,
        "folds": result.settings.folds,
        "repeats": result.settings.repeats,
        "chance": _finite(result.training.chance),
        "steps": list(result.settings.steps),
        "n_train": result.training.n,
        "n_test": 0 if result.test is None else len(result.test.y),
        "n_duplicates": result.training.n_duplicates,
        "n_groups": result.training.n_groups,
        "is_partial": result.is_partial or result.nested is not None and result.nested.is_partial,
        "held_out": _finite(result.held_out),
        "held_out_low": low,
        "held_out_high": high,
        "held_out_mae": _finite(result.held_out_mae),
        "nested": None if result.nested is None or not result.nested.scores else _finite(result.nested.mean),
        "nested_low": nested_low,
        "nested_high": nested_high,
        "classes": classes,
        "confusion": None if result.confusion is None else result.confusion.tolist(),
        "stores": stores,
    }


def _rows(result: Selection | Nested | ProtocolResult) -> Iterator[dict[str, Any]]:
    from featx.learn.selection import Nested, Selection

    if isinstance(result, Nested):
        yield from _nested_rows(result)
    elif isinstance(result, Selection):
        for rank, candidate in enumerate(result.candidates, start=1):
            row = _of_candidate(candidate, result.settings.scoring, result.is_partial) | {
                "kind": "cross-validation",
                "rank": rank,
            }
            if candidate == result.chosen:
                row |= {"chosen": 1} | _held_out(result.held_out, result.held_out_interval)
            yield row
        if result.nested is not None:
            yield from _nested_rows(result.nested)
    else:
        yield from _protocol_rows(result)


def _nested_rows(nested: Nested) -> Iterator[dict[str, Any]]:
    for split, (score, chosen) in enumerate(zip(nested.scores, nested.chosen, strict=True), start=1):
        row = _of_candidate(chosen, nested.scoring, nested.is_partial) | {"kind": "nested", "rank": split, "chosen": 1}
        yield row | _held_out(score, None)


def _protocol_rows(result: ProtocolResult) -> Iterator[dict[str, Any]]:
    for rank, curve in enumerate(result.curves, start=1):
        for point in curve.points:
            low, high = _ends(point.interval)
            row = dict.fromkeys(_COLUMNS) | {
                "kind": result.protocol,
                "rank": rank,
                "chosen": int(curve.chosen == point),
                "partial": int(result.is_partial),
                "backbone": curve.backbone,
                "layer": curve.layer,
                "features": curve.d,
                "layer_features": curve.d,
                "parameter": result.varied,
                "value": point.x,
                "scoring": result.scoring,
                "mean": _finite(point.mean),
                "std": float(np.std(point.scores)) if len(point.scores) > 1 else None,
                "low": low,
                "high": high,
                "scores": [_finite(score) for score in point.scores],
            }
            yield row | (_held_out(curve.test, curve.test_interval) if row["chosen"] else {})


def _of_candidate(candidate: Candidate, scoring: str, is_partial: bool) -> dict[str, Any]:
    low, high = _ends(candidate.interval)
    return dict.fromkeys(_COLUMNS) | {
        "chosen": 0,
        "partial": int(is_partial),
        "backbone": candidate.backbone,
        "layer": candidate.layer,
        "features": int(candidate.complexity[0]),
        "layer_features": candidate.d,
        "estimator": candidate.estimator,
        "parameter": candidate.parameter or None,
        "value": candidate.value,
        "scoring": scoring,
        "mean": _finite(candidate.mean),
        "std": _finite(candidate.std),
        "low": low,
        "high": high,
        "mae": _finite(candidate.mae),
        "fit_seconds": _finite(candidate.fit_seconds),
        "scores": [_finite(score) for score in candidate.scores],
    }


def _held_out(score: float | None, interval: Interval | None) -> dict[str, float | None]:
    low, high = _ends(interval)
    return {"held_out": _finite(score), "held_out_low": low, "held_out_high": high}


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (_finite(interval.low), _finite(interval.high))


def _finite(value: Any) -> float | None:
    """A float, or None for inf and NaN, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else float(value)
