"""Multilayer perceptrons, trained by minibatches: many networks of one architecture see the same rows in one order.

    min_{W, b}  (sum_i s_i l(z_i, y_i) + alpha/2 sum_j |W_j|^2) / sum_i s_i
    z_i = a(... a(x_i W_1 + b_1) ...) W_J + b_J

The sums are over the rows of a minibatch, the steps those of Adam or of gradient descent with momentum, as in
scikit-learn's MLPClassifier and MLPRegressor. The networks of a run share each minibatch and one product with all first
layers; their other layers are batched products. Each network has its own step, and leaves when it has converged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from math import inf, isfinite, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from featx.solvers.hardware import budget_of, device_of
from featx.solvers.matmul import full_precision, product
from featx.solvers.threads import Team, threads_for

_MOST_BYTES = 2**28  # of the networks that a CPU trains together: more at a time are no faster
_COPIES = 6  # of the coefficients: their own, gradients, two moments, the best ones, temporary ones
_LEAST_RATE = 1e-6  # at which an adaptive rate is not reduced any further


class Outcome(Enum):
    """How the training of a network ended; the value is the text of a warning."""

    CONVERGED = "converged"
    MAX_ITER = "the epochs ran out: raise max_iter, or learning_rate_init"
    DIVERGED = "the loss is not finite: lower learning_rate_init, or standardise the columns (StandardScaler)"


@dataclass(frozen=True)
class MLPProblem:
    """How one network is trained; parameters are those of scikit-learn's MLPClassifier.

    Parameters
    ----------
    dropout : float, in [0, 1)
        The share of hidden units that are left out of each row's pass in training.
    momentum : float, optional
        For gradient descent; None for Adam.
    """

    alpha: float
    learning_rate_init: float
    max_iter: int
    tol: float
    n_iter_no_change: float
    dropout: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    momentum: float | None = None
    nesterov: bool = True
    schedule: str = "constant"
    power_t: float = 0.5


@dataclass(frozen=True, eq=False)
class MLPRun:
    """Networks of one architecture on the same rows, in the same order.

    Parameters
    ----------
    rows : function that returns X, (n, d) float32 or float64
    targets : (n, q)
        For "softmax" and "logistic", 0 and 1.
    weights : (n,), above 0, optional
    train : (n_train,) positions of the rows to train on
    held_out : (n_held_out,) positions of the rows for early stopping, optional
    score : function of held-out outputs (n_held_out, q), after the output's activation, that returns a number
    units : number of columns, of units of each hidden layer, and of outputs
    start : function that returns the initial coefficients (d_in, d_out) and intercepts (d_out,) of all layers
    activation : "relu", "tanh", "logistic" or "identity"
    output : "softmax", "logistic" or "identity"
        The output's activation. The loss is the cross-entropy, for "identity" half the squared error.
    batch_size : int
    random_state : RandomState that shuffles the rows of each epoch, or None
    dropout_seed : int
    problems : one for each network
    """

    rows: Callable[[], np.ndarray]
    targets: np.ndarray
    weights: np.ndarray | None
    train: np.ndarray
    held_out: np.ndarray | None
    score: Callable[[np.ndarray], float]
    units: Sequence[int]
    start: Callable[[], tuple[list[np.ndarray], list[np.ndarray]]]
    activation: str
    output: str
    batch_size: int
    random_state: np.random.RandomState | None
    dropout_seed: int
    problems: list[MLPProblem] = field(default_factory=list)

    @property
    def n_coefs(self) -> int:
        return sum(n_in * n_out for n_in, n_out in pairwise(self.units))


@dataclass(eq=False)
class TrainedMLP:
    """A trained network, with the losses (and scores) of its epochs.

    coefs, intercepts : those of the best score if rows were held out, else the last ones
    best_loss : None if rows were held out; `scores` and `best_score` are None if none were
    """

    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    losses: list[float]
    best_loss: float | None
    scores: list[float] | None
    best_score: float | None
    outcome: Outcome


def train_mlps(
    runs: Sequence[MLPRun], *, device: str = "auto", low_precision: bool = False, budget_bytes: int | None = None
) -> Iterator[dict[int, list[TrainedMLP]]]:
    """Train all networks of all runs: on a CPU, as many runs at a time as there are threads.

    Parameters
    ----------
    runs : sequence of MLPRun
    device : "auto", "cpu", "cuda" or "cuda:1"
    low_precision : bool
        Whether hidden layers are multiplied in bfloat16. Coefficients and their steps keep X's type.
    budget_bytes : int, optional
        Memory for the networks that are trained together, at least one; by default a quarter of what the process may
        use, or of the GPU's.

    Yields
    ------
    {number of a run: its networks in the order of its problems}, of the runs that were trained at the same time
    """
    torch_device = device_of(device)
    is_cpu = torch_device.type == "cpu"
    budget = budget_of(torch_device, budget_bytes)
    size = min(len(runs), torch.get_num_threads()) if is_cpu else 1
    own_bytes = min(budget // max(1, size), _MOST_BYTES) if is_cpu else budget

    def work(_: int, run: MLPRun) -> list[TrainedMLP]:
        with torch.no_grad(), torch.autocast(torch_device.type, enabled=False):
            return _trained(run, torch_device, low_precision, own_bytes)

    for start in range(0, len(runs), max(1, size)):
        together = runs[start : start + size]
        flop = 2 * together[0].batch_size * together[0].n_coefs if len(together) == 1 else 0
        with threads_for(flop), full_precision(), Team(size) as team:
            trained = team.map(work, together)
        yield dict(enumerate(trained, start))


def _trained(run: MLPRun, device: torch.device, low_precision: bool, budget_bytes: int) -> list[TrainedMLP]:
    X = torch.from_numpy(run.rows()).to(device)
    each_bytes = _COPIES * X.element_size() * run.n_coefs
    n_parts = -(-len(run.problems) // max(1, budget_bytes // each_bytes))
    trained: list[TrainedMLP] = []
    for positions in np.array_split(np.arange(len(run.problems)), n_parts):
        random_state = run.random_state if n_parts == 1 else deepcopy(run.random_state)
        training = _Training(run, X, [run.problems[position] for position in positions], low_precision)
        trained += training.run_epochs(random_state)
    return trained


class _Network:
    """The losses, learning rate and optimiser state of one network."""

    def __init__(self, problem: MLPProblem, n_tensors: int, is_scored: bool, like: Tensor) -> None:
        best_loss, best_score = (None, -inf) if is_scored else (inf, None)
        self.trained = TrainedMLP([], [], [], best_loss, [] if is_scored else None, best_score, Outcome.MAX_ITER)
        self.problem = problem
        self.rate = self.last_rate = problem.learning_rate_init
        self.n_waited = 0  # epochs without improvement
        self.n_steps = 0
        self.counts = list(like.new_zeros(n_tensors, dtype=torch.float32).unbind())  # n_steps, for torch's Adam

    def step(self, tensors: list[Tensor], gradients: list[Tensor], moments: list[list[Tensor]], total: float) -> None:
        """Move the coefficients, which are the first half of the tensors, and the intercepts.

        total : sum of the rows' weights, by which the penalty's gradient is divided
        """
        problem, half = self.problem, len(tensors) // 2
        self.n_steps += 1
        for part, decay in ((slice(half), problem.alpha / total), (slice(half, None), 0.0)):
            first, second = (moment[part] for moment in moments)
            if problem.momentum is None:
                beta1, beta2 = problem.betas
                adam(
                    tensors[part],
                    gradients[part],
                    first,
                    second,
                    [],
                    self.counts[part],
                    fused=True,
                    amsgrad=False,
                    beta1=beta1,
                    beta2=beta2,
                    lr=self.rate,
                    weight_decay=decay,
                    # torch adds epsilon to the corrected moment's root, scikit-learn to the root itself
                    eps=problem.epsilon / sqrt(1 - beta2**self.n_steps),
                    maximize=False,
                )
                continue
            for velocity in first if self.rate != self.last_rate else ():
                velocity *= self.last_rate / self.rate  # in units of the rate, as torch has it
            sgd(
                tensors[part],
                gradients[part],
                first,  # type: ignore[arg-type]
                fused=True,
                weight_decay=decay,
                momentum=problem.momentum,
                lr=self.rate,
                nesterov=problem.nesterov,
                dampening=0.0,
                maximize=False,
            )
        self.last_rate = self.rate

    def improves(self, loss: float, score: float | None) -> bool:
        """Record an epoch; returns whether its score is the best so far."""
        trained, tol = self.trained, self.problem.tol
        trained.losses.append(loss)
        if trained.best_loss is not None:
            self.n_waited = self.n_waited + 1 if loss > trained.best_loss - tol else 0
            trained.best_loss = min(trained.best_loss, loss)
        if score is None or trained.scores is None or trained.best_score is None:
            return False
        trained.scores.append(score)
        self.n_waited = self.n_waited + 1 if score < trained.best_score + tol else 0
        is_best = score > trained.best_score
        trained.best_score = max(trained.best_score, score)
        return is_best

    def continues(self, n: int) -> bool:
        """Whether another epoch of n rows follows; sets its rate, or the outcome."""
        problem, epochs = self.problem, len(self.trained.losses)
        if not isfinite(self.trained.losses[-1]):
            self.trained.outcome = Outcome.DIVERGED
            return False
        if problem.schedule == "invscaling":
            self.rate = problem.learning_rate_init / (epochs * n + 1) ** problem.power_t
        if self.n_waited > problem.n_iter_no_change:
            if problem.schedule != "adaptive" or self.rate <= _LEAST_RATE:
                self.trained.outcome = Outcome.CONVERGED
                return False
            self.rate /= 5
            self.n_waited = 0
        return epochs < problem.max_iter


class _Hidden(NamedTuple):
    """A hidden layer of B networks.

    values : (B, m, d_out), after the activation
    factors : (B, m, d_out) of dropout, or None
    outputs : their product, what the next layer multiplies
    """

    values: Tensor
    factors: Tensor | None
    outputs: Tensor


class _Training:
    """B networks of a run: `coefs` are (B, d_out, d_in) and `intercepts` (B, d_out), for each layer."""

    def __init__(self, run: MLPRun, X: Tensor, problems: list[MLPProblem], low_precision: bool) -> None:
        self.run, self.X = run, X
        self.Y = X.new_tensor(run.targets)
        self.weights = None if run.weights is None else X.new_tensor(run.weights)
        self.last = len(run.units) - 2
        self.low_precision = low_precision
        self.rows = self._factor(X, 0)
        B, (coefs, intercepts) = len(problems), run.start()
        self.coefs = [torch.from_numpy(coef.T).to(X).repeat(B, 1, 1) for coef in coefs]
        self.intercepts = [torch.from_numpy(intercept).to(X).repeat(B, 1) for intercept in intercepts]
        tensors = self.coefs + self.intercepts
        self.moments = [[torch.zeros_like(tensor) for tensor in tensors] for _ in range(2)]
        is_scored = run.held_out is not None
        self.networks = [_Network(problem, len(tensors), is_scored, X) for problem in problems]
        self.generator = torch.Generator().manual_seed(run.dropout_seed)
        self._set_penalties()

    def _set_penalties(self) -> None:
        self.alphas = self.X.new_tensor([network.problem.alpha for network in self.networks])
        shares = [network.problem.dropout for network in self.networks]
        self.dropout = self.X.new_tensor(shares)[:, None, None] if any(shares) else None

    def run_epochs(self, random_state: np.random.RandomState | None) -> list[TrainedMLP]:
        every, order, n = self.networks, self.run.train, len(self.run.train)
        while self.networks:
            if random_state is not None:
                permutation = np.arange(n)
                random_state.shuffle(permutation)
                order = order[permutation]
            sums = self.X.new_zeros(len(self.networks), dtype=torch.float64)
            for batch in torch.from_numpy(order).to(self.X.device).split(self.run.batch_size):
                sums += len(batch) * self._step(batch)
            scores = [None] * len(self.networks) if self.run.held_out is None else self._scores(self.run.held_out)
            left = []
            for position, (network, loss, score) in enumerate(
                zip(self.networks, (sums / n).tolist(), scores, strict=True)
            ):
                is_best, continues = network.improves(loss, score), network.continues(n)
                if is_best or not continues and (score is None or not network.trained.coefs):
                    self._keep(position)
                if continues:
                    left.append(position)
            if len(left) < len(self.networks):
                self._select(left)
        return [network.trained for network in every]

    def _keep(self, position: int) -> None:
        """Copy the network's coefficients to its result."""
        trained = self.networks[position].trained
        trained.coefs = [np.array(coef[position].T.cpu().numpy(), order="C") for coef in self.coefs]
        trained.intercepts = [np.array(intercept[position].cpu().numpy()) for intercept in self.intercepts]

    def _select(self, positions: list[int]) -> None:
        """Leave out all other networks."""
        self.networks = [self.networks[position] for position in positions]
        self.coefs = [coef[positions] for coef in self.coefs]
        self.intercepts = [intercept[positions] for intercept in self.intercepts]
        self.moments = [[tensor[positions] for tensor in moment] for moment in self.moments]
        self._set_penalties()

    def _step(self, batch: Tensor) -> Tensor:
        """One step of all networks on the rows at these positions (m,); returns the losses (B,) before it."""
        rows, run = self.rows[batch], self.run
        hidden, Z = self._forward(rows, self.dropout)
        s = self.X.new_ones(len(batch)) if self.weights is None else self.weights[batch]
        total = float(len(batch)) if self.weights is None else float(s.sum())
        losses, D = _LOSSES[run.output](Z, self.Y[batch])  # (B, m), and their derivatives (B, m, q)
        squares = torch.stack([torch.linalg.vector_norm(coef, dim=(1, 2)) for coef in self.coefs]).square().sum(0)
        losses = (losses @ s + self.alphas * squares / 2) / total
        D *= s[:, None] / total
        gradients = [torch.empty(0)] * len(self.coefs)
        slopes = [torch.empty(0)] * len(self.coefs)
        for layer in range(self.last, -1, -1):
            slopes[layer] = D.sum(1)
            factor = self._factor(D, layer)
            if layer == 0:
                stacked = factor.transpose(0, 1).flatten(1)  # (m, B d_out)
                gradients[0] = product(stacked.T, rows.T).to(self.X).view_as(self.coefs[0])
                break
            values, factors, outputs = hidden[layer - 1]
            gradients[layer] = torch.bmm(factor.mT, self._factor(outputs, layer)).to(self.X)
            D = torch.bmm(factor, self._factor(self.coefs[layer], layer)).to(self.X)
            if factors is not None:
                D *= factors
            _DIFFERENTIATE[run.activation](values, D)
        self._descend(gradients + slopes, total)
        return losses

    def _forward(self, rows: Tensor, dropout: Tensor | None) -> tuple[list[_Hidden], Tensor]:
        """The hidden layers of rows (m, d), and the scores (B, m, q)."""
        hidden: list[_Hidden] = []
        for layer, (coef, intercept) in enumerate(zip(self.coefs, self.intercepts, strict=True)):
            factor = self._factor(coef, layer)
            if layer == 0:
                values = product(rows, factor.flatten(0, 1)).view(len(rows), *intercept.shape).transpose(0, 1)
            else:
                values = torch.bmm(self._factor(hidden[-1].outputs, layer), factor.mT)
            values = values.to(self.X)
            values += intercept[:, None]
            if layer < self.last:
                _ACTIVATE[self.run.activation](values)
                factors, outputs = None, values
                if dropout is not None:
                    # the same numbers for all networks, so that none depends on the others, and for all devices
                    draws = torch.rand(values.shape[1:], generator=self.generator).to(rows.device)
                    factors = (draws >= dropout) / (1 - dropout)
                    outputs = values * factors
                hidden.append(_Hidden(values, factors, outputs))
        return hidden, values

    def _factor(self, values: Tensor, layer: int) -> Tensor:
        """Values in the type in which the layer's products are computed."""
        return values.bfloat16() if self.low_precision and layer < self.last else values

    def _descend(self, gradients: list[Tensor], total: float) -> None:
        by_network = [
            list(zip(*(tensor.unbind() for tensor in tensors), strict=True))
            for tensors in (self.coefs + self.intercepts, gradients, *self.moments)
        ]
        for network, own, slope, *moments in zip(self.networks, *by_network, strict=True):
            network.step(list(own), list(slope), [list(moment) for moment in moments], total)

    def _scores(self, held_out: np.ndarray) -> list[float]:
        _, Z = self._forward(self.rows[torch.from_numpy(held_out).to(self.X.device)], None)
        return [self.run.score(outputs) for outputs in _OUTPUTS[self.run.output](Z).cpu().numpy()]


def _softmax_loss(Z: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    logarithms = Z.log_softmax(2)
    return -(logarithms * Y).sum(2), logarithms.exp_().sub_(Y)


def _logistic_loss(Z: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    return (softplus(Z) - Z * Y).sum(2), Z.sigmoid().sub_(Y)


def _squared_loss(Z: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss is a mean over the targets, its derivative is of their sum, as in scikit-learn."""
    errors = Z - Y
    return errors.square().mean(2) / 2, errors


_LOSSES = {"softmax": _softmax_loss, "logistic": _logistic_loss, "identity": _squared_loss}
_OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda Z: Z.softmax(2),
    "logistic": Tensor.sigmoid,
    "identity": lambda Z: Z,
}
_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {  # in place
    "relu": Tensor.relu_,
    "tanh": Tensor.tanh_,
    "logistic": Tensor.sigmoid_,
    "identity": lambda values: values,
}
# Multiply D in place by the activation's derivative, given its values.
_DIFFERENTIATE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda values, D: D.mul_(values.sign()),  # of one type, which is faster than by a comparison
    "tanh": lambda values, D: D.mul_(1 - values.square()),
    "logistic": lambda values, D: D.mul_(values).mul_(1 - values),
    "identity": lambda values, D: D,
}
