"""JSON and CSV for other programs, from which every name can be recovered exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable
from operator import methodcaller
from typing import Any

from featx.display import printable

# what spreadsheets take for a formula (OWASP, "CSV Injection"), or would after one apostrophe was taken off
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def json_text(value: Any, indent: int | None = None) -> str:
    r"""JSON in which control and format characters are escaped ("\u202e"), and other letters are not."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=methodcaller("item"))
    if printable(text, keep="\n") == text:
        return text
    escaped = (
        character if character == "\n" or printable(character) == character else json.dumps(character)[1:-1]
        for character in text
    )
    return "".join(escaped)


def csv_text(rows: Iterable[Iterable[object]], as_is: Container[int] = ()) -> str:
    r"""CSV of rows of cells; None is an empty cell.

    A text that begins with one of = + - @, a tab or a line break, and is no number, gets an apostrophe in front, so
    that a spreadsheet does not take it for a formula; so does one that begins so after apostrophes. To have it back,
    take one apostrophe off a cell that matches ``'+[=+\-@\t\r\n]``. Numbers stay as they are, and so do the columns
    `as_is`, whose texts the user wrote.
    """
    return "\n".join(",".join(_cell(value, place in as_is) for place, value in enumerate(row)) for row in rows)


def _cell(value: object, is_as_is: bool) -> str:
    text = "" if value is None else str(value)
    if not is_as_is and isinstance(value, str) and _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    if any(character in text for character in ',"\r\n'):  # the csv module does not quote a carriage return
        text = '"' + text.replace('"', '""') + '"'
    return text
