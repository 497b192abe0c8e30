"""Imports torchvision without torch's compiler, before another module of this package imports it."""

from __future__ import annotations

from featx._torch import import_without_compiler

import_without_compiler("torchvision")
