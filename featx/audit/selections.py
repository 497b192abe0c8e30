"""The audit of what a search has searched: its labels, and its held-out images as test images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featx.audit.audit import audit
from featx.audit.findings import Audit
from featx.learn.selection import Selection
from featx.store import FeatureStore


def audit_selection(
    selection: Selection, *, random_state: int = 0, on_step: Callable[[str], None] = lambda step: None
) -> Audit:
    """Audit the first store of a search, with the search's labels and held-out images.

    Parameters
    ----------
    selection : Selection
    random_state : int
        Seed of the folds.
    on_step : callable
        Called with the name of each step.

    Returns
    -------
    Audit
        Images that the search left out have no label in it.

    Examples
    --------
    >>> featx.report.html(selection, "cats.html", audit=audit_selection(selection))    # doctest: +SKIP
    """
    training, held_out = selection.training, selection.test
    store = training.stores[0]
    parts = [] if training.X is None or training.y is None else [(training.X, training.y)]
    test: FeatureStore | np.ndarray | None = None
    if held_out is not None and held_out.store is not None:
        test = held_out.store
    elif held_out is not None:
        parts.append((held_out.X, held_out.y))
        test = np.isin(np.arange(len(store)), store.rows(held_out.X))
    y = None
    if parts:
        rows = np.concatenate([store.rows(X) for X, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        y = np.ma.masked_all(len(store), labels.dtype)
        y[rows] = labels
    return audit(store, y, test=test, random_state=random_state, on_step=on_step)
