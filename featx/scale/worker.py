"""What runs on the nodes: an actor that computes batches of a run, one after the other."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

from featx.backbones import Backbone
from featx.extraction import Share, portable
from featx.forward import Block
from featx.scale.inspection import PACKAGES, Report


def inspector() -> Callable[[bytes], Report]:
    """A function that Ray sends to a node by value, so that it runs where featx is not installed.

    It takes a pickled sample of images, see `pickled_sample`, and returns the versions of the node's packages, its
    processor, and what it cannot see.
    """
    packages = PACKAGES

    def inspect(sample: bytes) -> dict[str, Any]:
        from importlib.metadata import PackageNotFoundError, version

        versions: dict[str, str | None] = {}
        for name in packages:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = None
        report: dict[str, Any] = {"versions": versions}
        try:
            from featx.scale.inspection import processor, unseen

            return report | {"processor": processor(), "unseen": unseen(sample)}
        except ImportError as error:
            return report | {"error": str(error)}

    return inspect


class Worker:
    """Computes batches of a run in a process of its own.

    Parameters
    ----------
    network : bytes, the run's network, see `featx.extraction.pickled`
    device : "cpu" or "cuda"
    """

    def __init__(self, network: bytes, device: str) -> None:
        self._network, self._device = network, device
        self._backbone: Backbone | None = None
        self._blocks: Iterator[Block] = iter(())

    def inspect(self, sample: bytes) -> Report:
        """The node's report, with its id, the process id, and why the network cannot be used, if so."""
        import ray

        report = inspector()(sample)
        try:
            self._backbone = pickle.loads(self._network)
            refusal = ""
        except Exception as error:  # unpickling may import a module of the user's, which may raise anything
            refusal = f"{type(error).__name__}: {error}"
        self._network = b""
        return report | {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(), "refusal": refusal}

    def next_block(self, share: Share | None) -> Block | BaseException:
        """Compute the next batch of the last share; of a new one, if it is passed."""
        assert self._backbone is not None
        try:
            if share is not None:
                self._blocks = share.blocks(self._backbone, self._device)
            return next(self._blocks)
        except (Exception, SystemExit) as error:
            return portable(error, f"{self._device} of process {os.getpid()}")
