"""Make text of unknown origin (image names, classes, layers, paths) safe to print on a terminal.

All output of the command line goes through this module: single lines through `printable`, texts of several lines
through `printable_lines`, tables and bars through `console`. Names in stores, models, JSON and CSV are not changed. The
module imports no other room.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidirectional too), surrogate, line and paragraph breaks


def printable(text: object, keep: str = "") -> str:
    r"""The text with control and format characters escaped as in Python: "\x1b", "\n", "\u202e".

    Parameters
    ----------
    text : object
        It is converted to str.
    keep : str
        Characters that are not escaped.
    """
    raw = str(text)
    if raw.isprintable():
        return raw
    return "".join(character if character in keep or unicodedata.category(character) not in _ESCAPED
                   else character.encode("unicode_escape").decode() for character in raw)  # fmt: skip


def printable_lines(parts: Iterable[object]) -> str:
    """Join the parts, one a line; line breaks inside a part are escaped."""
    return "\n".join(map(printable, parts))


def console(**options: Any) -> Console:
    """A rich console that prints text literally: no markup, no emoji codes, control characters escaped."""
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text, keep="\n"), **options)

    if options.get("stderr") and not sys.stderr.isatty():
        options.setdefault("force_terminal", False)  # FORCE_COLOR makes rich animate bars in a log, too
    return PlainConsole(highlight=False, markup=False, emoji=False, **options)
