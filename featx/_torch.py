"""Every private name of torch and torchvision that featx uses, with what breaks if it is renamed or changed.

- `FakeTensorMode`: shapes of layers without computing; `hooks` could not describe networks that cannot be traced.
- `bound_sympy`: the range of a dimension of an exported program; programs with dynamic shapes could not be read.
- `torch._dynamo.config`: the number of compiled networks in a process; the ninth would run uncompiled.
- `torch.ops.mkldnn._linear_pointwise`: float32 products by oneDNN on a CPU; they would take twice the time on AMD's.
- `torch._dynamo.utils`, see below: importing featx's backbones would take about twice the time.

Importing torch._dynamo takes longer than importing torchvision and timm together, and only compiling needs it. Both
import it for one name each:

- torchvision.ops.roi_align: `from torch._dynamo.utils import is_compile_supported`. While torchvision is imported, a
  module replaces torch._dynamo.utils; it has this function, which calls the real one. Any other name is looked up in
  the real module, so another version of torchvision would take longer to import, and work.
- timm.layers.typing: `torch.compiler.disable`, a decorator of methods in timm.models.naflexvit. While timm is imported,
  the decorator is applied only when the method is first called.

Both names are restored after the import.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch.compiler
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["FakeTensorMode", "bound_sympy", "import_without_compiler", "linear_pointwise", "unlimited_compilations"]

_HAS_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_UTILS = "torch._dynamo.utils"


def bound_sympy(expression: Any, ranges: Any) -> Any:
    """The range of a symbolic dimension, with `lower` and `upper`."""
    from torch.utils._sympy.value_ranges import bound_sympy  # sympy takes half a second to import

    return bound_sympy(expression, ranges)


def unlimited_compilations() -> contextlib.AbstractContextManager:
    """A context in which compiled networks are not limited in number by torch."""
    return torch._dynamo.config.patch(recompile_limit=2**20, accumulated_recompile_limit=2**20)


def linear_pointwise(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor | None:
    """A B^T (m, n) by oneDNN, of float32 (m, d) and (n, d); None if this version of torch cannot compute it."""
    return torch.ops.mkldnn._linear_pointwise(A, B, None, "none", [], "") if _HAS_LINEAR else None


def import_without_compiler(name: str) -> ModuleType:
    """Import torchvision or timm; raises ImportError if it is not installed."""
    with _stand_in(), _late_decorator():
        return importlib.import_module(name)


@contextlib.contextmanager
def _stand_in() -> Iterator[None]:
    if _UTILS in sys.modules:
        yield
        return
    stand_in = ModuleType(_UTILS)

    def real(name: str) -> Any:
        if name.startswith("__"):  # `inspect` looks at all modules
            raise AttributeError(name)
        if sys.modules.get(_UTILS) is stand_in:
            del sys.modules[_UTILS]
        return getattr(importlib.import_module(_UTILS), name)

    def is_compile_supported(device_type: str) -> bool:
        return real("is_compile_supported")(device_type)

    vars(stand_in).update(__getattr__=real, is_compile_supported=is_compile_supported)
    sys.modules[_UTILS] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_UTILS) is stand_in:
            del sys.modules[_UTILS]


@contextlib.contextmanager
def _late_decorator() -> Iterator[None]:
    if "torch._dynamo" in sys.modules:
        yield
        return
    disable = torch.compiler.disable

    def late(fn: Callable | None = None, *args: Any, **options: Any) -> Callable:
        if fn is None:
            return functools.partial(late, **options)
        if not inspect.isfunction(fn):  # a class or a module is changed in place
            return disable(fn, *args, **options)
        decorated = functools.cache(lambda: disable(fn, *args, **options))

        @functools.wraps(fn)
        def call(*given: Any, **named: Any) -> Any:
            return decorated()(*given, **named)

        return call

    torch.compiler.disable = late
    try:
        yield
    finally:
        torch.compiler.disable = disable
