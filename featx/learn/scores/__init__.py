"""Metrics of predictions, and confidence intervals of scores."""

from featx.learn.scores.intervals import (
    UNKNOWN,
    Interval,
    cv_interval,
    drawn_interval,
    held_out_interval,
    paired_drawn_interval,
    paired_interval,
    splits_interval,
    wilson,
    within_one_se,
)
from featx.learn.scores.metrics import METRICS, Metric, decisions_of

__all__ = [
    "METRICS",
    "UNKNOWN",
    "Interval",
    "Metric",
    "cv_interval",
    "decisions_of",
    "drawn_interval",
    "held_out_interval",
    "paired_drawn_interval",
    "paired_interval",
    "splits_interval",
    "wilson",
    "within_one_se",
]
