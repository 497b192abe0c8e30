"""Products of matrices in float32 and float64, in all their digits, and eigenvectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from featx._torch import linear_pointwise
from featx.solvers.threads import threads_for

_ONEDNN_FROM = 2**22  # multiplications


def product(A: Tensor, B: Tensor) -> Tensor:
    """A B^T, (m, d), (n, d) -> (m, n).

    Float32 on a CPU is oneDNN's: torch leaves these products to MKL, which takes twice the time on AMD's processors.
    oneDNN is only quick where B has no gaps, and a small product is done before oneDNN has begun.
    """
    suited = A.numel() * len(B) >= _ONEDNN_FROM and (B.is_contiguous() or B.T.is_contiguous())
    if A.dtype == torch.float32 and A.device.type == "cpu" and suited:
        by_onednn = linear_pointwise(A, B)
        return A @ B.T if by_onednn is None else by_onednn
    return A @ B.T


def eigenvectors(M: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix (n, n).

    LAPACK's threads wait for each other several times a row. Up to n = 1,600 two of them gain a quarter on a machine
    without other work, and beside other work take 5 to 10 times as long as one.
    """
    with threads_for(len(M) ** 3 / 8):
        return torch.linalg.eigh(M)


class _FullPrecision:
    """How many are in there, and what was allowed before the first of them came."""

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0
        self.before: list[str] = []
        self.kinds = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Float32 is float32 in here, though TF32 or bfloat16 be allowed in its place (`fp32_precision`)."""
        with self.lock:
            if self.inside == 0:
                self.before = [kind.fp32_precision for kind in self.kinds]
                for kind in self.kinds:
                    kind.fp32_precision = "ieee"
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                for kind, before in zip(self.kinds, self.before, strict=True) if self.inside == 0 else ():
                    kind.fp32_precision = "none"
                    if kind.fp32_precision != before:  # else it is that of all kinds, and shall follow it
                        kind.fp32_precision = before


full_precision = _FullPrecision()
