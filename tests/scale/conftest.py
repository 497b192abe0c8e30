"""A Ray cluster of two nodes on this machine, for all tests of this folder in a process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from ray_networks import NODE


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes with a core each, which nobody is connected to."""
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    started = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    started.add_node(**NODE)
    started.wait_for_nodes()
    yield started
    started.shutdown()
