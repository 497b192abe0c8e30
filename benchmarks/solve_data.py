"""What benchmarks/solve.py solves: its cells, and float32 features of a realistic spectrum for them. Seeded.

The figures in here are those of the bundled efficientnet_lite0 on 2,500 to 10,000 training images of Fashion-MNIST.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
SLOW_SECONDS = 60  # what takes longer runs once
_BLOCK = 2**27  # elements of a block of rows

# eigenvalues of the centred columns' second moments, by rank
_RANKS = (1, 2, 11, 101, 501, 1001, 1280)
_EIGENVALUES = (18, 9.5, 2.2, 0.166, 0.021, 0.0034, 4.6e-7)
# standard deviations of the columns, by quantile
_QUANTILES = (0, 0.01, 0.1, 0.5, 0.9, 0.99, 1)
_DEVIATIONS = (8.6e-5, 7.2e-3, 0.045, 0.23, 0.54, 0.79, 1.2)


@dataclass(frozen=True)
class Cell:
    """n rows, d columns, k classes; a problem for each C and fold (1: all rows)."""

    name: str
    n: int
    d: int
    k: int
    C: tuple[float, ...]
    folds: int
    max_iter: int = 100
    budget_bytes: int | None = None

    def scaled(self, scale: float) -> Cell:
        k = max(10, int(self.k * min(1, scale)))
        budget = self.budget_bytes and int(self.budget_bytes * scale**2)
        return replace(
            self, n=max(10 * k, int(self.n * scale)), d=max(16, int(self.d * scale)), k=k, budget_bytes=budget
        )

    @property
    def problems(self) -> int:
        return len(self.C) * self.folds

    @property
    def flop(self) -> float:
        """Of the two products of one problem's pass."""
        return 4.0 * self.n * min(self.n, self.d) * self.k


def grid(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(np.logspace(first, last, count).tolist())


CELLS = {
    cell.name: cell
    for cell in (
        Cell("A", 10_000, 1_280, 10, grid(-5, 2, 8), 5),
        Cell("A-SVC", 10_000, 1_280, 10, grid(-5, -2, 4), 5),
        Cell("B", 2_000, 20_000, 10, grid(-5, 2, 8), 5),
        Cell("C", 100_000, 2_048, 100, grid(-4, 0, 3), 3, budget_bytes=2 * 10**9),
        Cell("D", 1_281_167, 768, 1_000, grid(-6, 5, 45), 1, max_iter=1000),
    )
}


def features(cell: Cell, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """X and y of A, A-SVC or B; a folder is of Fashion-MNIST's files."""
    if cell.name == "B":
        X, y = np.empty((cell.n, cell.d), np.float32), labels(cell.n, cell.k)
        power_law(X, y, cell.k, torch.device("cpu"))
        return X, y
    if folder is None:
        return stand_in(cell.n, cell.d, cell.k)
    X, y = fashion(folder, cell.n)
    return np.ascontiguousarray(X[:, : cell.d]), y


def labels(n: int, k: int) -> np.ndarray:
    """(n,) k classes of equal size, in no order."""
    return np.random.default_rng(0).permutation(np.arange(n) % k)


def fashion(folder: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 1280) features of the first training images, and their labels; computed once and kept in results/."""
    import featx

    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:n]
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8)[:n].astype(np.int64)
    kept = RESULTS / f"efficientnet_lite0-penultimate-{len(images)}-{zlib.crc32(images.tobytes()):08x}.npy"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as scratch:
            store = featx.extract(images, Path(scratch) / "rows.h5", "bundled:efficientnet_lite0", "penultimate")
            np.save(kept, np.asarray(store["penultimate"]))
    return np.load(kept), y


def stand_in(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) like features of `fashion`: non-negative, heavy-tailed, with their spectrum, mean and sizes of columns.

    Class means take the share of the leading directions that they take there, and a linear probe is about as good. The
    spectrum is set and negative values are clipped in turns, which settles at once.
    """
    rng, y = np.random.default_rng(1), labels(n, k)
    rank = np.arange(1, d + 1)
    eigenvalues = np.exp(np.interp(np.log(1 + (rank - 1) * 1279 / (d - 1)), np.log(_RANKS), np.log(_EIGENVALUES)))
    share = np.where(rank < k, 0.9 * rank**-0.6, 0.08 * (k / rank) ** 1.5)
    centres = rng.normal(size=(k, d))
    centres = (centres - centres.mean(0)) / centres.std(0)
    noise = rng.normal(size=(n, d)) * np.exp(0.1 * rng.normal(size=(n, 1)))
    X = np.sqrt(share) * centres[y] + np.sqrt(1 - share) * noise
    X = (X * np.sqrt(eigenvalues)) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    X = np.maximum(X / X.std(0) + 0.5, 0)
    deviations = np.exp(np.interp(np.linspace(0, 1, d), _QUANTILES, np.log(_DEVIATIONS)))
    X *= rng.permutation(deviations) / X.std(0)
    for _ in range(6):
        mean = X.mean(0)
        X -= mean
        found, Q = np.linalg.eigh(X.T @ X / n)
        X = np.maximum(X @ (Q * np.sqrt(eigenvalues[::-1] / found.clip(1e-30))) @ Q.T + mean, 0)
    return X.astype(np.float32), y


def power_law(out: np.ndarray, y: np.ndarray, k: int, device: torch.device) -> None:
    """Fill `out` (n, d) block by block: eigenvalues ~ 1 / rank, columns of variance 0.1 and as much squared mean.

    Class means lie in the k leading directions, so far apart that the best linear model is right about 4 times in 5.
    """
    n, d = out.shape
    r = min(n, d)
    generator = torch.Generator(device).manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    basis = torch.linalg.qr(normal(d, r))[0].T  # (r, d)
    spectrum = 1 / torch.arange(1, r + 1, device=device)
    basis = basis * (spectrum * 0.1 * d / spectrum.sum()).sqrt()[:, None]
    leading = min(k, r)
    apart = (4 + 2.2 * np.log(k)) / leading  # variance of the class means, where that within a class is 1
    centres = normal(k, leading) * apart**0.5
    mean = normal(d) * 0.1**0.5
    rows = max(1, _BLOCK // d)
    for start in range(0, n, rows):
        classes = torch.from_numpy(y[start : start + rows]).to(device)
        latent = normal(len(classes), r) * torch.exp(0.1 * normal(len(classes), 1))
        latent[:, :leading] = (latent[:, :leading] + centres[classes]) / (1 + apart) ** 0.5
        out[start : start + rows] = torch.addmm(mean, latent, basis).cpu().numpy()
