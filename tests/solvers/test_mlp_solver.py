"""Networks trained together are those trained one by one, and their steps those of autograd."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from featx.solvers import MLPProblem, MLPRun, Outcome, train_mlps

ADAM = MLPProblem(alpha=0.1, learning_rate_init=0.01, max_iter=5, tol=0.0, n_iter_no_change=10)
SGD = replace(ADAM, momentum=0.9, learning_rate_init=0.1)


def run_of(*problems: MLPProblem, sizes=(6, 7, 5, 3), n=90, batch_size=40, dtype=np.float64, **changes) -> MLPRun:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, sizes[0])).astype(dtype), rng.integers(0, sizes[-1], n)
    coefs = [rng.normal(size=shape).astype(dtype) / 2 for shape in pairwise(sizes)]
    intercepts = [rng.normal(size=n_out).astype(dtype) for n_out in sizes[1:]]
    run = MLPRun(
        rows=lambda: X,
        targets=y[:, None] == np.arange(sizes[-1]),
        weights=None,
        train=np.arange(n),
        held_out=None,
        score=lambda outputs: 0.0,
        units=sizes,
        start=lambda: (coefs, intercepts),
        activation="tanh",
        output="softmax",
        batch_size=batch_size,
        random_state=np.random.RandomState(0),
        dropout_seed=1,
        problems=list(problems),
    )
    return replace(run, **changes)


def train(run: MLPRun, **options) -> list:
    (trained,) = train_mlps([run], device="cpu", **options)
    return trained[0]


def assert_same(ours, theirs, atol=1e-12):
    assert len(ours.losses) == len(theirs.losses) and ours.outcome is theirs.outcome
    for one, other in zip(
        [ours.losses, *ours.coefs, *ours.intercepts], [theirs.losses, *theirs.coefs, *theirs.intercepts], strict=True
    ):
        assert_allclose(one, other, rtol=0, atol=atol)


PROBLEMS = [
    ADAM,
    SGD,
    replace(ADAM, alpha=10.0, max_iter=2),
    replace(ADAM, dropout=0.5, betas=(0.8, 0.9)),
    replace(SGD, dropout=0.2, nesterov=False, learning_rate_init=0.01),
    replace(SGD, tol=10.0, n_iter_no_change=1),
    replace(SGD, tol=10.0, n_iter_no_change=1, schedule="adaptive"),
    replace(SGD, schedule="invscaling"),
]


@pytest.mark.parametrize("sizes", [(6, 7, 5, 3), (6, 4, 3), (6, 3)], ids=str)
@pytest.mark.parametrize("budget_bytes", [1, None], ids=["one-at-a-time", "together"])
def test_a_network_does_not_depend_on_its_neighbours(sizes, budget_bytes):
    together = train(run_of(*PROBLEMS, sizes=sizes), budget_bytes=budget_bytes)
    for network, problem in zip(together, PROBLEMS, strict=True):
        (alone,) = train(run_of(problem, sizes=sizes))
        assert_same(network, alone)
    assert [len(network.losses) for network in together] == [5, 5, 2, 5, 5, 3, 5, 5]
    assert [network.outcome is Outcome.CONVERGED for network in together] == [False] * 5 + [True, False, False]


def test_runs_do_not_depend_on_each_other_nor_on_the_number_of_threads():
    runs = [run_of(ADAM), run_of(SGD, sizes=(6, 3)), run_of(ADAM, SGD, n=50)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        pairs = list(train_mlps(runs, device="cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [list(pair) for pair in pairs] == [[0, 1], [2]]
    for number, run in enumerate([run_of(ADAM), run_of(SGD, sizes=(6, 3)), run_of(ADAM, SGD, n=50)]):
        for network, alone in zip(pairs[number // 2][number], train(run), strict=True):
            assert_same(network, alone)


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("output", ["softmax", "logistic", "identity"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_step_is_along_autograd_s_gradient(activation, output, dropout):
    """Of all rows in one minibatch, with weights; the mask of a layer is drawn for all networks alike."""
    rate = 1e-3
    problem = replace(ADAM, alpha=0.7, momentum=0.0, learning_rate_init=rate, max_iter=1, dropout=dropout)
    weights = np.random.default_rng(1).uniform(0.5, 2, 90)
    run = run_of(problem, batch_size=90, activation=activation, output=output, weights=weights, random_state=None)
    (network,) = train(run)

    parameters = [torch.from_numpy(each.copy()).requires_grad_() for each in sum(run.start(), [])]
    coefs, intercepts = parameters[:3], parameters[3:]
    generator = torch.Generator().manual_seed(run.dropout_seed)
    functions = {"relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid, "identity": lambda Z: Z}
    Z, Y, s = torch.from_numpy(run.rows()), torch.from_numpy(run.targets).double(), torch.from_numpy(weights)
    for layer, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True)):
        Z = Z @ coef + intercept
        if layer < 2:
            Z = functions[activation](Z)
            if dropout:
                Z = Z * (torch.rand(Z.shape, generator=generator) >= dropout) / (1 - dropout)
    losses = {
        "softmax": lambda: -(Z.log_softmax(1) * Y).sum(1),
        "logistic": lambda: torch.nn.functional.binary_cross_entropy_with_logits(Z, Y, reduction="none").sum(1),
        "identity": lambda: (Z - Y).square().sum(1) / 2,
    }[output]()
    penalty = sum(coef.square().sum() for coef in coefs)
    objective = ((losses * s).sum() + 0.7 / 2 * penalty) / s.sum()
    objective.backward()
    for ours, parameter in zip([*network.coefs, *network.intercepts], parameters, strict=True):
        assert_allclose(ours, (parameter - rate * parameter.grad).detach().numpy(), rtol=0, atol=1e-12)
    if output != "identity":  # whose loss is a mean over the targets
        assert_allclose(network.losses, [objective.item()], rtol=1e-9)


def test_bfloat16_is_close():
    exact, low = (
        train(run_of(ADAM, SGD, dtype=np.float32, activation="relu"), low_precision=low_precision)
        for low_precision in (False, True)
    )
    for one, other in zip(low, exact, strict=True):
        assert other.coefs[0].dtype == one.coefs[0].dtype == np.float32
        assert 0 < np.abs(np.subtract(one.losses, other.losses)).max() < 0.02


def test_without_hidden_layers_bfloat16_changes_nothing():
    exact, low = (train(run_of(ADAM, sizes=(6, 3)), low_precision=low_precision)[0] for low_precision in (False, True))
    assert_same(exact, low, atol=0)


def test_the_coefficients_of_the_best_score_are_kept():
    scores = iter([0.2, 0.9, 0.5, 0.4, 0.9])
    problem = replace(ADAM, max_iter=5)
    (network,) = train(run_of(problem, held_out=np.arange(5), score=lambda outputs: next(scores)))
    (two_epochs,) = train(run_of(replace(problem, max_iter=2)))
    assert network.scores == [0.2, 0.9, 0.5, 0.4, 0.9] and network.best_score == 0.9 and network.best_loss is None
    for one, other in zip(network.coefs, two_epochs.coefs, strict=True):
        assert_allclose(one, other, rtol=0, atol=1e-12)


def test_a_loss_that_is_not_finite_ends_the_training():
    diverging = replace(SGD, learning_rate_init=1e200, max_iter=50)
    diverged, other = train(run_of(diverging, replace(SGD, max_iter=3), activation="identity"))
    assert diverged.outcome is Outcome.DIVERGED and len(diverged.losses) < 50
    assert_same(other, train(run_of(replace(SGD, max_iter=3), activation="identity"))[0])
