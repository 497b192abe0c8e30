"""scikit-learn's searches with the work of candidates shared: `candidates` -> `planner` -> `executor` -> `context`."""

from featx.learn.search.halving import HalvingGridSearchCV, HalvingRandomSearchCV
from featx.learn.search.search import GridSearchCV, RandomizedSearchCV

__all__ = [
    "GridSearchCV",
    "HalvingGridSearchCV",
    "HalvingRandomSearchCV",
    "RandomizedSearchCV",
]
