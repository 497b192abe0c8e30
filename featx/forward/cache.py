"""The only cache of the process: backbones and networks used last, and the matrix computed last from images.

It is bounded: eight backbones, two networks made of them, one matrix of at most 64 MiB. Whoever has a backbone passes
it to `network_of`. Without one, the cached backbone of the recorded fingerprint serves, and if there is none the recipe
is resolved: so predictions that follow each other, or an extraction, build a network once.
"""

from __future__ import annotations

import gc
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields

import numpy as np
import torch

from featx.backbones import Backbone, Preprocessing, Tap, TappedNetwork, resolve_backbone
from featx.recipe import Recipe, rule_of
from featx.solvers import threads_for

_MAX_BACKBONES = 8
_MAX_NETWORKS = 2
_MAX_MATRIX_BYTES = 64 * 2**20

_backbones: OrderedDict[tuple[str, str], Backbone] = OrderedDict()  # by name and fingerprint
_networks: OrderedDict[str, tuple[Backbone, TappedNetwork]] = OrderedDict()
_matrices: dict[Hashable, np.ndarray] = {}  # one at most


def backbone_of(recipe: Recipe, backbone: Backbone | None = None) -> Backbone:
    """The backbone of a recipe: the one that is passed, a cached one, or what the recipe names.

    Raises
    ------
    BackboneError
        See `resolve_backbone`.
    """
    return resolve_backbone(recipe, backbone or _backbones.get((recipe.backbone, recipe.weights_sha256)))


def network_of(recipe: Recipe, place: torch.device, backbone: Backbone | None = None) -> TappedNetwork:
    """The network of a recipe on a device.

    Parameters
    ----------
    backbone : Backbone, optional
        The network is made of this one: two modules of one class with the same weights may compute different things.

    Raises
    ------
    BackboneError
        `backbone` is not the recorded one, or the recorded one cannot be had.
    """
    key = _key(recipe, place.type)
    cached, network = _networks.get(key, (None, None))
    if network is None or (backbone is not None and backbone is not cached):
        preprocessing = Preprocessing.from_dict(recipe.preprocessing)
        with threads_for(0):  # small work: beside other processes several threads would wait for each other
            known = backbone_of(recipe, backbone)
            taps = [Tap.from_dict(tap) for tap in recipe.taps.values()]
            network = TappedNetwork(known, taps, place, recipe.precision, recipe.engine, preprocessing)
        keep(recipe, place.type, known, network)
    _networks.move_to_end(key)
    return network


def keep(recipe: Recipe, device: str, backbone: Backbone, network: TappedNetwork) -> None:
    """Put a network and its backbone into the cache."""
    _networks[_key(recipe, device)] = backbone, network
    _backbones[recipe.backbone, recipe.weights_sha256] = backbone
    _backbones.move_to_end((recipe.backbone, recipe.weights_sha256))
    while len(_networks) > _MAX_NETWORKS:
        _networks.popitem(last=False)
    while len(_backbones) > _MAX_BACKBONES:
        _backbones.popitem(last=False)


def matrix_of(key: Hashable, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """A copy of the matrix computed last, if that had the same key; else it is computed."""
    if key not in _matrices:
        matrix = compute()
        if matrix.nbytes > _MAX_MATRIX_BYTES:
            return matrix
        _matrices.clear()
        _matrices[key] = matrix
    return _matrices[key].copy()


def release() -> None:
    """Drop the cached networks and free their GPU memory, which other processes may then use."""
    _networks.clear()
    gc.collect()
    torch.cuda.empty_cache()


def _key(recipe: Recipe, device: str) -> str:
    decides = [getattr(recipe, one.name) for one in fields(recipe) if rule_of(one.name).kind != "recorded"]
    return json.dumps([*decides, device])
