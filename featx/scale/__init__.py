"""Extraction on several machines: the batches of a run as work of a Ray cluster, and stores in shards.

Ray is imported only here, when an extraction on it begins.
"""

from featx.scale.executor import RayExecutor
from featx.scale.shards import extract_shards

__all__ = [
    "RayExecutor",
    "extract_shards",
]
