"""One extraction as several stores, each of a contiguous part of the images: one after the other, or on a cluster.

On a cluster each store is written on the node that computes it, so that no rows travel to this machine.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from featx.backbones import Backbone
from featx.errors import FeatxError, Parameter, StoreError, as_path
from featx.extraction import plan, portable, portable_image, warn_of_failures
from featx.forward import release
from featx.images import Collection, collect
from featx.progress import Clock, Progress, preparing, shown
from featx.scale.cluster import connected, nodes_for, resources_of
from featx.scale.executor import LOOK_SECONDS, RayExecutor, cluster_errors, lost, reason_of, refuse_other_nodes, sent
from featx.scale.inspection import pickled_sample, processor, refuse_other_gpu, refuse_seen_here, unseen_images
from featx.store import KEPT, FeatureStore, Recipe, discard, refuse_unwritable_store, unfinished, warn_of_rows

_RETRIES = 3  # of a shard whose process or node ends; it goes on where it was


def extract_shards(
    source: object,
    output: str | os.PathLike,
    backbone: str | nn.Module | Backbone | None = None,
    layers: str | Sequence[str] | None = None,
    *,
    shards: int,
    executor: RayExecutor | None = None,
    like: FeatureStore | str | os.PathLike | None = None,
    labels: Sequence[object] | np.ndarray | str | None = None,
    ids: Sequence[str] | None = None,
    target: str = "class",
    path_column: str = "path",
    progress: bool | Callable[[Progress], None] = True,
    **options: Any,
) -> list[FeatureStore]:
    """Extract images into several stores, which `featx.merge` joins.

    Each store holds a contiguous part of the images, in order, and all have one recipe. The merged store has the rows
    that `extract` would have written to one file. A call that was interrupted goes on when it is repeated.

    Parameters
    ----------
    source, backbone, layers, labels, ids, target, path_column, like, progress, **options : as in `featx.extract`
    output : path
        "photos.h5" stands for "photos-00000-of-00004.h5" and so on.
    shards : int
        Number of stores; each has at least one batch of images.
    executor : RayExecutor, optional
        Extract each store by a task of its own on the cluster, which writes it on the node that it runs on. The
        output's folder must be shared by all nodes. By default the stores are made one after the other, here.

    Returns
    -------
    list of FeatureStore

    Raises
    ------
    FeatxError
        As in `extract`; or there are fewer batches than shards.

    Examples
    --------
    >>> stores = featx.extract_shards("photos/", "photos.h5", "resnet50", shards=4)    # doctest: +SKIP
    >>> featx.merge(stores, "photos.h5")    # doctest: +SKIP
    """
    output = as_path("output", output, StoreError)
    paths = shard_paths(output, shards)
    if executor is not None and not isinstance(executor, RayExecutor):
        raise FeatxError(Parameter("executor"), f" is a featx.RayExecutor for shards; got {executor!r}")
    refuse_unwritable_store(paths[0])
    if options.pop("discard", False):  # now, and not again when a task is repeated
        for path in paths:
            discard(path)
    run: dict[str, Any] = {name: options[name] for name in ("workers", "replace") if name in options}
    with shown(progress) as show:
        images = collect(source, labels, ids=ids, target=target, path_column=path_column, on_phase=preparing(show))
        begun = _begun(paths)
        if begun is None:  # nobody writes the file of this plan, whose recipe is that of a single store
            first = plan(images, _single(paths[0]), backbone, layers, like=like, progress=show, **options)
        else:
            number, recipe = begun
            part = _parts(images, shards, recipe.batch_size)[number]
            example = recipe if like is None else like
            first = plan(part, paths[number], backbone, layers, like=example, progress=show, **options)
        parts = _parts(images, shards, first.recipe.batch_size)
        work = [_Shard(part, path.absolute(), first.recipe, run) for part, path in zip(parts, paths, strict=True)]
        if executor is not None:
            stores = _on_cluster(executor, work, first.backbone, images, show)
            for store in stores:
                store.backbone = first.backbone if first.backbone.is_own else None
            return stores
    return [shard.extract(first.backbone, progress) for shard in work]


def shard_paths(output: Path, shards: int) -> list[Path]:
    """The files of the shards of an output: "photos-00000-of-00004.h5" ... for "photos.h5"."""
    if not isinstance(shards, int) or isinstance(shards, bool) or not 1 <= shards < 100_000:
        raise FeatxError(Parameter("shards"), f" is a whole number of stores, 1 or more; got {shards!r}")
    return [output.with_name(f"{output.stem}-{i:05}-of-{shards:05}{output.suffix}") for i in range(shards)]


def _single(path: Path) -> Path:
    """A file beside the shards that no shard has."""
    return path.with_name(f".{path.name}.all{path.suffix}")


def _begun(paths: Sequence[Path]) -> tuple[int, Recipe] | None:
    """The number and the recipe of the first shard that is finished or unfinished, if there is one."""
    for number, path in enumerate(paths):
        if path.exists():
            return number, FeatureStore(path).recipe
        if (begun := unfinished(path)) is not None:
            return number, begun.recipe
    return None


def _parts(images: Collection, shards: int, batch_size: int) -> list[Collection]:
    """Contiguous parts of whole batches, so that each batch has the images that it has in a single store."""
    n = len(images.ids)
    n_batches = -(-n // batch_size)
    if n_batches < shards:
        raise FeatxError(
            Parameter("shards", shards),
            f" needs as many batches of {batch_size:,} images; {n:,} images are {n_batches:,}",
        )
    ends = [min(n, batch_size * (n_batches * number // shards)) for number in range(shards + 1)]
    origin = images.origin.absolute() if isinstance(images.origin, Path) else images.origin
    return [
        Collection(
            images.images[start:stop],
            images.ids[start:stop],
            None if images.y is None else images.y[start:stop],
            {name: values[start:stop] for name, values in images.columns.items()},
            origin,
        )
        for start, stop in pairwise(ends)
    ]


@dataclass(frozen=True)
class _Shard:
    """One store to make.

    options : workers and replace, as far as they were passed
    """

    images: Collection
    output: Path
    recipe: Recipe
    options: dict[str, Any]

    def extract(self, backbone: Backbone, progress: bool | Callable[[Progress], None]) -> FeatureStore:
        """Make the store, in this process."""
        device = self.recipe.device
        with shown(progress) as show:
            todo = plan(
                self.images, self.output, backbone, like=self.recipe, device=device, progress=show, **self.options
            )
            return todo.run(show)

    def portable(self) -> _Shard:
        """The shard with images that can be sent to another process."""
        return replace(self, images=replace(self.images, images=[portable_image(x) for x in self.images.images]))


def _on_cluster(
    executor: RayExecutor,
    shards: Sequence[_Shard],
    backbone: Backbone,
    images: Collection,
    show: Callable[[Progress], None],
) -> list[FeatureStore]:
    """Make each store by a task on a cluster."""
    recipe, folder = shards[0].recipe, shards[0].output.parent
    network = sent(backbone)
    release()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".featx-") as beside, connected(executor.address) as ray:
        nodes = refuse_other_nodes(ray, recipe, pickled_sample(images.images, Path(beside.name)))
        workers = min(node.n_cpus for node in nodes)
        task = ray.remote(_extracted).options(**resources_of(recipe), max_retries=_RETRIES)
        common = (ray.put(network), processor().get("cuda"))

        def begin(shard: _Shard, are_missing: bool = False) -> Any:
            options = {"workers": workers} | {name: x for name, x in shard.options.items() if x != "auto"}
            return task.remote(replace(shard.portable(), options=options), *common, are_missing)

        left = {begin(shard): number for number, shard in enumerate(shards)}
        stores: dict[int, FeatureStore] = {}
        bounds = np.cumsum([0, *(len(shard.images.ids) for shard in shards)]).tolist()
        clock = Clock(todo := np.ones(len(images.ids), bool), show)
        try:
            clock.tick(0)
            while left:
                with cluster_errors():
                    ready, _ = ray.wait(list(left), timeout=LOOK_SECONDS)
                if not ready:
                    nodes_for(ray, recipe)  # raises if no node is left
                    continue
                number = left.pop(ready[0])
                shard = shards[number]
                try:
                    with cluster_errors():
                        result = ray.get(ready[0])
                except lost(ray) as error:
                    raise FeatxError(
                        f"{1 + _RETRIES} processes of the Ray cluster ended while they made {shard.output}: "
                        f"{reason_of(error)}; {KEPT}"
                    ) from error
                if isinstance(result, BaseException):
                    raise result
                if result is not None:  # a node that does not see some images
                    refuse_seen_here(result[1], result[0])
                    left[begin(shard, are_missing=True)] = number
                    continue
                if not shard.output.exists():
                    raise StoreError(f"a node of the Ray cluster has written {shard.output}, which is not here")
                stores[number] = FeatureStore(shard.output)
                todo[bounds[number] : bounds[number + 1]] = False
                clock.tick(sum(len(store.failures) for store in stores.values()))
        finally:
            for reference in left:
                with contextlib.suppress(Exception):  # it has ended already, or the cluster has
                    ray.cancel(reference, force=True)
    for number, shard in enumerate(shards):
        warn_of_failures(stores[number], len(shard.images.ids))
        warn_of_rows(stores[number])
    return [stores[number] for number in range(len(shards))]


def _extracted(
    shard: _Shard, network: bytes, gpu: str | None, are_missing: bool
) -> tuple[str, list[Any]] | BaseException | None:
    """Make a store on a node.

    Parameters
    ----------
    gpu : name of the driver's GPU
    are_missing : whether the images that this node does not see are known to be missing

    Returns
    -------
    The node and the images that it does not see, if nothing was done for that reason; or an error.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()[:8]
    try:
        if shard.recipe.device == "cuda":
            refuse_other_gpu(processor().get("cuda"), gpu, node)
        if not are_missing and (unseen := unseen_images(shard.images.images)):
            return node, unseen
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the driver warns
            shard.extract(pickle.loads(network), progress=False)
        return None
    except (Exception, SystemExit) as error:
        return portable(error, f"node {node}")
