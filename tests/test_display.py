"""Printed text has no control or format characters; JSON and CSV give every name back."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata

import numpy as np
import pytest
from rich.progress import TextColumn
from rich.table import Table

from featx.display import console, printable, printable_lines
from featx.report.columns import FittedTable, PlainTable
from featx.report.interchange import csv_text, json_text

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "back\b\b\b\bspace",
    "one\nfeatx: two\r\n\tthree",
    "csi \x9b31m of one byte",
    "photo\u202egnp.exe",
    "\u2066isolate\u2069\u200e\u061c",
    "line\u2028para\u2029",
    "not UTF-8 \udcff",
    "tag \U000e0001",
    "\0\x7f",
]
PLAIN = [
    "",
    "cat.jpg",
    "día 3/Ünïcode/日本語.png",
    "no-break\xa0and\u3000wide",
    "[red]x[/red]",
    ":gem:",
    "a\\x1b",
    "𝛼🙂",
]
SHOWN = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]*")  # line feeds are those of tables


def is_shown(text: str) -> bool:
    return all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in text)


def on_screen(thing: object) -> str:
    file = io.StringIO()
    console(file=file, width=100, color_system=None).print(thing)
    return file.getvalue()


def test_control_and_format_characters_are_escaped_once():
    for text in HOSTILE:
        shown = printable(text)
        assert is_shown(shown) and shown.isprintable() and "\\" in shown
        assert printable(shown) == shown
        assert printable(text, keep="\n").split("\n") == [printable(line) for line in text.split("\n")]


def test_other_text_is_shown_as_it_is():
    for text in PLAIN:
        assert printable(text) == text and text in on_screen(text)


def test_a_line_break_in_a_name_is_no_new_line():
    assert printable_lines(["a\nb", "c"]) == "a\\nb\nc"


def test_whatever_a_console_prints_it_is_shown(subtests):
    for text in [*HOSTILE, *PLAIN]:
        with subtests.test(ascii(text)):
            plain = Table(title=text, caption=text)  # rich's own: what a program forgets to escape
            plain.add_column(text, footer=text)
            plain.add_row(text)
            tables = [plain]
            for table in (PlainTable("title", text), FittedTable(text)):
                table.add_column(text)
                table.add_row(text)
                table.add_row(["two", text])
                tables.append(table)
            for thing in (text, *tables, TextColumn(printable(text))):
                assert is_shown(on_screen(thing).replace("\n", ""))
            for table in tables[1:]:
                assert printable(text) in on_screen(table)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\u202e", "日本語"])
def test_a_table_is_as_wide_as_what_it_shows(text):
    for table in (PlainTable(), FittedTable()):
        table.add_column("name")
        table.add_column("next")
        table.add_row(text, "x")
        table.add_row("y", "x")
        lines = on_screen(table).splitlines()
        assert len({len(line) + sum(unicodedata.east_asian_width(c) in "WF" for c in line) for line in lines}) == 1


def test_json_gives_every_name_back_and_shows_none():
    values = {"names": [*HOSTILE, *PLAIN], "numbers": [1, 0.1, None, np.float32(0.5)], **{text: 1 for text in HOSTILE}}
    for indent in (None, 1):
        text = json_text(values, indent=indent)
        assert is_shown(text.replace("\n", "")) and json.loads(text) == values
        assert "día 3/Ünïcode/日本語.png" in text


FORMULAS = [
    "=1+1",
    "+1 cat",
    "-x.jpg",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "=",
    "'=1",
    "''=1",
    "-1-1",
    "+cmd|' /C calc'!A0",
]
NOT_FORMULAS = ["a=1", "'", "'a", "''", " =1", "-1", "+0.5", "-1e-05", "-.5", "1", "", "a,b", 'a "b"', "x\ny"]


def test_csv_gives_every_name_back_and_begins_no_cell_like_a_formula():
    texts = [*HOSTILE, *PLAIN, *FORMULAS, *NOT_FORMULAS]
    text = csv_text([["name", "value"], *([name, -0.5] for name in texts)])
    (_, *rows) = csv.reader(io.StringIO(text, newline=""))
    assert [value for _, value in rows] == ["-0.5"] * len(texts)
    for cell, _ in rows:
        if cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n"):
            float(cell)  # a number, which is no formula
    assert [re.sub(r"^'(?='*[=+\-@\t\r\n])", "", cell) for cell, _ in rows] == texts
    quoted = {name for name, (cell, _) in zip(texts, rows, strict=True) if cell != name}
    assert quoted == set(FORMULAS)


def test_csv_of_nothing_and_of_numbers():
    assert csv_text([["a", "b"], [None, -1], [True, 0.1]]) == "a,b\n,-1\nTrue,0.1"
