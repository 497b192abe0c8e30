"""timm's convention for the head of a network: `forward_head(features, pre_logits=True)` gives its classifier's input.

A network in; its head watched while it runs. How the result becomes a layer is for `graphs.py` and `hooks.py`.
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
    """Within, the network calls `watch(head, pre_logits)` for its head, if that follows the convention.

    Both are functions without arguments: the network's own `forward_head`, and the same with `pre_logits=True`. `watch`
    returns the first's result.
    """
    own: Any = getattr(network, "forward_head", None)
    if not callable(own) or _PRE_LOGITS not in inspect.signature(own).parameters:
        yield
        return

    def instead(*args: Any, **kwargs: Any) -> Any:
        return watch(partial(own, *args, **kwargs), partial(own, *args, **kwargs | {_PRE_LOGITS: True}))

    attributes = vars(network)
    before = attributes.copy()
    attributes["forward_head"] = instead
    try:
        yield
    finally:
        del attributes["forward_head"]
        if "forward_head" in before:  # the user's own, of this object alone
            attributes["forward_head"] = own


def unused_name(names: Collection[str]) -> str:
    """A name for the result of `pre_logits=True` where no other layer gives it."""
    name = _PRE_LOGITS
    while name in names:
        name += "_"
    return name
