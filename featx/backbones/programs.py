"""Turns a program of `torch.export`, or its file, into a module, if it can be a backbone.

This module checks a program's inputs and mode; `exported.py` finds its layers.
"""

from __future__ import annotations

import contextlib
import operator
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from featx._torch import bound_sympy
from featx.backbones.preprocessing import Preprocessing
from featx.errors import BackboneError, ProgramWarning

_HOW = "torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim('batch')},))"


_SWITCH = threading.Lock()  # environment variables are shared by all threads


def load_program(file: str) -> ExportedProgram:
    """Open a `.pt2` file that the user passed, with a warning, since it can contain code.

    Pickles of anything but tensors are refused, which `torch.export.load` would unpickle as a fallback. The file may
    still contain its author's compiled code and operators: open only files that you would run as a script.
    """
    warnings.warn(f"{file!r} is an exported program, which can run its author's code", ProgramWarning, 2)
    try:
        with _without_full_unpickling():
            return torch.export.load(file)
    except FileNotFoundError as error:
        raise BackboneError(f"there is no file {file}") from error
    except Exception as error:  # zip, JSON and schema errors of many types
        raise BackboneError(f"{file} is not a program that torch.export.save wrote, or of another torch") from error


@contextlib.contextmanager
def _without_full_unpickling() -> Iterator[None]:
    """Restrict `torch.load` to tensors, even if it is called with weights_only=False; the switch is torch's own."""
    with _SWITCH:
        yield from _switched("TORCH_FORCE_WEIGHTS_ONLY_LOAD")


def _switched(switch: str) -> Iterator[None]:
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def program_name(program: ExportedProgram) -> str:
    """The class of the network that was exported."""
    return next((kind.rpartition(".")[2] for kind in root_classes(program.graph)), "program")


def module_of(program: ExportedProgram, preprocessing: Preprocessing) -> nn.Module:
    """The program as a module on the CPU, after its inputs and mode have been checked.

    Raises
    ------
    BackboneError
        It does not take batches of any number of float32 images of the preprocessing's size, was exported in training
        mode, or changes its buffers.
    """
    signature = program.graph_signature
    if len(signature.user_inputs) != 1:
        raise BackboneError(f"it takes {len(signature.user_inputs)} inputs; a backbone takes the images alone: {_HOW}")
    if signature.buffers_to_mutate or any(_trains(node) for node in program.graph.nodes):
        raise BackboneError(f"it was exported in training mode; export it in eval mode: {_HOW}")
    (images,) = (node for node in program.graph.nodes if node.name == signature.user_inputs[0])
    value = images.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.shape[1] != 3 or value.dtype != torch.float32:
        raise BackboneError(f"a backbone takes (b, 3, h, w) float32 images; it takes {_described(value)}: {_HOW}")
    least, most = _range(program, value.shape[0])
    if least > 2 or most is not None:
        fixed = f"of {least}" if least == most else f"of {least} to {most or 'any'}"
        raise BackboneError(f"it was exported for batches {fixed} images; export it for any: {_HOW}")
    height, width = preprocessing.size
    allowed = [_range(program, side) for side in value.shape[2:]]
    if any(side < least or side > (most or side) for side, (least, most) in zip((height, width), allowed, strict=True)):
        needed = " x ".join(str(least) if least == most else f"{least} to {most or 'any'}" for least, most in allowed)
        raise BackboneError(
            f"it was exported for images of {needed}, its preprocessing gives {height} x {width}; "
            f"give featx.Preprocessing(crop=({allowed[0][0]}, {allowed[1][0]}), ...)"
        )
    module = program.module(check_guards=False)
    # copies: later changes to the program's weights have no effect here
    tensors = dict(module.named_parameters()) | dict(module.named_buffers()) | constants(module)
    for name, tensor in tensors.items():
        owner, _, attribute = name.rpartition(".")
        copied = tensor.detach().cpu().clone()
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=False)
        setattr(module.get_submodule(owner), attribute, copied)
    return module


def constants(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a program's graph reads, including those outside its state dict."""
    assert isinstance(module, fx.GraphModule)
    names = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    tensors = {name: operator.attrgetter(name)(module) for name in sorted(names)}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}


def module_stack(node: fx.Node) -> list[tuple[str, str]]:
    """(path, class) of the modules that a node came from, outermost first."""
    return [
        (path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
        for path, kind in node.meta.get("nn_module_stack", {}).values()
    ]


def root_classes(graph: fx.Graph) -> list[str]:
    """The class of the network that was exported, if the graph records it, as a list of at most one."""
    return [stack[0][1] for node in graph.nodes if (stack := module_stack(node)) and not stack[0][0]][:1]


def _range(program: ExportedProgram, side: int | torch.SymInt) -> tuple[int, int | None]:
    """The minimum and maximum of a dimension; the maximum is None if there is none."""
    if isinstance(side, int):
        return side, side
    bounds = bound_sympy(side.node.expr, program.range_constraints)
    return int(bounds.lower), None if bounds.upper > 2**31 else int(bounds.upper)


def _trains(node: fx.Node) -> bool:
    position = {"aten.batch_norm.default": 5, "aten.dropout.default": 2}.get(str(node.target))
    return position is not None and len(node.args) > position and node.args[position] is True


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
