"""The only cache of the process: backbones and networks used last, and the matrix computed last from images.

It is bounded: eight backbones, two networks made of them, one matrix of at most 64 MiB. Predictions that follow each
other, or an extraction, build a network once. A backbone that was handed over (a module or a program of the user's)
belongs to whoever holds it: it is passed to `network_of`, and a recipe alone never finds it here. All functions may be
called from several threads; a thread waits for others only while a network is built.
"""

from __future__ import annotations

import gc
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields
from typing import TypeVar

import numpy as np
import torch

from featx.backbones import BUILDING, Backbone, Preprocessing, Tap, TappedNetwork, resolve_backbone
from featx.errors import BackboneError
from featx.recipe import Recipe, rule_of
from featx.solvers import threads_for

_MAX_BACKBONES = 8
_MAX_NETWORKS = 2
_MAX_MATRIX_BYTES = 64 * 2**20

_backbones: OrderedDict[tuple[str, str], Backbone] = OrderedDict()  # by name and fingerprint; none is the user's own
_networks: OrderedDict[tuple[Backbone, str], TappedNetwork] = OrderedDict()  # by `_key`
_matrices: OrderedDict[Hashable, np.ndarray] = OrderedDict()
_lock = threading.Lock()  # held for single reads and writes of these three

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


def backbone_of(recipe: Recipe, backbone: Backbone | None = None) -> Backbone:
    """The backbone of a recipe: the one that is passed, a cached one, or what the recipe names.

    Raises
    ------
    BackboneError
        See `resolve_backbone`.
    """
    if backbone is not None:
        if not isinstance(backbone, Backbone):
            raise BackboneError(f"the backbone of a recipe is a featx.Backbone; got {type(backbone).__name__}")
        return resolve_backbone(recipe, backbone)
    key = recipe.backbone, recipe.weights_sha256
    known = _cached(_backbones, key)
    if known is None:
        with BUILDING:  # another thread may have built it in the meantime
            known = resolve_backbone(recipe, _cached(_backbones, key))
            _keep(_backbones, key, known, _MAX_BACKBONES)
    return known


def network_of(recipe: Recipe, place: torch.device, backbone: Backbone | None = None) -> TappedNetwork:
    """The network of a recipe on a device.

    Parameters
    ----------
    backbone : Backbone, optional
        The network is made of this one: two modules of one class with the same weights may compute different things.

    Raises
    ------
    BackboneError
        `backbone` is not the recorded one, or the recorded one is not available.
    """
    with threads_for(0):  # small work: beside other processes several threads would wait for each other
        known = backbone_of(recipe, backbone)
        key = _key(known, recipe, place.type)
        network = _cached(_networks, key)
        if network is None:
            with BUILDING:
                network = _cached(_networks, key) or _built(known, recipe, place)
                keep(recipe, place.type, known, network)
    return network


def _built(backbone: Backbone, recipe: Recipe, place: torch.device) -> TappedNetwork:
    taps = [Tap.from_dict(tap) for tap in recipe.view_taps.values()]
    preprocessing = Preprocessing.from_dict(recipe.preprocessing)
    return TappedNetwork(backbone, taps, place, recipe.precision, recipe.engine, preprocessing)


def keep(recipe: Recipe, device: str, backbone: Backbone, network: TappedNetwork) -> None:
    """Put a network and its backbone into the cache."""
    _keep(_networks, _key(backbone, recipe, device), network, _MAX_NETWORKS)
    if not backbone.is_own:
        _keep(_backbones, (recipe.backbone, recipe.weights_sha256), backbone, _MAX_BACKBONES)


def matrix_of(key: Hashable, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """A copy of the matrix computed last, if that had the same key; else it is computed."""
    matrix = _cached(_matrices, key)
    if matrix is None:
        matrix = compute()
        if matrix.nbytes > _MAX_MATRIX_BYTES:
            return matrix
        _keep(_matrices, key, matrix, 1)
    return matrix.copy()


def release() -> None:
    """Drop the cached networks and free their GPU memory, which other processes may then use."""
    with _lock:
        _networks.clear()
    gc.collect()
    torch.cuda.empty_cache()


def _cached(entries: OrderedDict[_Key, _Value], key: _Key) -> _Value | None:
    """The entry, which becomes the one used last."""
    with _lock:
        if key in entries:
            entries.move_to_end(key)
        return entries.get(key)


def _keep(entries: OrderedDict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Add an entry; the ones that were used least recently make room."""
    with _lock:
        entries[key] = value
        entries.move_to_end(key)
        while len(entries) > most:
            entries.popitem(last=False)


def _key(backbone: Backbone, recipe: Recipe, device: str) -> tuple[Backbone, str]:
    decides = [getattr(recipe, one.name) for one in fields(recipe) if rule_of(one.name).kind != "recorded"]
    return backbone, json.dumps([*decides, device])
