"""Sections of a report, which the HTML page and the Markdown text are written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from featx.display import printable

Level = Literal["good", "note", "warning"]
Check = tuple[Level, str]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences, each good news, a note or a warning."""

    items: Sequence[Check]


@dataclass(frozen=True)
class Table:
    """A table.

    caption : what it shows
    header : names of the columns
    rows : cells of each row
    words : number of columns, from the left, that are words and not numbers
    images : for each row the positions of its images, shown by a button; optional
    is_folded : whether the page shows it only when it is opened
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    images: Sequence[Sequence[int]] = ()
    is_folded: bool = False


@dataclass(frozen=True)
class Code:
    """A command, or a recipe."""

    text: str


@dataclass(frozen=True)
class Html:
    """What only the page has; a caller has escaped its texts."""

    html: str


Block = Text | Bullets | Table | Code | Html


@dataclass(frozen=True)
class Section:
    """A part of a report.

    name : its anchor
    title : its heading
    blocks : its content, in order
    is_folded : whether the page shows it only when it is opened
    """

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    is_folded: bool = False


def text_html(text: object) -> str:
    """Text of any origin as HTML text or an attribute's value."""
    return escape(printable(text), quote=True)


def section_html(section: Section) -> str:
    inner = "\n".join(map(_block_html, section.blocks))
    title = f"<h2>{text_html(section.title)}</h2>"
    if section.is_folded:
        return f'<section id="{section.name}"><details><summary>{title}</summary>\n{inner}\n</details></section>'
    return f'<section id="{section.name}">{title}\n{inner}\n</section>'


def _block_html(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{text_html(text)}</p>"
        case Bullets(items):
            return f'<ul class="checks">{"".join(_bullet(level, text) for level, text in items)}</ul>'
        case Code(text):
            return f'<pre tabindex="0">{escape(printable(text, keep=chr(10)))}</pre>'
        case Html(html):
            return html
    return _table_html(block)


_WORDS: dict[Level, str] = {"good": "fine", "note": "note", "warning": "warning"}


def _bullet(level: Level, text: str) -> str:
    return f'<li class="{level}"><b>{_WORDS[level]}</b> {text_html(text)}</li>'


def _table_html(table: Table) -> str:
    shows = bool(table.images)
    head = "".join(
        f'<th scope="col"{" class=words" if place < table.words else ""}>{text_html(name)}</th>'
        for place, name in enumerate(table.header)
    )
    lines = []
    for number, row in enumerate(table.rows):
        cells = [
            f'<th scope="row">{text_html(cell)}</th>'
            if place == 0
            else f"<td{' class=words' if place < table.words else ''}>{text_html(cell)}</td>"
            for place, cell in enumerate(row)
        ]
        if shows:
            cells.append(f"<td>{images_button(table.images[number], ', '.join(row[: table.words]), 'show')}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    last = '<th scope="col">images</th>' if shows else ""
    caption = text_html(table.caption)
    drawn = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}{last}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    return f"<details><summary>{caption}</summary>{drawn}</details>" if table.is_folded else drawn


def images_button(positions: Sequence[int], title: str, text: str) -> str:
    """A button that shows some images; "" if there are none."""
    if not len(positions):
        return ""
    listed, title = " ".join(map(str, positions)), text_html(title)
    shows = f'data-images="{listed}" data-title="{title}" aria-label="{text}: {title}"'
    return f'<button type="button" {shows}>{text}</button>'


def markdown_of(title: str, sections: Sequence[Section]) -> str:
    """The sections as Markdown; drawings and images are left out."""
    parts = [f"# {_marked(title)}"]
    for section in sections:
        blocks = [text for block in section.blocks if (text := _block_markdown(block))]
        if blocks:
            parts += [f"## {_marked(section.title)}", *blocks]
    return "\n\n".join(parts) + "\n"


def _block_markdown(block: Block) -> str:
    match block:
        case Text(text):
            return _marked(text)
        case Bullets(items):
            return "\n".join(f"- **{_WORDS[level]}**: {_marked(text)}" for level, text in items)
        case Code(text):
            fence = "`" * 3
            while fence in text:
                fence += "`"
            return f"{fence}\n{printable(text, keep=chr(10))}\n{fence}"
        case Html():
            return ""
    lines = [_line(block.header), _line(["---"] * block.words + ["---:"] * (len(block.header) - block.words))]
    return "\n".join([f"{_marked(block.caption)}:", "", *lines, *(_line(map(_marked, row)) for row in block.rows)])


def _line(cells: object) -> str:
    return f"| {' | '.join(cells)} |"  # type: ignore[arg-type]


def _marked(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|~" else letter for letter in printable(text))
