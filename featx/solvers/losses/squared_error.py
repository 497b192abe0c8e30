"""The squared error, which is minimised in closed form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SquaredError:
    """l = sum_c (z_c - y_c)^2 / 2; minimised in closed form by `featx.solvers.ridge`."""
