"""Text from elsewhere in (names of images, classes and layers, paths, reasons), text that a terminal may show out.

A leaf. Whatever the command line prints goes through it: a line by `printable`, a text of several by
`printable_lines`, tables and bars by `console`. Names in stores, models, JSON and CSV stay what they are.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidirectional too), surrogate, line and paragraph breaks


def printable(text: object, keep: str = "") -> str:
    r"""A text in which control and format characters are written as Python writes them: "\x1b", "\n", "\u202e".

    Parameters
    ----------
    keep : characters that stay
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(character if character in keep or unicodedata.category(character) not in _ESCAPED
                   else character.encode("unicode_escape").decode() for character in whole)  # fmt: skip


def printable_lines(parts: Iterable[object]) -> str:
    """One text of several lines; a line break within a part is escaped."""
    return "\n".join(map(printable, parts))


def console(**options: Any) -> Console:
    """A rich console that interprets nothing in what it prints: no markup, no emoji codes, no control characters."""
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text, keep="\n"), **options)

    return PlainConsole(highlight=False, markup=False, emoji=False, **options)
