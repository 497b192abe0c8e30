"""Compaction: a batch drops the problems that have ended.

A state is a dataclass of tensors whose first dimension is the problems, or of such dataclasses.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from torch import Tensor

State = TypeVar("State")


def take(state: State, which: Tensor) -> State:
    """The state of the problems `which` alone."""
    parts = (getattr(state, field.name) for field in fields(state))  # type: ignore[arg-type]
    taken: list[Any] = [part[which] if isinstance(part, Tensor) else take(part, which) for part in parts]
    return type(state)(*taken)
