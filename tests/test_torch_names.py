"""The private names of torch and torchvision are there, and nowhere but in `featx/_torch.py`."""

from __future__ import annotations

import re
from pathlib import Path

import sympy
import torch
from torch.utils._sympy.value_ranges import ValueRanges

import featx
from featx import _torch


def test_every_private_name_of_torch_is_there():
    size = sympy.Symbol("size", integer=True)
    bounds = _torch.bound_sympy(2 * size, {size: ValueRanges(1, 4)})
    assert (bounds.lower, bounds.upper) == (2, 8)
    limit = torch._dynamo.config.recompile_limit
    with _torch.unlimited_compilations():
        assert torch._dynamo.config.recompile_limit > 2**16 > limit
    with _torch.FakeTensorMode():
        assert torch.empty(3, 4).mT.shape == (4, 3)
    A = torch.arange(6.0).reshape(2, 3)
    product = _torch.linear_pointwise(A, A)
    assert product is None or torch.equal(product, A @ A.T)
    assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)


def test_no_other_file_uses_one():
    package = Path(featx.__file__).parent
    private = re.compile(r"\b(torch|torchvision)(\.\w+)*\._[a-z]")
    users = {file.name for file in package.rglob("*.py") if private.search(file.read_text())}
    assert users == {"_torch.py"}
