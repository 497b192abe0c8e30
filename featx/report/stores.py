"""Tables and texts about stores: their content, their recipe, and notes on their images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from featx.display import printable_lines
from featx.errors import count, readable
from featx.grammar import UNNAMED
from featx.report.columns import PlainTable
from featx.store import FeatureStore, Recipe, merge_refusal, rounding_note

_CHANGES = {"meaning": "the meaning", "rounding": "the rounding", "recorded": "nothing"}
_MOST = 20  # lines of a list


def _unless_none(text: str) -> Callable[[Any], str]:
    return lambda value: "" if value is None else text.format(value)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _imported(backbone: str) -> str:
    alone = "; no other rows go with these, since they were imported without --name"
    return f"{backbone}{alone if backbone == UNNAMED else ''}"


# label of a row: fields of the recipe in it, each with its text; a field in no row gets its own
_RECIPE_ROWS: dict[str, dict[str, Callable[[Any], str]]] = {
    "backbone": {"backbone": str, "weights": "weights {}".format},
    "weights' sha256": {"weights_sha256": str},
    "its file's sha256": {"weights_file_sha256": _unless_none("{}")},
    "preprocessing": {
        "preprocessing": _pairs,
        "views": lambda views: "" if views is None else f"views {', '.join(views)}",
    },
    "decoding": {"decoder": str},
    "computed": {
        "precision": str,
        "precision_error": _unless_none("at most {:.2%} off float32"),
        "engine": str,
        "device": "on {}".format,
    },
    "batches": {
        "batch_size": "{:,} images".format,
        "pass_rows": _unless_none("in passes of {:,} or more"),
        "threads": "{:,} threads".format,
    },
    "versions": {"versions": _pairs},
    "images from": {"origin": lambda origin: origin or "no folder"},
    "collection": {"collection": "{}, the digest of ids, labels and columns".format},
}
# of imported rows, of which the other fields are not known
_IMPORTED_ROWS: dict[str, dict[str, Callable[[Any], str]]] = {
    "made by": {"backbone": _imported},
    "fingerprint": {"weights_sha256": str},
    **{label: _RECIPE_ROWS[label] for label in ("versions", "collection")},
}
_LAYER_FIELDS = ("taps", "aliases", "dtype")  # shown with the layers


def store_table(store: FeatureStore) -> PlainTable:
    """A table of a store's content and its whole recipe."""
    recipe = store.recipe
    table = PlainTable(store.url or str(store.path), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    images = "rows" if recipe.is_imported else "images"
    table.add_row(images, f"{len(store):,}{', compressed' if store.is_archive else ''}")
    if store.classes is not None and store.y is not None:
        names, counts = np.unique(store.y, return_counts=True)
        shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(names, counts, strict=True))[:12])
        table.add_row("classes", f"{len(names):,}: {shown}{' ...' if len(names) > 12 else ''}")
    elif store.y is not None:
        table.add_row("labels", f"numbers from {store.y.min():g} to {store.y.max():g}")
    else:
        table.add_row("labels", "none; a search can read them from a CSV file")
    if store.columns:
        table.add_row("columns", ", ".join(store.columns))
    if store.failures:
        table.add_row("unreadable", f"{count(len(store.failures), 'image')} without rows, listed below")
    if store.duplicates:
        copies = sum(map(len, store.duplicates))
        table.add_row("duplicates", f"{copies:,} images have the same content as another one")
    if not store.statistics and not recipe.is_imported:
        table.add_row("statistics", "none of the images; featx extract adds them to this store, for featx audit")
    for name, tap in recipe.taps.items():
        size = len(store) * store.row_bytes(name)
        others = [alias for alias, meant in recipe.aliases.items() if meant == name]
        alias = f" = {', '.join(others)}" if others else ""
        shape = " x ".join(f"{side:,}" for side in tap["shape"])
        made = "" if recipe.is_imported else f", from {','.join(tap['layout'])}"
        table.add_row("layer", f"{name}{alias}: {shape} {recipe.dtype}, {readable(size)}{made}")
    table.add_section()
    for label, cell in _recipe_rows(recipe):
        table.add_row(label, cell)
    table.add_row("identity", store.identity)
    return table


def _recipe_rows(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(label, text) of the rows that show a recipe, apart from its layers."""
    if recipe.is_imported:
        rows = _IMPORTED_ROWS
    else:
        in_rows = {name for row in _RECIPE_ROWS.values() for name in row}
        others = [one.name for one in fields(recipe) if one.name not in (*in_rows, *_LAYER_FIELDS)]
        rows = _RECIPE_ROWS | {name: {name: _value} for name in others}
    for label, row in rows.items():
        if texts := [text for name, write in row.items() if (text := write(getattr(recipe, name)))]:
            yield label, ", ".join(texts)


def difference_table(first: FeatureStore, second: FeatureStore) -> PlainTable | str:
    """The fields in which two stores' recipes differ, and what each difference changes."""
    differences = list(first.recipe.compare(second.recipe))
    if not differences:
        return "the recipes are equal"
    table = PlainTable("the recipes differ")
    table.add_column("field")
    table.add_column(first.path.name, overflow="fold")
    table.add_column(second.path.name, overflow="fold")
    table.add_column("changes")
    only = [
        [name for name in one.layers if name not in other.layers] for one, other in ((first, second), (second, first))
    ]
    if any(only):
        table.add_row("layers that only one has", *(", ".join(names) or "-" for names in only), "nothing")
    for field, *values, kind in differences:
        if field.startswith(("taps.", "aliases.")) and None in values:
            continue
        table.add_row(field, *map(_value, values), _CHANGES[kind], style="bold" if kind == "meaning" else None)
    return table


def together_text(first: FeatureStore, second: FeatureStore) -> str:
    """Lines of text: whether a model of one store can be scored on the other, and whether the two can be merged."""
    shared = [name for name in first.layers if name in second.layers]
    recipe, other = first.recipe.some(shared), second.recipe.some(shared)
    if not shared or recipe.other_meaning(other):
        return "their rows cannot be used together" + ("" if shared else ": they share no layer")
    note = rounding_note(recipe, other, (first.path.name, second.path.name))
    both = len(set(map(bytes, first.digests)) & set(map(bytes, second.digests)))
    if len(first) == len(second) == len(np.intersect1d(first.X, second.X)):
        search = "a search takes both at once: they hold the same images"
    elif both:
        search = f"neither can be the other's test store: {count(both, 'image')} are in both"
    else:
        search = "one can be searched and the other be its test store"
    reason = merge_refusal(first, second)
    merges = f"they cannot be merged: {reason}" if reason else "they can be merged"
    return printable_lines([f"{search}{': ' + note if note else ''}", merges])


def notes_text(store: FeatureStore) -> str:
    """Notes on a store's images, such as unreadable or contradictory ones, as lines of text; "" if there are none."""
    lines = []
    if store.failures:
        lines.append(f"no rows for {count(len(store.failures), 'image')} that cannot be read:")
        lines += _shortened([f"  {failure.id}: {failure.reason}" for failure in store.failures], "store.failures")
    if store.nonfinite:
        lines.append(f"{count(len(store.nonfinite), 'row')} with NaN or inf:")
        lines += _shortened([f"  {row.id}, {row.layer}: {row.what}" for row in store.nonfinite], "store.nonfinite")
    if store.contradictions and store.y is not None:
        lines.append(f"{count(len(store.contradictions), 'image')} there several times, with different labels:")
        pairs = [
            "  " + ", ".join(f"{store.ids[row]} ({store.y[row]})" for row in group.tolist())
            for group in store.contradictions
        ]
        lines += _shortened(pairs, "store.contradictions")
    return printable_lines(lines)


def _shortened(lines: list[str], where: str) -> list[str]:
    return lines if len(lines) <= _MOST else [*lines[:_MOST], f"  and {len(lines) - _MOST:,} more, in {where}"]


def _value(value: object) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
