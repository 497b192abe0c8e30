"""The losses: their values are the formulas', their derivatives numerical ones, and they hold at the ends."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor
from torch.autograd import gradcheck

from featx.solvers import Loss
from featx.solvers.losses.base import Sums

B, N = 3, 11


@dataclass(frozen=True)
class Case:
    """A loss with k columns of scores."""

    loss: Loss
    k: int


SOFTMAX, BINARY, HINGE = Case(Loss.LOGISTIC, 4), Case(Loss.LOGISTIC, 1), Case(Loss.SQUARED_HINGE, 1)
CASES = pytest.mark.parametrize("case", [SOFTMAX, BINARY, HINGE], ids=["softmax", "binary", "hinge"])
COLUMNS = pytest.mark.parametrize("case", [BINARY, HINGE], ids=["binary", "hinge"])


def drawn(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, classes, row weights of which some are 0, and the class of the one column."""
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(B, case.k, N, generator=generator, dtype=torch.float64)
    y = torch.arange(N) % 4
    s = torch.rand(B, N, generator=generator, dtype=torch.float64)
    s[:, 2] = 0
    return z.to(dtype), y, s.to(dtype), torch.tensor([0, 3, 1])


def evaluated(case: Case, z: Tensor, y: Tensor, s: Tensor, positive: Tensor) -> tuple[Sums, Tensor]:
    """And the derivative; the scores stay what they were."""
    out = torch.full_like(z, float("nan"))
    return case.loss.value.block(z.clone(), y, s, positive, out), out


def formula(case: Case, z: Tensor, y: Tensor, positive: Tensor) -> Tensor:
    """(B, n), plainly."""
    if case.k > 1:
        return z.exp().sum(1).log() - z[:, y, torch.arange(N)]
    t = torch.where(y == positive[:, None], 1.0, -1.0)
    margin = t * z[:, 0]
    return (1 + (-margin).exp()).log() if case is BINARY else (1 - margin).clamp_min(0).square()


@CASES
def test_values_are_the_formula_s(case):
    z, y, s, positive = drawn(case)
    value = evaluated(case, z, y, s, positive)[0].value
    assert value.dtype == torch.float64
    assert_allclose(value, (s * formula(case, z, y, positive)).sum(1), rtol=1e-13)


@CASES
def test_residuals_are_the_numerical_derivative(case):
    z, y, s, positive = drawn(case)

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            sums, residuals = evaluated(case, z, y, s, positive)
            ctx.save_for_backward(residuals)
            return sums.value

        @staticmethod
        def backward(ctx, upstream):
            return upstream[:, None, None] * ctx.saved_tensors[0]

    assert gradcheck(Value.apply, (z.requires_grad_(),), eps=1e-6, atol=1e-8)


@COLUMNS
def test_curvature_is_the_numerical_second_derivative(case):
    z, y, s, positive = drawn(case)
    ahead, behind = (evaluated(case, moved, y, s, positive)[1] for moved in (z + 1e-6, z - 1e-6))
    assert_allclose(
        evaluated(case, z, y, s, positive)[0].curvature[:, 0], (ahead - behind).sum((1, 2)) / 2e-6, rtol=1e-6, atol=0.02
    )


def test_curvature_of_softmax_is_exact_where_wrong_classes_are_alike():
    """Sum over classes of p (1 - p); it takes the wrong ones to share their part equally."""
    z, y, s, positive = drawn(SOFTMAX)
    z = torch.zeros_like(z).scatter_(1, y.expand(B, 1, -1), z[:, :1])
    p = z.softmax(1)
    curvature = evaluated(SOFTMAX, z, y, s, positive)[0].curvature
    assert_allclose(curvature.sum(1), (s * (p * (1 - p)).sum(1)).sum(1), rtol=1e-13)


@CASES
def test_a_row_of_weight_zero_has_no_part(case):
    z, y, s, positive = drawn(case)
    other = z.clone()
    other[..., 2] = 50
    sums, residuals = evaluated(case, z, y, s, positive)
    assert (residuals[..., 2] == 0).all()
    for ours, theirs in zip(evaluated(case, other, y, s, positive)[0], sums, strict=True):
        assert_array_equal(ours, theirs)


@CASES
def test_slopes_are_the_sums_of_the_residuals(case):
    sums, residuals = evaluated(case, *drawn(case))
    assert_allclose(sums.slope, residuals.sum(2), atol=1e-14)


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores_stay_finite(case, dtype):
    z, y, s, positive = drawn(case, dtype)
    z *= 1e4
    wanted = (s.double() * limit(case, z.double(), y, positive)).sum(1)
    sums, residuals = evaluated(case, z, y, s, positive)
    assert torch.isfinite(residuals).all() and torch.isfinite(sums.curvature).all() and (sums.curvature >= 0).all()
    assert_allclose(sums.value, wanted, rtol=1e-5)


def limit(case: Case, z: Tensor, y: Tensor, positive: Tensor) -> Tensor:
    """(B, n) where all scores are far apart."""
    if case.k > 1:
        return z.amax(1) - z[:, y, torch.arange(N)]
    t = torch.where(y == positive[:, None], 1.0, -1.0)
    short = (-t * z[:, 0]).clamp_min(0)
    return short if case is BINARY else (1 - t * z[:, 0]).clamp_min(0).square()


@CASES
def test_float32_is_close_to_float64(case):
    z, y, s, positive = drawn(case, torch.float32)
    sums, residuals = evaluated(case, z, y, s, positive)
    wanted, exact = evaluated(case, z.double(), y, s.double(), positive)
    assert_allclose(sums.value, wanted.value, rtol=1e-6)
    assert_allclose(sums.slope, wanted.slope, atol=1e-5)
    assert_allclose(sums.curvature, wanted.curvature, rtol=1e-5)
    assert_allclose(residuals, exact, atol=1e-6)


def test_two_classes_of_softmax_are_the_logistic_loss():
    """Of the difference of their scores."""
    z, y, s, _ = drawn(BINARY)
    y, positive = y % 2, torch.ones(B, dtype=torch.int64)
    both = torch.cat([torch.zeros_like(z), z], 1)
    (ours, residuals), (theirs, residual) = (
        evaluated(SOFTMAX, both, y, s, positive),
        evaluated(BINARY, z, y, s, positive),
    )
    assert_allclose(ours.value, theirs.value, rtol=1e-13)
    assert_allclose(residuals[:, 1:], residual, atol=1e-14)


@COLUMNS
def test_curvatures_of_rows_are_numerical_second_derivatives(case):
    z, y, s, positive = drawn(case)
    ahead, behind = (evaluated(case, moved, y, s, positive)[1] for moved in (z + 1e-6, z - 1e-6))
    _, residuals = evaluated(case, z, y, s, positive)
    curvatures = case.loss.value.curvatures(residuals[:, 0], s)
    assert_allclose(curvatures, ((ahead - behind) / 2e-6)[:, 0], rtol=1e-6, atol=1e-9)


@CASES
def test_the_intercept_only_model_has_no_slope(case):
    _, y, s, positive = drawn(case)
    shares = torch.zeros(B, 4, dtype=s.dtype).index_add_(1, y, s)
    intercepts = case.loss.value.intercept_only(shares, positive, case.k)
    assert intercepts.shape == (B, case.k)
    sums, _ = evaluated(case, intercepts[..., None].repeat(1, 1, N), y, s, positive)
    assert_allclose(sums.slope, 0, atol=1e-14)
