"""The command line in the tests' own process."""

from __future__ import annotations

from typer.testing import CliRunner

from featx.cli import app


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    """The one line that a refused command prints."""
    done = run(*words)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    return done.stderr
