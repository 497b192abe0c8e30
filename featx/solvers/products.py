"""Products of matrices in float32 and float64, in all their digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def product(A: Tensor, B: Tensor) -> Tensor:
    """A B^T, (m, d), (n, d) -> (m, n).

    Float32 on a CPU is oneDNN's: torch leaves these products to MKL, which takes twice the time on AMD's processors.
    oneDNN is only quick where B has no gaps.
    """
    dense = B.is_contiguous() or B.T.is_contiguous()
    if A.dtype == torch.float32 and A.device.type == "cpu" and dense and _ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(A, B, None, "none", [], "")
    return A @ B.T


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 is float32 in here, though TF32 or bfloat16 be allowed in its place (`fp32_precision`)."""
    kinds = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision
