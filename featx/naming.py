"""Public classes and functions carry the module from which users import them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_type_hints


def publish(public: Iterable[Any], module: str) -> None:
    """Set `__module__` of classes and functions.

    Saved models name classes by it, so they do not depend on the file in which a class is defined. A class's
    annotations are evaluated before, in the file's own module; afterwards `typing.get_type_hints` would look their
    names up in `module`.
    """
    for each in public:
        if isinstance(each, type):
            hints = get_type_hints(each, include_extras=True)
            each.__annotations__ = {name: hints[name] for name in vars(each).get("__annotations__", {})}
        each.__module__ = module
