"""Finds the layers of a network that cannot be traced: its submodules, observed by forward hooks.

Their order and shapes come from a dry run with two black images. Batch norms are not folded.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.jit import ScriptModule
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from featx._torch import FakeTensorMode
from featx.backbones.backbone import Backbone
from featx.backbones.heads import unused_name, watched_head
from featx.backbones.layers import WEIGHTS, Layers, kind_of, noise, one_image, prefix_tokens_of
from featx.errors import BackboneError, LayerError

_ROOT = "output"  # the name of the network itself, which has none
_INPUT = ".input"  # suffix to the name of the last linear layer, for its input


class Hooked(Layers):
    """The layers of a network whose forward is not a static graph: submodules, in the order in which they finish.

    nodes : {name: number of calls in the dry run}; "fc.input" is the input of the last linear layer, "fc", and
        "pre_logits" the classifier's input according to the network's `forward_head`
    """

    compilable = False  # compilers do not support hooks and control flow

    def __init__(self, backbone: Backbone) -> None:
        self._network, self._size = backbone.name, backbone.preprocessing.size
        self.root = copy.deepcopy(backbone.module)
        self.prefix_tokens, self.class_token = prefix_tokens_of(self.root)
        if isinstance(self.root, ScriptModule):
            raise BackboneError(
                f"{self._network} is TorchScript, whose layers cannot be watched; give the module that it was made "
                "from, or a program of torch.export"
            )
        modules = self.root.named_modules(remove_duplicate=False)
        self._parts = {name or _ROOT: part for name, part in modules if not isinstance(part, ScriptModule)}
        self._pre_logits = unused_name(self._parts)
        run = _DryRun(self.root, self._parts, self._pre_logits)
        try:
            run(self._black)
        except Exception as error:  # whatever the network's own code raises
            height, width = self._size
            cause = str(error).strip().split("\n")[0]
            raise BackboneError(f"{self._network} does not run on images of {height} x {width}: {cause}") from error
        above = {name[:dot] for name in run.times for dot, letter in enumerate(name) if letter == "."}
        leaves = [name for name in run.times if name not in above | {_ROOT, self._pre_logits}] or [_ROOT]
        kinds = {name: kind_of(self._parts[name]) for name in leaves}
        weights = [name for name in leaves if kinds[name] in WEIGHTS]
        classified = weights and kinds[weights[-1]] == "linear" and getattr(self.root, "num_classes", None) != 0
        self._classifier = weights[-1] if classified else ""
        nodes = {}
        for name, times in run.times.items():
            if name == self._classifier:
                nodes[name + _INPUT] = times
            nodes[name] = times
        self.nodes: Mapping[str, int] = nodes
        self.kinds = {name: kinds.get(name, "") for name in nodes}
        self._dry_run = run

    @property
    def _black(self) -> torch.Tensor:
        return torch.zeros(2, 3, *self._size)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self._dry_run.shapes
        return {name: shapes[name] for name, times in self.nodes.items() if times == 1 and name in shapes}

    def output(self) -> str:
        return _ROOT

    def penultimate(self) -> str:
        entering = self._classifier + _INPUT if self._classifier else _ROOT
        maker = self._dry_run.makers.get(entering, "")
        layer = maker if maker in self._shapes else entering
        return layer if self._pre_logits not in self.nodes or self._is_pre_logits(layer) else self._pre_logits

    def _is_pre_logits(self, layer: str) -> bool:
        """Whether a layer's output is the classifier's input according to the network's `forward_head`."""
        outputs: dict[str, Any] = {}

        def head(head: Callable[[], Any], pre_logits: Callable[[], Any]) -> Any:
            outputs[self._pre_logits] = pre_logits().clone()
            return head()

        handle = _on_output(self._parts, layer, lambda output: outputs.update({layer: output}))
        with torch.no_grad(), watched_head(self.root, head):
            self.root(noise(self._size))
        handle.remove()
        rows = [outputs.get(name) for name in (layer, self._pre_logits)]
        one, other = (row.flatten(1) if isinstance(row, torch.Tensor) and row.ndim else None for row in rows)
        return one is not None and other is not None and torch.equal(one, other)

    def resolve(self, name: str, network: str) -> list[str]:
        if name in self._parts and name not in self._modules:
            raise LayerError(
                f"layer {name!r} of {network} was not run on a black image; choose a layer that always runs"
            )
        names = super().resolve(name, network)
        for layer in names:
            if (times := self.nodes[self.last(layer)]) > 1:
                raise LayerError(_run_repeatedly(layer, network, times))
        return names

    def tapped(self, layers: Sequence[str], pools: Sequence[nn.Module]) -> nn.Module:
        names = [self.last(layer) for layer in layers]
        return _Watched(self.root, self._parts, names, pools, self._network, self._fixed, self._pre_logits)

    @property
    def _fixed(self) -> bool:
        """Whether the network runs on fake tensors, so that the layers that are run depend on the shape only."""
        root = copy.deepcopy(self.root)  # outside of the mode, in which copying a buffer fails
        try:
            with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
                root(mode.from_tensor(self._black))
        except Exception:  # it reads a value, or has an operator without support for fake tensors
            return False
        return True


def _run_repeatedly(layer: str, network: str, times: int) -> str:
    return f"layer {layer!r} of {network} was run {times} times in one forward pass; choose a layer inside or around it"


class _DryRun:
    """One forward pass, observed by hooks.

    times : {layer: number of calls}, in the order in which layers first finished
    shapes : {layer or its input: shape of one image's row}, of those that are tensors
    makers : {a layer's input: the first layer, except dropout, whose output is exactly this tensor}
    """

    def __init__(self, root: nn.Module, parts: Mapping[str, nn.Module], pre_logits: str) -> None:
        self._root, self._parts, self._pre_logits = root, parts, pre_logits
        self._aside = False
        self.times: Counter[str] = Counter()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.makers: dict[str, str] = {}
        self._made = WeakIdKeyDictionary()  # tensor -> (its version, the layer that gave it)

    def __call__(self, black: torch.Tensor) -> None:
        handles = []
        for part, name in {part: name for name, part in reversed(list(self._parts.items()))}.items():  # its first name
            handles.append(part.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            handles.append(part.register_forward_hook(partial(self._leave, name)))
        try:
            # not inference mode, whose tensors have no versions
            with torch.no_grad(), watched_head(self._root, self._head):
                self._root(black)
        finally:
            for handle in handles:
                handle.remove()

    def _head(self, head: Callable[[], Any], pre_logits: Callable[[], Any]) -> Any:
        output = head()
        self._aside = True  # the head runs again, which must not count
        try:
            shape = one_image(pre_logits())
        except Exception:  # the network's code may raise anything: then it has no such layer
            shape = None
        self._aside = False
        if shape:
            self.times[self._pre_logits], self.shapes[self._pre_logits] = 1, shape
        return output

    def _enter(self, name: str, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        entering = _first(args, kwargs)
        if not self._aside and (shape := one_image(entering)):
            self.shapes[name + _INPUT] = shape
            version, maker = self._made.get(entering, (None, ""))
            if version == entering._version:  # it has not been changed in place since
                self.makers[name + _INPUT] = maker

    def _leave(self, name: str, _: nn.Module, args: Any, output: Any) -> None:
        if self._aside:
            return
        self.times[name] += 1
        if shape := one_image(output):
            self.shapes[name] = shape
            known = self._made.get(output, (None,))[0] == output._version
            if not known and kind_of(self._parts[name]) != "dropout":
                self._made[output] = (output._version, name)


def _first(args: tuple, kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _on_output(parts: Mapping[str, nn.Module], layer: str, call: Callable[[Any], None]) -> RemovableHandle:
    """Call a function with a module's output, or with the input of the last linear layer."""
    if layer in parts:
        return parts[layer].register_forward_hook(lambda _, args, output: call(output))
    return parts[layer.removesuffix(_INPUT)].register_forward_pre_hook(
        lambda _, args, kwargs: call(_first(args, kwargs)), with_kwargs=True
    )


class _Stop(BaseException):
    """Raised when all layers have run; no subclass of Exception, so that a network's own `except` cannot catch it."""


class _Watched(nn.Module):
    """A network whose forward returns the pooled outputs of some layers.

    fixed : whether the layers that run are independent of the pixels' values. If so, the network stops after the
        deepest of them; if not, it runs to the end, since a layer might run twice.
    """

    def __init__(
        self,
        root: nn.Module,
        parts: Mapping[str, nn.Module],
        layers: Sequence[str],
        pools: Sequence[nn.Module],
        network: str,
        fixed: bool,
        pre_logits: str,
    ) -> None:
        super().__init__()
        self._root, self._pools, self._layers = root, nn.ModuleList(pools), layers
        self._network, self._fixed = network, fixed
        self._rows: dict[int, torch.Tensor] = {}
        self._times: Counter[int] = Counter()
        self._lock = threading.Lock()  # concurrent passes would mix their images in the hooks
        self._pre_logits = [number for number, layer in enumerate(layers) if layer == pre_logits]
        self._aside = False
        for number, layer in enumerate(layers):
            if layer != pre_logits:
                _on_output(parts, layer, partial(self._keep, number))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self._lock:
            self._rows, self._times = {}, Counter()
            self._n = len(pixels)
            try:
                with watched_head(self._root, self._head) if self._pre_logits else nullcontext():
                    self._root(pixels)
            except _Stop:
                pass
            for number, layer in enumerate(self._layers):
                if self._times[number] > 1:
                    raise LayerError(_run_repeatedly(layer, self._network, self._times[number]))
                if number not in self._rows:
                    raise LayerError(
                        f"layer {layer!r} of {self._network} was not run for these images; choose a layer that "
                        "always runs"
                    )
            rows, self._rows = self._rows, {}
        return tuple(rows[number] for number in range(len(self._layers)))

    def _head(self, head: Callable[[], Any], pre_logits: Callable[[], Any]) -> Any:
        self._aside = True  # the head runs once more, which must not count
        try:
            output = pre_logits()
        finally:
            self._aside = False
        for number in self._pre_logits:
            self._keep(number, output)
        return head()

    def _keep(self, number: int, output: Any) -> None:
        if self._aside:
            return
        layer = self._layers[number]
        self._times[number] += 1
        if self._times[number] > 1:
            return  # runs to the end, to count the calls for the message
        if not isinstance(output, torch.Tensor) or output.ndim < 2 or len(output) != self._n:
            raise LayerError(
                f"layer {layer!r} of {self._network} does not give one row per image; choose a layer that contains it"
            )
        self._rows[number] = self._pools[number](output)  # now: later layers may change it in place
        if self._fixed and len(self._rows) == len(self._layers):
            raise _Stop
