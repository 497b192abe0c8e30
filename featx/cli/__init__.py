"""The command line: it parses arguments, calls the library and prints results; one file per group of commands."""

from featx.cli.application import app, main

__all__ = ["app", "main"]
