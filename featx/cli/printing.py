"""Output of the command line: tables, lines and data on stdout, errors on stderr."""

from __future__ import annotations

import sys

import typer

from featx.display import console, printable


def print_all(*things: object) -> None:
    """Print tables and texts."""
    # what is piped or logged is not cut at a screen's 80 columns
    width = None if sys.stdout.isatty() else 140
    screen = console(width=width)
    for thing in things:
        screen.print(thing, soft_wrap=isinstance(thing, str))


def print_line(line: str) -> None:
    print_all(printable(line))


def print_error(line: str) -> None:
    typer.echo(f"featx: {printable(line)}", err=True)


def print_note(line: str) -> None:
    """Print a note on stderr; nothing if it is empty."""
    if line:
        typer.echo(f"note: {printable(line)}", err=True)


def print_data(text: str) -> None:
    """Print JSON or CSV: unchanged when piped, escaped on a terminal."""
    if sys.stdout.isatty():
        typer.echo(printable(text, keep="\n"))
    else:
        typer.echo(text.encode(errors="surrogateescape"))  # file names as the bytes that they are
