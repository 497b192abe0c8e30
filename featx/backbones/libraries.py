"""torchvision and timm, imported without torch's compiler.

Importing torch._dynamo takes longer than importing torchvision and timm together, and only compiling needs it. Both
import it for one name each:

- torchvision.ops.roi_align: `from torch._dynamo.utils import is_compile_supported`. While torchvision is imported, a
  module stands in for torch._dynamo.utils; it has this function, which asks the real one when called. Any other name is
  looked up in the real module, so that another version of torchvision is slower to import, and no worse.
- timm.layers.typing: `torch.compiler.disable`, a decorator of methods in timm.models.naflexvit. While timm is imported,
  the decorator is applied when the method is first called.

Both are as they were afterwards. If neither library asks for these names any more, this module can go.
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

_UTILS = "torch._dynamo.utils"


def import_without_compiler(name: str) -> ModuleType:
    """Import torchvision or timm; raises ImportError where there is none."""
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


import_without_compiler("torchvision")  # before another module of this package imports it
