"""The library's messages in the words of the command line: options for parameters, commands for calls."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Container, Iterator
from typing import Any

import typer

from featx.display import printable
from featx.errors import Call, Message, Parameter, RowsDifferWarning

# options that have another name than the library's parameter
_OPTIONS = {
    "random_state": "seed",
    "n_jobs": "jobs",
    "estimators": "estimator",
    "layers": "layer",
    "methods": "method",
    "size": "test_size",
    "validation_rows": "validation_value",
}
# options of `featx extract` that messages of other commands name
_EXTRACT_OPTIONS = {"like"}
# what the command line has in place of a call, by its function and the parameters that it names
_COMMANDS = {
    ("featx.extract",): "featx extract",
    ("featx.extract", "backbone", "layers"): "featx extract IMAGES {backbone} {layers}",
    ("featx.merge",): "featx merge",
    ("FeatureStore.from_arrays", "name"): "featx import ROWS -o STORE {name}",
    ("model.predict",): "featx predict MODEL --store STORE",
    ("featx.save",): "featx search -o",
    ("featx.load", "weights"): "featx predict {weights}",
    ("HoldOut", "size"): "{size}",
    ("HoldOut", "rows"): "--split-column",
    ("store.align",): "--labels labels.csv",
    ("target_store.align",): "--target-labels labels.csv",
    ("y.astype",): "--labels with --target numeric",
    ("featx.learn.learning_curves",): "--protocol learning-curve",
    ("featx.learn.select_model",): "no --protocol",
}


def worded(message: Message, options: Container[str]) -> str:
    """A message as the command line writes it; what it has no option or command for stays as in Python.

    Parameters
    ----------
    message : FeatxError or RowsDifferWarning
    options : container of str
        Names of the running command's parameters.
    """

    def write(part: Parameter | Call) -> str:
        if isinstance(part, Parameter) and part.value and isinstance(part.value[0], Call):
            part = part.value[0]
        if isinstance(part, Call):
            named = [argument for argument in part.arguments if isinstance(argument, Parameter)]
            command = _COMMANDS.get((part.name, *(parameter.name for parameter in named)))
            return str(part) if command is None else command.format_map({p.name: _option(p, "FILE") for p in named})
        is_option = part.name in _EXTRACT_OPTIONS or _OPTIONS.get(part.name, part.name) in options
        return _option(part) if is_option else str(part)

    return message.render(write)


def _option(parameter: Parameter, placeholder: str = "") -> str:
    """ "--test-size 0" for `test_size=0`, "--replace" for `replace=True`, "--weights random" for `weights=None`"""
    words = ["--" + _OPTIONS.get(parameter.name, parameter.name).replace("_", "-")]
    for value in parameter.value:
        if value is ...:
            words.append(placeholder)
        elif value is not True:
            words.append("random" if value is None else str(value))
    return " ".join(words).rstrip()


@contextlib.contextmanager
def notes(options: Container[str]) -> Iterator[None]:
    """Print each RowsDifferWarning as one line on stderr when it is raised; see `worded`."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
        if isinstance(message, RowsDifferWarning):
            typer.echo(f"note: {printable(worded(message, options))}", err=True)
        else:
            showwarning(message, category, *where, **rest)

    with warnings.catch_warnings():
        warnings.simplefilter("default", RowsDifferWarning)
        showwarning, warnings.showwarning = warnings.showwarning, show
        yield
