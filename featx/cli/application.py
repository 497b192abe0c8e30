"""The Typer application: its commands and their exit codes; an error is one line.

Exit codes: 0 done; 1 done, but some images could not be read; 2 something is missing or does not fit; 130 interrupted.
"""

from __future__ import annotations

import errno
import functools
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

import featx
from featx.cli.adapt import adapt
from featx.cli.audit import audit
from featx.cli.compare import compare, models
from featx.cli.demo import demo
from featx.cli.doctor import doctor
from featx.cli.export import export
from featx.cli.extract import extract
from featx.cli.finetune import finetune
from featx.cli.imports import import_
from featx.cli.interrupts import left_by_interrupt
from featx.cli.labelling import next_
from featx.cli.layers import layers
from featx.cli.map import map_
from featx.cli.predict import predict
from featx.cli.printing import print_error
from featx.cli.report import report
from featx.cli.search import search
from featx.cli.similar import similar
from featx.cli.stores import info, merge, put, verify
from featx.cli.wording import notes, worded
from featx.display import printable
from featx.errors import FeatxError, nearest

_COMMANDS = (
    extract,
    import_,
    info,
    verify,
    merge,
    export,
    put,
    models,
    layers,
    compare,
    search,
    report,
    audit,
    next_,
    similar,
    map_,
    adapt,
    finetune,
    predict,
    demo,
    doctor,
)  # in the order of `featx --help`
_STORE_WRITERS = (extract, merge)


class _Commands(TyperGroup):
    """featx's commands; a usage error costs one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        standalone_mode = options.get("standalone_mode", True)
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except TyperException as error:
            if not standalone_mode:
                raise
            words = args[0] if args else options.get("args") or sys.argv[1:]
            command = " ".join(["featx", *(word for word in words[:1] if word in self.commands)])
            if line := _usage_error(error, command):  # it is empty where the help was printed instead
                print_error(line)
            code = error.exit_code
        if standalone_mode:
            raise SystemExit(code or 0)
        return code


def _usage_error(error: Any, command: str) -> str:
    """One line for a usage error, ending with how to list what the command takes.

    Parameters
    ----------
    error : TyperException
        Its attributes depend on its type.
    command : str
        The command, if the error does not name it.
    """
    text = " ".join(error.format_message().split())
    if not text:
        return ""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    command = context.command_path if context is not None else command
    if context is not None and type(error).__name__ == "NoSuchOption":
        options = [name for option in context.command.get_params(context) for name in option.opts]
        text = f"{command} has no option {error.option_name}{nearest(error.option_name, options)}"
    elif parameter is not None:
        name = "/".join(reversed(parameter.opts)) if parameter.param_type_name == "option" else parameter.name.upper()
        reason = " ".join(error.message.removeprefix("Value error, ").split())
        known = {"valid integer": f"{name} is a whole number", "valid number": f"{name} is a number"}
        known |= {"valid boolean": f"{name} takes no value"}
        needed = next((needed for words, needed in known.items() if words in reason), f"{name}: {reason.rstrip('.')}")
        text = needed if reason else f"{command} needs {name}: {parameter.help}"
    else:
        text = (text[0].lower() + text[1:]).rstrip(".")
    return f"{text}{'' if text[-1] in '.?' else '.'} {command} --help says what it takes"


def _with_exit_code(function: Callable[..., int | None]) -> Callable[..., None]:
    """The command, ending with an exit code; an error that a user can mend is one line instead of a traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with notes(kwargs):
                code = function(*args, **kwargs)
        except FeatxError as error:
            print_error(worded(error, kwargs))
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            print_error(f"the name of a file is too long: {str(error.filename)[:60]}...")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            left = ""
            if function in _STORE_WRITERS:
                left = left_by_interrupt(kwargs["output"], several=kwargs.get("shards") is not None)
            print_error(f"interrupted{left}")
            raise typer.Exit(130) from None
        raise typer.Exit(code or 0)

    return run


app = typer.Typer(
    name="featx",
    cls=_Commands,
    help="Features once, answers in seconds: CNN activations in one HDF5 file, scikit-learn on top.",
    epilog="Exit codes: 0 done; 1 done, some images unreadable; 2 something is missing or does not fit; "
    "130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(featx.__version__)
        raise typer.Exit()


def _unwrapped(text: str | None) -> str:
    """A docstring with one line a paragraph, since Typer keeps its line ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


for _function in _COMMANDS:
    app.command(_function.__name__.rstrip("_"), help=_unwrapped(_function.__doc__))(_with_exit_code(_function))


def main() -> None:
    """The `featx` command."""
    formatwarning = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: printable(formatwarning(*args, **kwargs), keep="\n")
    app()
