"""The connection to a Ray cluster and its nodes: joined or started, and left as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from featx.errors import FeatxError, Parameter
from featx.store import Recipe

_log = logging.getLogger("featx")

AUTO, LOCAL = "auto", "local"
_REACH_SECONDS = 10.0
_ADDRESS = "RAY_ADDRESS"  # environment variable that names Ray's cluster
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}  # of a cluster that featx starts


@dataclass(frozen=True)
class Node:
    """A node that has the resources for at least one actor.

    n_actors : number of actors that its resources suffice for
    n_cpus : cores for each of them
    """

    id: str
    name: str
    n_actors: int
    n_cpus: int


def refuse_missing_ray() -> None:
    """Raise FeatxError if Ray is not installed; does not import it."""
    if find_spec("ray") is None:
        raise FeatxError("extraction on a cluster needs Ray, which is not installed: pip install 'featx[ray]'")


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine; yields the module `ray`.

    A connection that was there before is used and kept. Otherwise it is closed at the end, which ends the actors and
    tasks of this process on the cluster, or the cluster that was started.

    Raises
    ------
    FeatxError
        Ray cannot be imported, the cluster cannot be joined, or this process is connected to another one.
    """
    try:
        import ray
    except ImportError as error:
        raise FeatxError(f"Ray is installed, but cannot be imported: {error}") from error

    if ray.is_initialized():
        current = ray.get_runtime_context().gcs_address
        if address not in (AUTO, current):
            raise FeatxError(f"this process is connected to the Ray cluster at {current} already; got {address!r}")
        yield ray
        return
    try:
        with _environment(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's, of its own coming versions
            _join(ray, address)
        with _quiet():
            yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log what Ray would print on stdout when a process of the cluster ends, whatever `log_to_driver` is.

    This is the only private name of Ray that featx uses; if it moves, Ray prints these messages.
    """
    from ray._private import worker

    printing: Any = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda data, *_, **__: _log.info("Ray: %s", " ".join(data["lines"]))
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


def _join(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    cluster = os.environ.get(_ADDRESS, AUTO) if address == AUTO else address
    if cluster != LOCAL:
        try:
            if cluster != AUTO:
                _reach(cluster)
            ray.init(address=cluster, **options)
            return
        except Exception as error:  # OSError, ConnectionError, RuntimeError, ValueError
            if cluster != AUTO or not isinstance(error, ConnectionError):
                reason = " ".join(str(error).split()) or type(error).__name__  # lines: versions, there and here
                token = "; if it has token authentication, set RAY_AUTH_MODE=token" * (type(error) is ConnectionError)
                raise FeatxError(f"cannot join the Ray cluster at {cluster}: {reason}{token}") from error
    with _interrupted_afterwards():
        ray.init(address=LOCAL, include_dashboard=False, **options)


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of "[ray://]HOST:PORT"; raises ValueError if it is something else."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address is HOST:PORT")
    return host.strip("[]"), int(port)


def _reach(address: str) -> None:
    """Raise OSError or ValueError unless something listens at the address: Ray would try for minutes."""
    socket.create_connection(host_and_port(address), _REACH_SECONDS).close()


@contextlib.contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Delay Ctrl-C until the end: of a cluster that is half started, some processes would stay for a minute."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Ray's settings, which the processes inherit that it starts; the user's own have precedence."""
    added = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def resources_of(recipe: Recipe) -> dict[str, int]:
    """What Ray reserves for an actor that computes by a recipe: a GPU and a core, or the cores of its threads."""
    return {"num_gpus": 1, "num_cpus": 1} if recipe.device == "cuda" else {"num_cpus": recipe.threads}


def nodes_for(ray: Any, recipe: Recipe) -> list[Node]:
    """The nodes of the cluster that actors of a recipe can run on.

    Raises
    ------
    FeatxError
        There is none.
    """
    kind, amount = ("GPU", 1) if recipe.device == "cuda" else ("CPU", recipe.threads)
    nodes = []
    for node in ray.nodes():
        resources = node["Resources"]
        n_actors = int(resources.get(kind, 0) // amount) if node["Alive"] else 0
        if n_actors:
            name = f"{node['NodeName']} ({node['NodeID'][:8]})"
            nodes.append(Node(node["NodeID"], name, n_actors, max(1, int(resources.get("CPU", 1) // n_actors))))
    if nodes:
        return nodes
    if recipe.device == "cuda":
        raise FeatxError("no node of the Ray cluster has a GPU; add one, or use ", Parameter("device", "cpu"))
    raise FeatxError(
        f"no node of the Ray cluster has {recipe.threads} cores, the number of threads of the forward pass, which "
        "decides the last digits of the rows; add such a node, or set OMP_NUM_THREADS to fewer before a new run"
    )


def on_node(node: Node) -> dict[str, Any]:
    """Ray's options for a small task on a node, which runs whatever else runs there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False)}
