"""Stores in; what they hold, what made them, and what one should know of them, as tables and lines, out."""

from __future__ import annotations

import json

import numpy as np

from featx.display import printable_lines
from featx.errors import count, readable
from featx.report.columns import PlainTable
from featx.store import FeatureStore, merge_refusal, rounding_note

_CHANGES = {"meaning": "the meaning", "rounding": "the rounding", "recorded": "nothing"}
_MOST = 20  # lines of a list


def store_table(store: FeatureStore) -> PlainTable:
    """What a store holds and what made it: its whole recipe."""
    recipe = store.recipe
    table = PlainTable(str(store.path), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("images", f"{len(store):,}{', compressed' if store.is_archive else ''}")
    if store.classes is not None and store.y is not None:
        names, counts = np.unique(store.y, return_counts=True)
        shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(names, counts, strict=True))[:12])
        table.add_row("classes", f"{len(names):,}: {shown}{' ...' if len(names) > 12 else ''}")
    elif store.y is not None:
        table.add_row("labels", f"numbers from {store.y.min():g} to {store.y.max():g}")
    else:
        table.add_row("labels", "none; featx search --labels FILE.csv gives them")
    if store.columns:
        table.add_row("columns", ", ".join(store.columns))
    if store.failures:
        table.add_row("unreadable", f"{count(len(store.failures), 'image')} without rows, listed below")
    if store.duplicates:
        copies = sum(map(len, store.duplicates))
        table.add_row("duplicates", f"{copies:,} images have the same content as another one")
    for name, tap in recipe.taps.items():
        size = len(store) * store.row_bytes(name)
        others = [alias for alias, meant in recipe.aliases.items() if meant == name]
        alias = f" = {', '.join(others)}" if others else ""
        shape = " x ".join(f"{side:,}" for side in tap["shape"])
        table.add_row(
            "layer", f"{name}{alias}: {shape} {recipe.dtype}, {readable(size)}, from {','.join(tap['layout'])}"
        )
    table.add_section()
    table.add_row("backbone", f"{recipe.backbone}, weights {recipe.weights}")
    table.add_row("weights' sha256", recipe.weights_sha256)
    if recipe.weights_file_sha256 is not None:
        table.add_row("its file's sha256", recipe.weights_file_sha256)
    table.add_row("preprocessing", ", ".join(f"{key} {value}" for key, value in recipe.preprocessing.items()))
    table.add_row("decoding", recipe.decoder)
    error = f", at most {recipe.precision_error:.2%} off float32" if recipe.precision_error is not None else ""
    table.add_row("computed", f"{recipe.precision}{error}, {recipe.engine}, on {recipe.device}")
    passes = "" if recipe.pass_rows is None else f", in passes of {recipe.pass_rows:,} or more"
    table.add_row("batches", f"{recipe.batch_size:,} images{passes}, {recipe.threads} threads")
    table.add_row("versions", ", ".join(f"{name} {number}" for name, number in recipe.versions.items()))
    table.add_row("images from", recipe.origin or "no folder")
    table.add_row("collection", f"{recipe.collection}, the digest of ids, labels and columns")
    table.add_row("identity", store.identity)
    return table


def difference_table(first: FeatureStore, second: FeatureStore) -> PlainTable | str:
    """What is different in two stores' recipes, field by field, and what each difference changes."""
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
    for field, there, here, kind in differences:
        if field.startswith(("taps.", "aliases.")) and None in (there, here):
            continue
        changes = _CHANGES[kind]
        table.add_row(field, _value(there), _value(here), changes, style="bold" if changes == "the meaning" else None)
    return table


def together_text(first: FeatureStore, second: FeatureStore) -> str:
    """What two stores go together for, in lines: learning from one and scoring on the other; being merged."""
    shared = [name for name in first.layers if name in second.layers]
    recipe, other = first.recipe.some(shared), second.recipe.some(shared)
    if not shared or recipe.other_meaning(other):
        return "their rows cannot be used together" + ("" if shared else ": they share no layer")
    note = rounding_note(recipe, other, (first.path.name, second.path.name))
    both = len(np.intersect1d(first.ids, second.ids))
    if both == len(first) == len(second):
        search = "featx search takes both at once: they hold the same images"
    elif both:
        search = f"neither can be the other's --test-store: {count(both, 'image')} are in both"
    else:
        search = "one can be searched and the other its --test-store"
    reason = merge_refusal(first, second)
    merges = f"featx merge cannot join them: {reason}" if reason else "featx merge can join them"
    return printable_lines([f"{search}{': ' + note if note else ''}", merges])


def notes_text(store: FeatureStore) -> str:
    """What one should know of a store's images, in lines; empty if there is nothing."""
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
