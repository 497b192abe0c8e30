"""The training loop of fine-tuning: a network on rows that are read in minibatches, epoch by epoch.

Everything random comes from one generator, so two trainings on one device with the same settings give equal weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from featx.backbones import Tail
from featx.learn.selection import Groups
from featx.progress import TrainingProgress
from featx.transfer.augmentation import mixed
from featx.transfer.rows import Rows

_SCORED_ROWS = 64
_CHECKED_IMAGES = 8  # whose outputs show whether an epoch ended with useless weights


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is trained; see `FineTuner`, whose parameters these are."""

    epochs: int
    lr: float
    optimizer: str
    batch_size: int
    weight_decay: float
    layer_decay: float
    warmup: float
    max_norm: float | None
    label_smoothing: float
    mixup: float
    n_iter_no_change: int


@dataclass(frozen=True, eq=False)
class Data:
    """The images of a training.

    n : number of images
    rows : rows to score, of all views of each image, by position
    learned : rows to train on, of one view of each image, by position; changed at random if they are images
    n_views : number of views of an image
    change : a random change of the rows of a minibatch, or None
    positions : (n,) in the store, or None
    groups : which images stay together, or None
    """

    n: int
    rows: Rows
    learned: Rows
    n_views: int
    change: Callable[[Tensor], Tensor] | None
    positions: np.ndarray | None
    groups: Groups | None


class Epoch(NamedTuple):
    """An epoch of a training.

    Attributes
    ----------
    epoch : int
        1 for the first; 0 is the network before training.
    loss : float
        Mean over the minibatches, of changed rows and smoothed labels; nan for epoch 0.
    score : float
        Accuracy, or R^2 of a regression, on the images held out for early stopping; nan if there are none.
    seconds : float
        Since the training began.
    """

    epoch: int
    loss: float
    score: float
    seconds: float


@dataclass(eq=False)
class State:
    """A training between two epochs.

    network : the tail and its head
    history : epochs so far, from 0 on
    best : epoch whose weights are in `best_weights`
    step : number of minibatches so far
    failure : why training ended early, in words, or ""
    """

    network: Network
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    history: list[Epoch] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    failure: str = ""


class Network(nn.Module):
    """A tail and a linear layer behind it: rows (b, *shape) -> scores (b, k)."""

    tail: Tail

    def __init__(self, tail: Tail, k: int) -> None:
        super().__init__()
        self.tail = tail
        self.head: nn.Linear = skip_init(nn.Linear, tail.d, k)  # torch's own random numbers stay as they are

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.tail(rows))

    def weights(self) -> dict[str, Tensor]:
        """Copies of all parameters, by name, on the CPU; batch norms' statistics do not change, so are left out."""
        return {name: _copied(value) for name, value in self.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self.named_parameters():
            value.copy_(weights[name])


def _copied(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU, as safetensors requires."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def begin(network: Network, settings: Settings, random_state: int) -> State:
    """A training before its first epoch."""
    depths = network.tail.depths
    n_parts = max(depths.values(), default=-1) + 1
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        above = n_parts - depths[name.removeprefix("tail.network.")] if name.startswith("tail.") else 0
        decay = 0.0 if parameter.ndim < 2 else settings.weight_decay  # of norms and biases
        groups.setdefault((settings.lr * settings.layer_decay**above, decay), []).append(parameter)
    options = [
        {"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()
    ]
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(options, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(options)
    return State(network, optimizer, torch.Generator().manual_seed(random_state))


def warmup_and_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """The factor of the learning rate at each step: linear up to 1 in `warmup` steps, then half a cosine down to 0."""

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return rate


def train(
    state: State,
    data: Data,
    y: Tensor,
    held_out: np.ndarray,
    settings: Settings,
    class_weight: Tensor | None = None,
    *,
    on_epoch: Callable[[State], None] = lambda state: None,
    show: Callable[[TrainingProgress], None] = lambda progress: None,
) -> None:
    """Train until the last epoch, or until the score on the images held out stops to improve.

    Between two epochs `state` is complete: `on_epoch` may store it. After an interrupt `best_weights` are those of the
    best epoch so far.

    Parameters
    ----------
    state : State
        From `begin`, or a stored one.
    data : Data
    y : (n,) int64 numbers of classes, or (n,) float32
    held_out : (n,) bool
        Images to score on after each epoch; the others are trained on.
    class_weight : (k,), optional
    on_epoch : callable(State)
        Called after each epoch, and before the first.
    show : callable(TrainingProgress)
        Called after each minibatch.
    """
    network, device = state.network, state.network.head.weight.device
    learn, scored = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    n_batches = math.ceil(len(learn) / settings.batch_size)
    rate = warmup_and_cosine(round(settings.warmup * settings.epochs * n_batches), settings.epochs * n_batches)
    earlier, start = state.history[-1].seconds if state.history else 0.0, time.monotonic()
    class_weight = None if class_weight is None else class_weight.to(device)

    def fail(what: str) -> None:
        highest = max(group["lr"] for group in state.optimizer.param_groups)
        state.failure = f"{what} in epoch {len(state.history)} at a rate of {highest:.2g}"

    def close(loss: float) -> None:
        """End an epoch: keep its weights if it is the best one, of equals the first; without scores, the last."""
        epoch, where = len(state.history), scored if len(scored) else learn[:_CHECKED_IMAGES]
        outputs = torch.cat(list(outputs_of(network, data.rows, where, data.n_views)))
        if epoch > 0 and not outputs.isfinite().all():
            return fail("the outputs became infinite or nan")
        score = _score(outputs, y[where]) if len(scored) else math.nan
        if epoch == 0 or math.isnan(score) or score > state.history[state.best].score:
            state.best, state.best_weights = epoch, network.weights()
        state.history.append(Epoch(epoch, loss, score, earlier + time.monotonic() - start))
        on_epoch(state)

    if not state.history:
        close(math.nan)
    first = state.step
    while len(state.history) <= settings.epochs:
        if len(scored) and len(state.history) - 1 - state.best >= settings.n_iter_no_change:
            break
        losses: list[float] = []
        order = learn[torch.randperm(len(learn), generator=state.generator).numpy()]
        for at in range(0, len(order), settings.batch_size):
            batch = order[at : at + settings.batch_size]
            for group in state.optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate(state.step)
            rows = data.learned(batch).to(device)
            rows = rows if data.change is None else data.change(rows)
            loss = _loss(network, rows, y[batch].to(device), settings, class_weight, state.generator)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return fail(f"the loss became {losses[-1]}")
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.max_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.max_norm)
            state.optimizer.step()
            state.step += 1
            seconds = time.monotonic() - start
            left = seconds / (state.step - first) * (settings.epochs * n_batches - state.step)
            score = state.history[-1].score
            show(
                TrainingProgress(state.step / n_batches, settings.epochs, float(np.mean(losses)), score, seconds, left)
            )
        close(float(np.mean(losses)))
        if state.failure:
            return


def _loss(
    network: Network,
    rows: Tensor,
    y: Tensor,
    settings: Settings,
    class_weight: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    def loss(scores: Tensor, y: Tensor) -> Tensor:
        if y.is_floating_point():
            return F.mse_loss(scores[:, 0], y)
        return F.cross_entropy(scores, y, class_weight, label_smoothing=settings.label_smoothing)

    if not settings.mixup:
        return loss(network(rows), y)
    rows, other, share = mixed(rows, settings.mixup, generator)
    scores = network(rows)
    return share * loss(scores, y) + (1 - share) * loss(scores, y[other])


def outputs_of(network: nn.Module, rows: Rows, positions: np.ndarray, n_views: int) -> Iterator[Tensor]:
    """Outputs (b, k) float32 on the CPU of images, the mean over their views, in order, a few at a time."""
    device, n_images = next(network.parameters()).device, max(1, _SCORED_ROWS // n_views)
    with torch.inference_mode():
        for at in range(0, len(positions), n_images):
            outputs = network(rows(positions[at : at + n_images]).to(device)).float().cpu()  # (b * v, k)
            yield outputs.unflatten(0, (-1, n_views)).mean(1)


def _score(scores: Tensor, truth: Tensor) -> float:
    """Accuracy, or R^2, of outputs (b, k)."""
    if not truth.is_floating_point():
        return float((scores.argmax(1) == truth).double().mean())
    residual = ((scores[:, 0] - truth).double() ** 2).sum()
    return float(1 - residual / ((truth.double() - truth.double().mean()) ** 2).sum().clamp_min(1e-30))


def tensors_of(state: State) -> dict[str, Any]:
    """Everything in a state that is needed to go on with it, as tensors by name."""
    tensors = {f"now.{name}": value for name, value in state.network.weights().items()}
    tensors |= {f"best.{name}": value for name, value in state.best_weights.items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        held = {name: torch.as_tensor(value) for name, value in moments.items() if value is not None}
        tensors |= {f"optimizer.{number}.{name}": _copied(value) for name, value in held.items()}
    tensors["generator"] = state.generator.get_state()
    return tensors


def restore(state: State, tensors: Mapping[str, Tensor], history: list[Epoch], best: int, step: int) -> None:
    """Bring a state from `begin` to where a stored one was."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    state.network.load_weights(part("now."))
    state.best_weights, state.history, state.best, state.step = part("best."), history, best, step
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer.").items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = value
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": moments})
    state.generator.set_state(tensors["generator"])
