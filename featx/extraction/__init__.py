"""Images in, one store out: what to compute is planned, and run on as many devices as there are."""

from featx.extraction.plans import Plan, extract, plan

__all__ = [
    "Plan",
    "extract",
    "plan",
]
