"""A key for one and the same object, in place of its address."""

from __future__ import annotations

from typing import Any


class Same:
    """A hashable key of an object: equal only to keys of the same object, which it keeps alive."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.held is other.held

    def __hash__(self) -> int:
        return object.__hash__(self.held)
