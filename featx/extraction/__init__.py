"""From images to one store: a plan of what to compute, and its run on all available devices."""

from featx.extraction.plans import Plan, extract, plan

__all__ = [
    "Plan",
    "extract",
    "plan",
]
