"""From images to one store: a plan of what to compute, and its run by an executor: on this machine, or elsewhere."""

from featx.extraction.executors import Executor, LocalExecutor
from featx.extraction.plans import Plan, extract, plan, warn_of_failures
from featx.extraction.shares import Share, batch_starts, pickled, portable, portable_image, share_of

__all__ = [
    "Executor",
    "LocalExecutor",
    "Plan",
    "Share",
    "batch_starts",
    "extract",
    "pickled",
    "plan",
    "portable",
    "portable_image",
    "share_of",
    "warn_of_failures",
]
