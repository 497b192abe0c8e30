"""Model files in; in a process that may crash: each is loaded and, if that goes, asked all that reads its trees.

python trees_child.py FOLDER      prints a line a file: its name, then "used" or the one-line error
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np

from featx.errors import ModelError
from featx.learn import load

warnings.simplefilter("ignore")
METHODS = ("predict", "predict_proba", "decision_function", "apply", "decision_path")

for path in sorted(Path(sys.argv[1]).glob("*.skops")):
    print(path.stem, end="\t", flush=True)
    try:
        model = load(path)
    except ModelError as error:
        print(error, flush=True)
        continue
    for n in (1, 7, 2000):
        X = np.random.default_rng(0).normal(0, 3, (n, 4)).astype(np.float32)
        for rows in (X, np.asfortranarray(X), X[:, :1].copy()):
            for method in METHODS:
                try:
                    getattr(model, method)(rows)
                except Exception:  # of columns that it does not take, or methods that it has not
                    continue
    print("used", flush=True)
