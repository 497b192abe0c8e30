"""Tables that fit the screen: names wrap, less important columns are dropped, and no number is ever cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table

from featx.display import printable, printable_lines

_IN_NAMES = re.compile(r"(?<=[-._:+/ ])")
_NOWHERE, _AT_INTERVAL, _AT_SPACES = re.compile(r"(?!)"), re.compile(r"(?= \[)"), re.compile(r"(?= )")


class PlainTable(Table):
    """A table whose cells and headers are shown literally: no markup, no control characters.

    Parameters
    ----------
    title : lines of text
    """

    def __init__(self, *title: str, **options: Any) -> None:
        super().__init__(title=printable_lines(title) or None, title_justify="left", caption_justify="left", **options)

    def add_column(self, header: str = "", footer: str = "", **options: Any) -> None:  # type: ignore[override]
        super().add_column(printable(header), printable(footer), **options)

    def add_row(self, *cells: str | list[str], **options: Any) -> None:  # type: ignore[override]
        """A cell is a text or a list of lines."""
        shown = (printable_lines([cell] if isinstance(cell, str) else cell) for cell in cells)
        super().add_row(*shown, **options)


class FittedTable(PlainTable):
    """A table of names, which may wrap anywhere, and of numbers, which may not.

    On a narrow screen, as far as needed and in this order: the frame is dropped, and the first column of `spare`, and
    names wrap; intervals are put below their scores, and the other columns of `spare` are dropped one by one; numbers
    and their words are put on lines of their own, and the columns of `spare_at_last` are dropped. The caption names
    the dropped columns.

    Parameters
    ----------
    title : str
    spare, spare_at_last : sequence of str
        Headers of columns that may be dropped, the least important first.
    """

    def __init__(self, title: str = "", spare: Sequence[str] = (), spare_at_last: Sequence[str] = ()) -> None:
        super().__init__(*filter(None, [title]))
        self._spare, self._spare_at_last = tuple(spare), tuple(spare_at_last)

    def add_names(self, *headers: str) -> None:
        for header in headers:
            self.add_column(header, overflow="fold")

    def add_numbers(self, *headers: str) -> None:
        for header in headers:
            self.add_column(header, justify="right", no_wrap=True)

    def add_words(self, *headers: str) -> None:
        """Numbers and words, left-aligned: "0.812 [0.781, 0.852]"."""
        for header in headers:
            self.add_column(header, no_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width
        for least, is_framed, columns, breaks in self._forms():
            between = 3 * len(columns) + 1 if is_framed else 2 * len(columns) - 1
            heads = _NOWHERE if is_framed else _AT_SPACES
            widths = [_longest(column, heads, _NOWHERE if _is_name(column) else breaks) for column in columns]
            names = [place for place, column in enumerate(columns) if _is_name(column)]
            enough = sum(min(width, least) if place in names else width for place, width in enumerate(widths))
            if enough + between <= room:
                break
        while names and sum(widths) + between > room and max(widths[place] for place in names) > 1:
            widths[max(names, key=lambda place: widths[place])] -= 1
        yield self._form(is_framed, columns, widths, breaks)

    def _forms(self) -> Iterator[tuple[int, bool, list[Column], re.Pattern[str]]]:
        """The possible layouts, fullest first: (width of a name, whether framed, columns, where numbers may wrap)."""
        if self.box is not None:
            yield 20, True, self.columns, _NOWHERE
        yield 20, False, self.columns, _NOWHERE
        yield 10, False, self._without(self._spare[:1]), _NOWHERE
        for breaks, spare in ((_AT_INTERVAL, self._spare), (_AT_SPACES, (*self._spare, *self._spare_at_last))):
            for gone in range(len(spare) + 1):
                yield 10, False, self._without(spare[:gone]), breaks

    def _without(self, headers: Sequence[str]) -> list[Column]:
        return [column for column in self.columns if column.header not in headers]

    def _form(
        self, is_framed: bool, columns: Sequence[Column], widths: Sequence[int], breaks: re.Pattern[str]
    ) -> Table:
        gone = [str(column.header) for column in self.columns if column not in columns]
        left_out = f"left out for want of room: {', '.join(gone)}" if gone else ""
        table = Table(
            title=self.title,
            title_justify="left",
            caption="\n".join(filter(None, (str(self.caption or ""), left_out))) or None,
            caption_justify="left",
            box=box.HEAVY_HEAD if is_framed else box.SIMPLE_HEAD,
            show_edge=is_framed,
            padding=(0, 1) if is_framed else (0, 1, 0, 0),
        )
        for column, width in zip(columns, widths, strict=True):
            header = _broken(str(column.header), width, _AT_SPACES)
            table.add_column(header, justify=column.justify, overflow="fold", width=width)
        where = [_IN_NAMES if _is_name(column) else breaks for column in columns]
        rows = zip(*(column.cells for column in columns), strict=True)
        for row, cells in zip(self.rows, rows, strict=True):
            table.add_row(*map(_broken, map(str, cells), widths, where), style=row.style, end_section=row.end_section)
        return table


def _is_name(column: Column) -> bool:
    return not column.no_wrap


def _longest(column: Column, heads: re.Pattern[str], breaks: re.Pattern[str]) -> int:
    """Minimum width of a column, if its header and cells wrap at every allowed place."""
    lines = _broken(str(column.header), 0, heads).split("\n")
    for cell in column.cells:
        lines += _broken(str(cell), 0, breaks).split("\n")
    return max(map(cell_len, lines))


def _broken(text: str, width: int, breaks: re.Pattern[str]) -> str:
    """Lines of at most `width` cells, wrapped where they may."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append("")
        for piece in breaks.split(line):
            if lines[-1].strip() and cell_len((lines[-1] + piece).rstrip()) > width:
                lines.append("")
                piece = piece.lstrip()
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
