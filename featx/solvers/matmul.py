"""Matrix products in full float32 or float64 precision, and eigenvectors."""

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
    """A B^T (m, n), of (m, d) and (n, d).

    On a CPU, float32 products are computed by oneDNN: torch would use MKL, which takes twice the time on AMD's
    processors. oneDNN is fast only if B is contiguous, and its overhead exceeds the time of a small product.
    """
    suited = A.numel() * len(B) >= _ONEDNN_FROM and (B.is_contiguous() or B.T.is_contiguous())
    if A.dtype == torch.float32 and A.device.type == "cpu" and suited:
        by_onednn = linear_pointwise(A, B)
        return A @ B.T if by_onednn is None else by_onednn
    return A @ B.T


def eigenvectors(M: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix (n, n).

    LAPACK's threads synchronise several times for each row. Up to n = 1,600, two of them save a quarter of the time on
    an idle machine, but take 5 to 10 times as long as one on a busy machine.
    """
    with threads_for(len(M) ** 3 / 8):
        return torch.linalg.eigh(M)


class _FullPrecision:
    """A context in which float32 products are not computed in TF32 or bfloat16, even if `fp32_precision` allows it.

    The setting is the process's, and several threads may be in the context: the first changes it, and the last one
    restores it.
    """

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0
        self.before: list[str] = []
        self.kinds = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]

    @contextmanager
    def __call__(self) -> Iterator[None]:
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
                    if kind.fp32_precision != before:  # else it was inherited from the global setting, and stays so
                        kind.fp32_precision = before


full_precision = _FullPrecision()
