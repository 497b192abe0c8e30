"""timm's convention for heads: `forward_head(features, pre_logits=True)` returns the classifier's input.

This module intercepts that call while a network runs; `graphs.py` and `hooks.py` turn the result into a layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

_PRE_LOGITS = "pre_logits"


@contextmanager
def watched_head(network: nn.Module, watch: Callable[..., Any]) -> Iterator[None]:
    """Context in which a network that follows the convention calls `watch(head, pre_logits)` as its head.

    Both arguments are functions without parameters: the network's own `forward_head`, and the same with
    `pre_logits=True`. `watch` must return the result of `head`.
    """
    own: Any = getattr(network, "forward_head", None)
    if not callable(own) or _PRE_LOGITS not in inspect.signature(own).parameters:
        yield
        return

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return watch(partial(own, *args, **kwargs), partial(own, *args, **kwargs | {_PRE_LOGITS: True}))

    attributes = vars(network)
    before = attributes.copy()
    attributes["forward_head"] = replacement
    try:
        yield
    finally:
        del attributes["forward_head"]
        if "forward_head" in before:  # the user has set it on this object only
            attributes["forward_head"] = own


def unused_name(names: Collection[str]) -> str:
    """A name for the result of `pre_logits=True` that no layer has."""
    name = _PRE_LOGITS
    while name in names:
        name += "_"
    return name
