"""Extraction on a Ray cluster: a pool of actors computes batches, and this process writes their rows.

Ray schedules, moves and restarts; what is done is known from the run's journal alone.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from featx.backbones import Backbone
from featx.errors import BackboneError, FeatxError, Parameter, listed
from featx.extraction import batch_starts, pickled, share_of
from featx.forward import Block, decoders, release
from featx.scale.cluster import (
    AUTO,
    LOCAL,
    Node,
    connected,
    host_and_port,
    nodes_for,
    on_node,
    refuse_missing_ray,
    resources_of,
)
from featx.scale.inspection import (
    pickled_sample,
    processor,
    refuse_other_gpu,
    refuse_other_node,
    refuse_unseen,
)
from featx.scale.worker import Worker, inspector
from featx.store import KEPT, Recipe, RowFile

BLOCKS_PER_ACTOR = 2  # blocks that an actor computes, or has computed and this process has not taken
_RANGE_BATCHES = 8  # that an actor is given at a time
_MOST_DEATHS = 3  # of the actors of one batch
_MOST_FAILED_STARTS = 10  # of actors, one after the other, while no block arrives
LOOK_SECONDS = 5.0  # after which a run that waits looks whether there are nodes


class RayExecutor:
    """Compute the batches of an extraction on a Ray cluster.

    One actor runs on each GPU or, without GPUs, on each `threads` cores, the recipe's threads of the forward pass. This
    process writes the rows. The store is byte for byte that of a local extraction with the same recipe on the same kind
    of device. An actor or a node that ends costs the batches that it had: others compute them again.

    Parameters
    ----------
    address : str
        "HOST:PORT" of a cluster. "auto" is the cluster that this process is connected to, that the environment variable
        RAY_ADDRESS names or that runs on this machine; if there is none, one is started on this machine and shut down
        at the end. "local" starts one in any case.

    Raises
    ------
    FeatxError
        Ray is not installed.

    Notes
    -----
    Every node needs the same versions of featx, torch, torchvision, timm, Pillow and NumPy as this machine, the same
    kind of CPU or GPU, and the images under the same paths or URLs. This is checked before the first batch.

    The driver's memory holds at most two blocks an actor, and the two that are being written.

    `workers` of `featx.extract` is the number of decoding threads of each actor; "auto" is its share of the node's
    cores.

    Examples
    --------
    >>> featx.extract("/shared/photos", "photos.h5", executor=featx.RayExecutor())    # doctest: +SKIP
    """

    def __init__(self, address: str = AUTO) -> None:
        refuse_missing_ray()
        try:
            if address not in (AUTO, LOCAL):
                host_and_port(address)
        except (ValueError, AttributeError):
            message = f" is 'auto', 'local' or HOST:PORT of a cluster; got {address!r}"
            raise FeatxError(Parameter("address"), message) from None
        self.address = address

    def __repr__(self) -> str:
        return f"RayExecutor({self.address!r})"

    def compute(
        self,
        images: Sequence[Any],
        recipe: Recipe,
        backbone: Backbone,
        *,
        workers: int | str,
        todo: np.ndarray,
        rows: RowFile,
        computed: Iterable[Block] = (),
    ) -> Generator[Block, None, None]:
        """Run images through a recipe; see `featx.extraction.Executor`.

        Raises
        ------
        BackboneError
            The network cannot be sent to the nodes.
        SourceError
            A node does not see an image that this process sees.
        FeatxError
            The cluster cannot be used, a node differs from this machine, or a batch has ended its actors.
        """
        network = sent(backbone)
        release()
        with connected(self.address) as ray:
            sample = pickled_sample(images)
            refuse_other_nodes(ray, recipe, sample)
            todo = todo.copy()
            for block in computed:
                todo[block.start : block.stop] = False
                yield block
            with _Pool(ray, images, recipe, workers, todo, network, sample) as pool:
                yield from pool.blocks()


def sent(backbone: Backbone) -> bytes:
    """The network for other nodes; raises BackboneError if it cannot be sent."""
    try:
        return pickled(backbone)
    except Exception as error:  # of many types: locks, open files, programs
        reason = f"{type(error).__name__}: {error}"
        raise BackboneError(f"{backbone.name} cannot be sent to the nodes of a Ray cluster: {reason}") from error


def refuse_other_nodes(ray: Any, recipe: Recipe, sample: bytes) -> list[Node]:
    """The nodes that actors can run on; raises FeatxError if one of them cannot compute rows as this machine does."""
    nodes = nodes_for(ray, recipe)
    inspect = ray.remote(inspector())
    with cluster_errors(are_lost_too=True):
        reports = ray.get([inspect.options(**on_node(node)).remote(sample) for node in nodes])
    for report, node in zip(reports, nodes, strict=True):
        refuse_other_node(report, node.name, recipe.device)
    return nodes


@dataclass(eq=False)
class _Actor:
    """An actor of the pool, as this process sees it.

    handle : Ray's
    inspected : reference of its report, until that has arrived
    workers : its decoding threads
    granted : batches of its range that have not been requested, by their first images
    requested : (reference, first image) of the batches that it computes or has computed
    """

    handle: Any
    inspected: Any
    node: str = ""
    workers: int = 1
    granted: deque[int] = field(default_factory=deque)
    requested: deque[tuple[Any, int]] = field(default_factory=deque)

    @property
    def awaited(self) -> Any:
        """The reference that arrives next, or None."""
        if self.inspected is not None:
            return self.inspected
        return self.requested[0][0] if self.requested else None


class _Pool:
    """The actors of a run and the batches that are left to do; a context that ends the actors."""

    def __init__(
        self,
        ray: Any,
        images: Sequence[Any],
        recipe: Recipe,
        workers: int | str,
        todo: np.ndarray,
        network: bytes,
        sample: bytes,
    ) -> None:
        self._ray, self._images, self._recipe, self._todo, self._sample = ray, images, recipe, todo, sample
        self._workers = workers if workers == "auto" else decoders(workers)
        self._left = deque(batch_starts(recipe, todo))
        self._alone: set[int] = set()  # batches of a range that ended its actor: each is a range of its own from now on
        self._deaths: Counter[int] = Counter()  # by batch
        self._failed_starts = 0
        self._network = ray.put(network)
        self._actors: list[_Actor] = []

    def __enter__(self) -> _Pool:
        n_actors = sum(node.n_actors for node in nodes_for(self._ray, self._recipe))
        for _ in range(min(n_actors, len(self._left))):
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._end(actor)

    def _begin(self) -> None:
        options = resources_of(self._recipe) | {"max_restarts": 0, "max_task_retries": 0}
        handle = self._ray.remote(Worker).options(**options).remote(self._network, self._recipe.device)
        self._actors.append(_Actor(handle, handle.inspect.remote(self._sample)))

    def _end(self, actor: _Actor) -> None:
        with contextlib.suppress(Exception):  # it has ended already, or the cluster has
            self._ray.kill(actor.handle, no_restart=True)

    def blocks(self) -> Iterator[Block]:
        """Every batch once, in the order of arrival."""
        while self._left or any(actor.requested for actor in self._actors):
            actor = self._next()
            try:
                with cluster_errors():
                    result = self._ray.get(actor.awaited)
            except lost(self._ray) as error:
                self._replace(actor, error)
                continue
            if actor.inspected is not None:
                self._accept(actor, result)
                self._request(actor)
                continue
            if isinstance(result, BaseException):
                raise result
            actor.requested.popleft()
            self._failed_starts = 0
            self._request(actor)
            for i, failure in result.failures.items():
                if self._todo[i]:
                    refuse_unseen(self._images[i], failure, actor.node)
            yield result

    def _next(self) -> _Actor:
        """The next actor that has something for this process, or has ended; those served last come last."""
        while True:
            awaited = {actor.awaited: actor for actor in self._actors if actor.awaited is not None}
            with cluster_errors():
                arrived, _ = self._ray.wait(list(awaited), timeout=LOOK_SECONDS)
            if arrived:
                actor = awaited[arrived[0]]
                self._actors.remove(actor)
                self._actors.append(actor)
                return actor
            nodes_for(self._ray, self._recipe)  # raises if no node is left

    def _accept(self, actor: _Actor, report: dict[str, Any]) -> None:
        """Check the report of an actor: it may run on a node that has joined since."""
        nodes = {node.id: node for node in nodes_for(self._ray, self._recipe)}
        node = nodes.get(report["node"])
        actor.node, actor.inspected = report["node"][:8] if node is None else node.name, None
        refuse_other_node(report, actor.node, self._recipe.device)
        if self._recipe.device == "cuda":
            refuse_other_gpu(report["processor"].get("cuda"), processor().get("cuda"), actor.node)
        if report["refusal"]:
            raise BackboneError(
                f"{self._recipe.backbone} cannot be loaded on node {actor.node} of the Ray cluster: {report['refusal']}"
            )
        n_cpus = 1 if node is None else node.n_cpus
        actor.workers = n_cpus if self._workers == "auto" else int(self._workers)

    def _request(self, actor: _Actor) -> None:
        """Let an actor have `BLOCKS_PER_ACTOR` batches to compute, as far as there are any."""
        while len(actor.requested) < BLOCKS_PER_ACTOR:
            share = None
            if not actor.granted:
                actor.granted.extend(self._range())
                if not actor.granted:
                    return
                share = share_of(
                    self._images,
                    self._recipe,
                    list(actor.granted),
                    self._todo,
                    workers=actor.workers,
                    threads=self._recipe.threads,
                )
            start = actor.granted.popleft()
            actor.requested.append((actor.handle.next_block.remote(share), start))

    def _range(self) -> list[int]:
        """The next batches for one actor: fewer towards the end, and one at a time if the pixels are sent along."""
        if not self._left:
            return []
        first = self._images[self._left[0]]
        size = min(_RANGE_BATCHES, -(-len(self._left) // (2 * len(self._actors))))
        if isinstance(first, np.ndarray | Image.Image):
            size = 1
        batches = [self._left.popleft()]
        while len(batches) < size and self._left and not {batches[0], self._left[0]} & self._alone:
            batches.append(self._left.popleft())
        return sorted(batches)

    def _replace(self, actor: _Actor, error: Exception) -> None:
        """Give out again what an actor had that has ended; a batch that has ended several ends the run."""
        self._end(actor)
        self._actors.remove(actor)
        held = [start for _, start in actor.requested] + list(actor.granted)
        if held:
            self._deaths[held[0]] += 1
            if self._deaths[held[0]] == _MOST_DEATHS:
                raise FeatxError(
                    f"{_MOST_DEATHS} actors of the Ray cluster ended while they computed {self._names(held[0])}; leave "
                    f"the images out, or give the nodes more memory; {KEPT}"
                ) from error
        else:
            self._failed_starts += 1
            if self._failed_starts == _MOST_FAILED_STARTS:
                raise FeatxError(
                    f"actors of the Ray cluster end before they begin: {reason_of(error)}; {KEPT}"
                ) from error
        self._alone.update(held)
        # last, so that a batch that ends its actors does not keep the others from being done
        self._left.extend([*held[1:], *held[:1]])
        self._begin()
        for other in self._actors:
            if other.inspected is None:  # it may have had nothing to do
                self._request(other)

    def _names(self, start: int) -> str:
        """The images of a batch, for a message."""
        stop = min(start + self._recipe.batch_size, len(self._images))
        images = [(i, self._images[i]) for i in range(start, stop) if self._todo[i]]
        return listed((os.fspath(x) if isinstance(x, str | os.PathLike) else f"image {i}" for i, x in images), 32)


def lost(ray: Any) -> tuple[type[Exception], ...]:
    """Ray's errors after which a batch can be computed again: the actor, its node or the block are gone."""
    errors = ray.exceptions
    return (
        errors.RayActorError,
        errors.WorkerCrashedError,
        errors.NodeDiedError,
        errors.OutOfMemoryError,
        errors.ObjectLostError,
    )


@contextlib.contextmanager
def cluster_errors(are_lost_too: bool = False) -> Iterator[None]:
    """Turn Ray's errors into a FeatxError of one line, except those of `lost` by default."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        if isinstance(error, lost(ray)) and not are_lost_too:
            raise
        raise FeatxError(f"the Ray cluster failed: {type(error).__name__}: {reason_of(error)}; {KEPT}") from error


def reason_of(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
