"""Parameters of wrong types, out of range or empty: one line that names the parameter, before anything is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from separable import separable_store
from sklearn.decomposition import PCA
from sklearn.preprocessing import Normalizer

from featx.errors import FeatxError
from featx.learn import HoldOut, few_shot, knn_probe, learning_curves, linear_probe, select_model

FUNCTIONS = {
    "select_model": select_model,
    "linear_probe": linear_probe,
    "knn_probe": knn_probe,
    "few_shot": few_shot,
    "learning_curves": learning_curves,
}
WRONG_INTEGERS = ["2", 2.5, [2], True, np.nan]
WRONG_SEEDS = [-1, 2**31, None, "0", 0.5, True]
WRONG_SHARES = [0, 1, 1.5, -0.1, np.nan, "0.2", [0.2], None, True]
WRONG_NUMBERS = ["1", [], ["1"], [0.0], [-1.0], [np.nan], [np.inf], [None], [[1.0]], {1.0: 2.0}, None, [True]]
WRONG_COUNTS = ["5", 5, [], ["5"], [0], [-1], [10**6], [2.5], [None], [[2]], [True]]
# parameters that all functions have
EVERYWHERE: dict[str, list[Any]] = {
    "stores": [[], (), None, 5, "a.h5", Path("a.h5"), [None], ["a.h5"], {}],
    "y": [5, 0.5, [], ["a"], [["a"] * 60], {}, "absent", True],
    "layers": [[], (), 5, [5], [None], [[]], [[5]], {}, True, [["good", []]]],
    "groups": [5, [], [1], [[1] * 60], "absent", {}],
    "allow_duplicates": ["no", None, 2, []],
    "holdout": [0.2, None, HoldOut, "0.2", []],
    "random_state": WRONG_SEEDS,
    "on_progress": [5, "print", []],
}
WRONG: dict[str, dict[str, list[Any]]] = {
    "select_model": {
        "estimators": [[], (), 5, [5], [None], [["knn"]], {}, True, PCA()],
        "param_grid": [
            [],
            [0.1],
            "rbf_svm",
            5,
            {5: [1.0]},
            {"rbf_svm": 1.0},
            *({"rbf_svm": values} for values in WRONG_NUMBERS),
            {"C": [1.0]},
            {"rbf_svm__C": [1.0]},
            {"estimator__C": [1.0]},
            {"rbf_svm": {"C": [1.0]}},
        ],
        "steps": [5, None, "pca", Normalizer(), Normalizer, [Normalizer], [None], ["passthrough"], {"a": 1},
                  [("l2", Normalizer())], [PCA(0)], [PCA(-3)], [PCA("many")], [PCA(np.nan)], [Normalizer("l5")]],
        "scoring": ["", 5, "unknown", ["accuracy"], len, {}],
        "folds": [*WRONG_INTEGERS, 1, 0, -1, None],
        "repeats": [*WRONG_INTEGERS, 0, -1, None],
        "one_se": ["no", None, 2, []],
        "nested": ["no", None, 2, []],
        "n_jobs": [*WRONG_INTEGERS, 0],
    },
    "linear_probe": {"C": [1.0, *WRONG_NUMBERS], "validation_size": WRONG_SHARES},
    "knn_probe": {"k": [value for value in WRONG_COUNTS if value != [10**6]] + [None], "validation_size": WRONG_SHARES},
    "few_shot": {
        "shots": WRONG_COUNTS,
        "repeats": [*WRONG_INTEGERS, 0, -1, None],
        "C": ["1", [1.0], 0, -1.0, np.nan, np.inf, None, True],
    },
    "learning_curves": {
        "sizes": WRONG_COUNTS,
        "repeats": [*WRONG_INTEGERS, 0, -1, None],
        "C": ["1", [1.0], 0, -1.0, np.nan, np.inf, True],
    },
}  # fmt: skip
WRONG_ROWS = [5, "ab", [], np.ones(59, bool), np.ones((60, 1), bool), np.arange(60), [3, 7], ["a"] * 60, np.zeros(60)]
for name in ("linear_probe", "knn_probe"):
    WRONG[name]["validation_rows"] = [*WRONG_ROWS, np.ones(60, bool), np.zeros(60, bool)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return separable_store(tmp_path_factory.mktemp("stores") / "a.h5", 60)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_values_are_refused_in_a_line_that_names_the_parameter(store, function):
    for parameter, values in (EVERYWHERE | WRONG[function]).items():
        texts = {}
        for value in values:
            options = {"stores": store, parameter: value}
            with pytest.raises(FeatxError) as raised:
                FUNCTIONS[function](options.pop("stores"), **options)
            texts[repr(value)] = str(raised.value)
        nouns = (parameter, "column 'absent'") if parameter in ("y", "groups") else (parameter,)
        unclear = {value: text for value, text in texts.items() if not any(noun in text for noun in nouns)}
        assert unclear == {}, parameter
        assert [text for text in texts.values() if "\n" in text or len(text) > 300] == [], parameter
