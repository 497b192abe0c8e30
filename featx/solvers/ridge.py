"""Squared errors, solved in closed form, with the objective and gradient norm of what is returned.

    min_{W, b}  sum_i s_i |y_i - z_i|^2 / 2 + sum_c l2_c/2 |w_c|^2,    z_i = ((x_i - shift) / scale) W + b

X is read in blocks that fit in the budget, two or three times for all problems together. All computations are in
float64, in which the products of float32 numbers are exact. Products rounded to float32 would lose every direction
shorter than 3e-4 of the longest one, and with a small penalty the rounding error would be divided by nearly 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featx.solvers.problems import FREE, Problem, Solution, Status
from featx.solvers.squares import Minimiser, Rows, solve_squares
from featx.solvers.threads import threads_for


def solve_ridge(
    X: np.ndarray, Y: np.ndarray, problems: Sequence[Problem], device: torch.device, budget_bytes: int
) -> list[Solution]:
    """As `featx.solvers.solve`, for squared errors and targets Y (n, k)."""
    (n, d), k = X.shape, Y.shape[1]
    with threads_for(n * (d + k) * min(n, d)):  # of a product, about
        rows = Rows(X, Y, problems, device, budget_bytes)
        return _certified(rows, solve_squares(rows))


def _certified(rows: Rows, minimisers: list[Minimiser]) -> list[Solution]:
    """Round to X's type, then evaluate the objectives and gradients of the rounded solutions in one pass over X."""
    like = torch.from_numpy(np.empty(0, rows.X.dtype))
    rounded = [Minimiser(one.W.to(like).to(one.W), one.level.to(like).to(one.W), one.reference) for one in minimisers]
    slopes, levels = [], []
    for one, problem in zip(rounded, rows.problems, strict=True):
        scale, *added = rows.columns(problem)
        slopes.append(one.W[:, : rows.d] / scale)
        levels.append(one.level if problem.intercept == FREE else one.W @ torch.cat(added) - rows.middle)
    losses, G, totals = _derivatives(rows, torch.stack(slopes), torch.stack(levels))

    solutions = []
    for number, (one, problem) in enumerate(zip(rounded, rows.problems, strict=True)):
        scale, offset, constant = rows.columns(problem)
        l2, coef = rows.penalties(number)[:, None], one.W[:, : rows.d]
        gradient = torch.outer(totals[number], torch.cat([offset, constant])) + l2 * one.W
        gradient[:, : rows.d] += G[number] / scale
        intercept = one.W[:, rows.d :] @ constant
        if problem.intercept == FREE:
            gradient = torch.cat([gradient, totals[number][:, None]], 1)
            away = rows.centre if problem.shift is None else rows.centre - problem.shift
            intercept = one.level + rows.middle - coef @ (rows.tensor(away) / scale)
        solutions.append(
            Solution(
                coef=coef.cpu().numpy().astype(rows.X.dtype),
                intercept=intercept.cpu().numpy().astype(rows.X.dtype),
                classes=np.arange(rows.k),
                objective=float(losses[number] + (l2 * one.W.square()).sum() / 2),
                gradient_norm=float(gradient.norm()) / one.reference if one.reference else 0.0,
                n_iter=1,
                status=Status.CONVERGED,
            )
        )
    return solutions


def _derivatives(rows: Rows, slopes: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of losses (B,) with scores (x - centre) @ slopes + levels, and their derivatives (B, k, d) and (B, k)."""
    B, k, d = slopes.shape
    losses, G, totals = slopes.new_zeros(B), torch.zeros_like(slopes), torch.zeros_like(levels)
    for block in rows.blocks(rows.n, d + 3 * B * k):
        x = rows.block(block)
        errors = (x @ slopes.flatten(0, 1).T).view(-1, B, k) + levels - rows.Y[block, None]  # (m, B, k)
        weighted = errors * rows.weights[rows.fold, block].T[..., None]
        losses += (weighted * errors).sum((0, 2)) / 2
        G += (weighted.flatten(1).T @ x).view_as(G)
        totals += weighted.sum(0)
    return losses, G, totals
